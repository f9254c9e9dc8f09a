//! What a job that ended long ago has no more use for: the progress of its tasks, nine tenths of its stories.

use std::collections::BTreeSet;

use insula_proto::ids::JobId;
use sqlx::SqliteConnection;

use super::signed;

/// Keeps in mind the last story that goes, where any does.
const KEEP_IN_MIND: &str = "INSERT OR REPLACE INTO compacted (job, seq, part) \
    SELECT ?1, COALESCE(MAX(seq), 0), 0 FROM story WHERE job = ?1 AND json_extract(body, '$.story') = 'progress'";

/// The last part of that event; a second step, as SQLite has no greatest pair.
const AND_ITS_PART: &str = "UPDATE compacted SET part = COALESCE((SELECT MAX(part) FROM story WHERE job = ?1 \
    AND seq = compacted.seq AND json_extract(body, '$.story') = 'progress'), 0) WHERE job = ?1";

const DROP: &str = "DELETE FROM story WHERE job = ?1 AND json_extract(body, '$.story') = 'progress'";

pub(super) async fn jobs(connection: &mut SqliteConnection) -> Result<BTreeSet<JobId>, sqlx::Error> {
    let jobs = sqlx::query_scalar::<_, i64>("SELECT job FROM compacted").fetch_all(connection).await?;
    Ok(jobs.into_iter().map(|job| JobId(job.unsigned_abs())).collect())
}

pub(super) async fn compact(connection: &mut SqliteConnection, jobs: &[JobId]) -> Result<(), sqlx::Error> {
    sqlx::query("BEGIN IMMEDIATE").execute(&mut *connection).await?;
    for job in jobs {
        for statement in [KEEP_IN_MIND, AND_ITS_PART, DROP] {
            sqlx::query(statement).bind(signed(job.0)).execute(&mut *connection).await?;
        }
    }
    sqlx::query("COMMIT").execute(connection).await?;
    Ok(())
}

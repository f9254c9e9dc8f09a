//! The journal's fold at a start. Rows come by the hundred as one text, as every row that comes alone is a trip to SQLite's
//! thread; where such a text is not as expected, its rows are looked at one by one, so that the damaged one is named.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use futures::TryStreamExt as _;
use sqlx::{Row as _, SqliteConnection};

use super::StoreError;
use crate::schedule::{State, event::Event, step};

/// Rows that come at once: about half a megabyte.
const AT_ONCE: i64 = 256;

/// Some rows, a line each: seq, time, body. A body is JSON without line breaks.
const SOME: &str = "SELECT group_concat(seq || ' ' || at_ms || ' ' || body, char(10)) FROM \
    (SELECT seq, at_ms, body FROM journal WHERE seq > ? ORDER BY seq LIMIT ?)";

/// How far the fold has come.
#[derive(Default)]
pub(super) struct Folding {
    pub(super) state: State,
    pub(super) last_seq: i64,
    pub(super) last_ms: u64,
}

/// Folds all rows.
pub(super) async fn fold(connection: &mut SqliteConnection, path: &Path) -> Result<Folding, StoreError> {
    let failed = |source| StoreError::Sqlite { path: path.to_path_buf(), source };
    let mut folding = Folding::default();
    loop {
        let some = sqlx::query(SOME).bind(folding.last_seq).bind(AT_ONCE).fetch_one(&mut *connection).await;
        let some = some.map_err(failed)?.try_get::<Option<String>, _>(0);
        let Ok(Some(lines)) = some else { break };
        if !folding.take_lines(&lines, path)? {
            break;
        }
    }
    one_by_one(connection, path, &mut folding).await?;
    Ok(folding)
}

/// Folds what is left, row by row: nothing, where all is well.
async fn one_by_one(connection: &mut SqliteConnection, path: &Path, folding: &mut Folding) -> Result<(), StoreError> {
    let failed = |source| StoreError::Sqlite { path: path.to_path_buf(), source };
    let damaged = |seq, problem: String| StoreError::Damaged { path: path.to_path_buf(), seq, problem };
    let rows = sqlx::query("SELECT seq, at_ms, body FROM journal WHERE seq > ? ORDER BY seq").bind(folding.last_seq);
    let mut rows = rows.fetch(connection);
    while let Some(row) = rows.try_next().await.map_err(failed)? {
        let seq: i64 = row.try_get("seq").map_err(failed)?;
        if seq != folding.last_seq + 1 {
            return Err(damaged(folding.last_seq + 1, "it is missing".into()));
        }
        let body: &str = row.try_get("body").map_err(|error| damaged(seq, error.to_string()))?;
        let at_ms: i64 = row.try_get("at_ms").map_err(|error| damaged(seq, error.to_string()))?;
        folding.take(at_ms.unsigned_abs(), body).map_err(|problem| damaged(seq, problem))?;
    }
    Ok(())
}

impl Folding {
    /// Folds the rows of a text; `false`: a line is not the next row, and none from there on was folded.
    fn take_lines(&mut self, lines: &str, path: &Path) -> Result<bool, StoreError> {
        for line in lines.split('\n') {
            let mut parts = line.splitn(3, ' ');
            let seq = parts.next().and_then(|seq| seq.parse::<i64>().ok());
            let at_ms = parts.next().and_then(|at_ms| at_ms.parse::<i64>().ok());
            let (Some(seq), Some(at_ms), Some(body)) = (seq, at_ms, parts.next()) else { return Ok(false) };
            if seq != self.last_seq + 1 {
                return Ok(false);
            }
            let folded = self.take(at_ms.unsigned_abs(), body);
            folded.map_err(|problem| StoreError::Damaged { path: path.to_path_buf(), seq, problem })?;
        }
        Ok(true)
    }

    /// Folds the next row.
    fn take(&mut self, at_ms: u64, body: &str) -> Result<(), String> {
        let event: Event = serde_json::from_str(body).map_err(|error| error.to_string())?;
        // A row that reads but contradicts the ones before it breaks an invariant of the fold, which says so by panic.
        let fold = AssertUnwindSafe(|| step(&mut self.state, at_ms, &event));
        catch_unwind(fold).map_err(|_| "it does not fit the rows before it".to_owned())?;
        (self.last_seq, self.last_ms) = (self.last_seq + 1, self.last_ms.max(at_ms));
        Ok(())
    }
}

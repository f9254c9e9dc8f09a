//! How a batch of entries is written: in one transaction, in one trip to SQLite's thread.

use sqlx::SqliteConnection;

use super::{Entry, signed};

/// One trip to SQLite's thread for a whole batch: a trip costs more than a row. The texts of all rows come as one blob, and
/// where each begins as a list, so that the statements are the same for any number of rows and are prepared once.
const APPEND: &str = "BEGIN IMMEDIATE; \
    INSERT INTO journal (seq, at_ms, job, body) \
    SELECT value->>0, value->>1, value->>2, CAST(substr(?1, value->>3, value->>4) AS TEXT) FROM json_each(?2); \
    INSERT INTO story (job, seq, part, at_ms, body) \
    SELECT value->>0, value->>1, value->>2, value->>3, CAST(substr(?3, value->>4, value->>5) AS TEXT) FROM json_each(?4); \
    COMMIT";

/// Texts one after the other, and how each is found: its first byte, counted from 1 as SQL does, and its length.
#[derive(Default)]
struct Texts(Vec<u8>);

impl Texts {
    fn add(&mut self, text: &impl serde::Serialize) -> (usize, usize) {
        let begin = self.0.len();
        serde_json::to_writer(&mut self.0, text).expect("events and stories have only text keys");
        (begin + 1, self.0.len() - begin)
    }
}

pub(super) async fn write(connection: &mut SqliteConnection, last: i64, entries: &[Entry]) -> Result<i64, sqlx::Error> {
    let mut seq = last;
    let (mut events, mut event_rows) = (Texts::default(), Vec::new());
    let (mut stories, mut story_rows) = (Texts::default(), Vec::new());
    for entry in entries {
        seq += 1;
        let at_ms = signed(entry.at_ms);
        let (begin, bytes) = events.add(&entry.event);
        event_rows.push((seq, at_ms, entry.event.job().map(|job| signed(job.0)), begin, bytes));
        for ((job, story), part) in entry.stories.iter().zip(0i64..) {
            let (begin, bytes) = stories.add(story);
            story_rows.push((signed(job.0), seq, part, at_ms, begin, bytes));
        }
    }
    let list = |rows: Result<String, serde_json::Error>| rows.expect("numbers are JSON");
    let append = sqlx::query(APPEND).bind(events.0).bind(list(serde_json::to_string(&event_rows)));
    let append = append.bind(stories.0).bind(list(serde_json::to_string(&story_rows)));
    append.execute(connection).await?;
    Ok(seq)
}

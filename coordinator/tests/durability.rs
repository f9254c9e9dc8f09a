//! What the journal holds through clocks, full disks and damage.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "test code that spoils files")]
mod common;

use std::{fs, path::Path};

use common::*;
use insula_coordinator::{
    schedule::event::Event,
    shell::store::{Entry, Store},
};
use insula_proto::ids::WorkerId;

/// A machine whose wall clock was set back while nobody ran: times go on from the journal's last.
#[tokio::test]
async fn times_never_run_backwards_over_a_restart() {
    let (state, corpus) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_corpus(corpus.path(), [20, 3, 3]);
    let ahead_ms = 4_000_000_000_000; // the year 2096
    {
        let (mut store, _) = Store::open(state.path()).await.unwrap();
        store.fold().await.unwrap();
        let (name, device) = ("from the future".into(), "cpu".into());
        let event = Event::WorkerRegistered { worker: WorkerId(1), name, device, threads: 1, address: String::new() };
        store.append(&[Entry { at_ms: ahead_ms, event, stories: vec![] }]).await.unwrap();
    }
    let running = start_at(state.path()).await;
    let mut clients = Clients::to(&running).await;
    let job = clients.submit("later", &spec(corpus.path(), 1)).await.unwrap().job_id;
    assert!(clients.job(&job).await.submitted_ms >= ahead_ms as i64);
    running.stop().await.unwrap();
}

fn entry(number: u64) -> Entry {
    // Of some size, so that the journal has many pages.
    let name = format!("w{number} {}", "x".repeat(600));
    let event = Event::WorkerRegistered {
        worker: WorkerId(number),
        name,
        device: "cpu".into(),
        threads: 1,
        address: String::new(),
    };
    Entry { at_ms: number, event, stories: vec![] }
}

/// The files a power cut would leave after this many commits, their journal still in the log beside the database.
async fn cut_off(commits: u64) -> tempfile::TempDir {
    let (live, left) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut store, _) = Store::open(live.path()).await.unwrap();
    store.fold().await.unwrap();
    for number in 1..=commits {
        store.append(&[entry(number)]).await.unwrap();
    }
    for name in ["journal.sqlite", "journal.sqlite-wal"] {
        fs::copy(live.path().join(name), left.path().join(name)).unwrap();
    }
    left
}

/// Workers in the journal of a folder, or why it is refused.
async fn workers(folder: &Path) -> Result<u64, String> {
    let (mut store, _) = Store::open(folder).await.map_err(|e| e.to_string())?;
    let state = store.fold().await.map_err(|e| e.to_string())?;
    state.check();
    let workers: Vec<_> = state.workers.keys().map(|worker| worker.0).collect();
    assert_eq!(
        workers,
        (1..=workers.len() as u64).collect::<Vec<_>>(),
        "what is read is a beginning of what was written"
    );
    Ok(workers.len() as u64)
}

#[tokio::test]
async fn a_log_cut_off_anywhere_gives_the_commits_before_the_cut() {
    let whole = cut_off(20).await;
    let wal = fs::read(whole.path().join("journal.sqlite-wal")).unwrap();
    let mut last = 21;
    for cut in 0..=24 {
        let folder = tempfile::tempdir().unwrap();
        fs::copy(whole.path().join("journal.sqlite"), folder.path().join("journal.sqlite")).unwrap();
        let bytes = wal.len() - wal.len() * cut / 24 / 7 * 7;
        fs::write(folder.path().join("journal.sqlite-wal"), &wal[..bytes]).unwrap();
        let found = workers(folder.path()).await.unwrap();
        assert!(found <= last && (cut > 0 || found == 20), "{found} commits of {bytes} bytes, {last} of more");
        last = found;
    }
    assert!(last < 20, "a cut loses what lies behind it");
}

#[tokio::test]
async fn garbage_behind_the_log_is_nothing_and_within_it_ends_it() {
    let left = cut_off(10).await;
    let path = left.path().join("journal.sqlite-wal");
    let mut wal = fs::read(&path).unwrap();
    let (bytes, middle) = (wal.len(), wal.len() / 2);
    wal.extend((0..5000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8));
    let other = cut_off(10).await;
    fs::write(&path, &wal).unwrap();
    assert_eq!(workers(left.path()).await, Ok(10));
    wal.truncate(bytes);
    wal[middle] ^= 0x55;
    fs::copy(other.path().join("journal.sqlite"), left.path().join("journal.sqlite")).unwrap();
    fs::write(&path, &wal).unwrap();
    let found = workers(left.path()).await.unwrap();
    assert!((1..10).contains(&found), "{found}");
}

/// A journal of many pages, closed well.
async fn closed() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, _) = Store::open(folder.path()).await.unwrap();
    store.fold().await.unwrap();
    for number in 1..=200 {
        store.append(&[entry(number)]).await.unwrap();
    }
    drop(store);
    // The thread that held the database moves its log into it as it ends.
    let wal = folder.path().join("journal.sqlite-wal");
    for _ in 0..200 {
        if !wal.exists() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert!(!wal.exists(), "the journal was not closed in four seconds");
    folder
}

#[tokio::test]
async fn a_journal_that_lost_its_end_or_its_head_is_refused_by_name() {
    for (spoil, expected) in [
        (Spoil::Half, "malformed"),
        (Spoil::Head, "not a database"),
        (Spoil::Empty, "is empty, but its state directory has been in use"),
    ] {
        let folder = closed().await;
        let path = folder.path().join("journal.sqlite");
        let mut bytes = fs::read(&path).unwrap();
        assert!(bytes.len() > 100_000);
        match spoil {
            Spoil::Half => bytes.truncate(bytes.len() / 2 / 4096 * 4096),
            Spoil::Head => bytes[..16].fill(0x5a),
            Spoil::Empty => bytes.clear(),
        }
        fs::write(&path, &bytes).unwrap();
        fs::create_dir(folder.path().join("artifacts")).unwrap();
        let refusal = workers(folder.path()).await.unwrap_err();
        assert!(refusal.contains("journal.sqlite") && refusal.contains(expected), "{refusal}");
        assert_eq!(fs::metadata(&path).unwrap().len(), bytes.len() as u64, "what is refused is left as it is");
    }
}

enum Spoil {
    Half,
    Head,
    Empty,
}

/// A start that was cut off before anything was written leaves a file without bytes, and is simply done again.
#[tokio::test]
async fn an_empty_journal_of_a_directory_never_used_is_a_new_one() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("journal.sqlite"), "").unwrap();
    assert_eq!(workers(folder.path()).await, Ok(0));
}

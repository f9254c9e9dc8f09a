//! The log of calls, for tests that count or order them: one line per call,
//! `process thread symbol code details`, and one per finished kernel, `process thread kernel NAME counts`.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::sync::OnceLock;

use crate::settings::settings;

thread_local! {
    static DETAILS: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Whether anybody asked for a log.
pub fn wanted() -> bool {
    file().is_some()
}

/// Adds to the line of the call that this thread is in.
pub fn detail(text: impl FnOnce() -> String) {
    if wanted() {
        DETAILS.with_borrow_mut(|details| details.push_str(&text()));
    }
}

/// Writes the line of a call that has ended with `number`.
pub fn call(symbol: &str, number: i32) {
    let details = DETAILS.with_borrow_mut(std::mem::take);
    line(&format!("{symbol} {number} {details}"));
}

/// Writes a line that belongs to no call.
pub fn line(text: &str) {
    if let Some(mut file) = file() {
        let thread = format!("{:?}", std::thread::current().id());
        let thread = thread.trim_matches(|c: char| !c.is_ascii_digit());
        // One write of a file opened for appending: lines of several threads and processes do not mix.
        let written = file.write_all(format!("{} {thread} {}\n", std::process::id(), text.trim_end()).as_bytes());
        if let Err(error) = written {
            eprintln!("fakecuda: log: {error}");
        }
    }
}

fn file() -> Option<&'static File> {
    static FILE: OnceLock<Option<File>> = OnceLock::new();
    let open = || {
        let path = settings().log.as_ref()?;
        let opened = OpenOptions::new().create(true).append(true).open(path);
        opened.inspect_err(|error| eprintln!("fakecuda: log {}: {error}", path.display())).ok()
    };
    FILE.get_or_init(open).as_ref()
}

//! The command line: what was typed, done with the rooms behind it, shown to a person or a script.
//!
//! [`args`] is what can be typed; [`failure`] is how a command ends badly; [`progress`] turns a job's events into lines
//! and bars; [`bench`] what a benchmark's measurements mean; [`synthetic`] makes corpora to measure with. Everything that
//! touches the world is under [`shell`], one file per command.

pub mod args;
pub mod bench;
pub mod described;
pub mod failure;
pub mod progress;
pub mod shell;
pub mod synthetic;

use std::process::ExitCode;

use clap::Parser as _;

/// What `--version` prints.
pub const VERSION_TEXT: &str = concat!(env!("CARGO_PKG_VERSION"), " (proto insula.v1)");

/// Runs the command that was typed.
pub fn main() -> ExitCode {
    let cli = args::Cli::parse();
    match shell::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            failure.exit_code()
        }
    }
}

//! The PTX and the budgets that are kept are what the sources give.
//!
//! `kernels/regenerate --check` compiles every source again and has every architecture's assembler look at the result: no
//! spills, the same registers and shared memory. It needs Python with pip and a package index; where it cannot have
//! them, this says so and checks nothing.

use std::process::Command;

/// The script's exit status when the compiler's wheels could not be installed.
const UNAVAILABLE: i32 = 3;

#[test]
fn the_kept_ptx_and_budgets_are_what_the_sources_give() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/regenerate");
    let run = match Command::new("python3").args([script, "--check"]).output() {
        Ok(run) => run,
        Err(error) => return println!("skipped: python3 does not start: {error}"),
    };
    let said = format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    match run.status.code() {
        Some(0) => {}
        Some(UNAVAILABLE) => println!("skipped: {said}"),
        status => panic!("regenerate --check ends with {status:?}:\n{said}"),
    }
}

//! Standard output for readers that may leave early: a closed pipe (`| head`) ends the command quietly.

use std::{fmt::Arguments, io::Write as _};

/// Prints; ends the process where nobody reads any more.
pub fn print(text: Arguments<'_>) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = out.write_fmt(text).and_then(|()| out.flush()) {
        let nobody_reads = error.kind() == std::io::ErrorKind::BrokenPipe;
        std::process::exit(if nobody_reads { 0 } else { 1 });
    }
}

/// A line on standard error, for whoever still reads it.
pub fn tell(text: &str) {
    // What nobody reads is no reason to leave off.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// `println!` through [`print`].
macro_rules! say {
    ($($text:tt)*) => {
        $crate::shell::out::print(format_args!("{}\n", format_args!($($text)*)))
    };
}

pub(crate) use say;

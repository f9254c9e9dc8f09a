//! Tracing to stderr, and to a file under the state directory where there is one.

use std::path::Path;

use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::{EnvFilter, Layer as _, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// Starts tracing: warnings and worse on stderr (more with `-v`, or as `INSULA_LOG` filters), everything from
/// information up in `folder/file`. The guard flushes the file when dropped.
pub fn start(verbose: u8, file: Option<(&Path, &str)>) -> Option<WorkerGuard> {
    let level = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_env("INSULA_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let terminal = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false).with_filter(filter);
    let (file, guard) = match file {
        Some((folder, name)) => {
            let (writer, guard) = tracing_appender::non_blocking(tracing_appender::rolling::never(folder, name));
            let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(false);
            (Some(layer.with_filter(EnvFilter::new("info"))), Some(guard))
        }
        None => (None, None),
    };
    // A second start in one process (tests) keeps the first subscriber.
    let _ = tracing_subscriber::registry().with(terminal).with(file).try_init();
    guard
}

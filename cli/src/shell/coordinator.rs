//! `insula coordinator`: serves until asked to stop.

use std::{net::SocketAddr, path::PathBuf};

use insula_coordinator::shell::server::CoordinatorConfig;
use serde::{Deserialize, Serialize};

use super::{client::Serving, logging, out::say, run::make_state_directory, settings};
use crate::{args::CoordinatorArgs, failure::Failure};

/// What configs/coordinator.toml may set.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CoordinatorSettings {
    /// Where to listen.
    listen: SocketAddr,
    /// Folder of the journal, artifacts and logs.
    state: PathBuf,
    /// Listen on an address that other machines reach, though connections carry no authentication yet.
    allow_remote: bool,
    /// Days after a job's end for which its progress can still be watched.
    stories_kept_days: u32,
}

impl Default for CoordinatorSettings {
    fn default() -> Self {
        let listen = SocketAddr::from(([127, 0, 0, 1], 7461));
        Self { listen, state: ".insula".into(), allow_remote: false, stories_kept_days: 30 }
    }
}

/// Serves until Ctrl-C or SIGTERM.
pub async fn run(args: CoordinatorArgs, verbose: u8) -> Result<(), Failure> {
    let settings: CoordinatorSettings =
        settings::plain(&CoordinatorSettings::default(), args.config.as_deref(), &args.sets)?;
    let state = args.state.unwrap_or(settings.state.clone());
    make_state_directory(&state)?;
    let _log = logging::start(verbose.max(1), Some((&state, "coordinator.log")));
    let listen = args.listen.unwrap_or(settings.listen);
    let CoordinatorSettings { allow_remote, stories_kept_days, .. } = settings;
    let config = CoordinatorConfig { allow_remote, stories_kept_days, ..CoordinatorConfig::new(state.clone(), listen) };
    let serving = Serving::start(config).await?;
    say!("coordinator at {}, state in {}", serving.url(), state.display());
    // A coordinator that cannot write its journal any more ends, so that whoever looks after it starts it again.
    tokio::select! {
        () = super::worker::asked_to_stop() => {}
        () = serving.ending() => {}
    }
    serving.end().await
}

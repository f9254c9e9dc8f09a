//! `insula coordinator`: serves until asked to stop.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use insula_coordinator::shell::{guard::Protection, server::CoordinatorConfig};
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
    /// Listen on an address that other machines reach, in plain text and for everybody.
    allow_remote: bool,
    /// Workers that a user's jobs may hold at once; 0: all.
    quota: u32,
    /// The same for single users, by name.
    quotas: BTreeMap<String, u32>,
    /// Artifacts that nothing needs are deleted this often, minutes; 0: never.
    prune_minutes: u32,
    /// Days after a job's end for which its progress can still be watched.
    stories_kept_days: u32,
    /// The certificate (PEM); empty: plain text. This and the next two are meant from the settings file's folder.
    tls_cert: PathBuf,
    /// The certificate's key (PEM).
    tls_key: PathBuf,
    /// The file with the access token; empty: none is asked for.
    token_file: PathBuf,
}

impl CoordinatorSettings {
    /// The settings that are meant from the file's folder.
    fn paths(&mut self) -> Vec<&mut PathBuf> {
        vec![&mut self.tls_cert, &mut self.tls_key, &mut self.token_file]
    }
}

impl Default for CoordinatorSettings {
    fn default() -> Self {
        let listen = SocketAddr::from(([127, 0, 0, 1], 7461));
        let (quota, quotas, prune_minutes, stories_kept_days) = (0, BTreeMap::new(), 60, 30);
        let (state, allow_remote) = (".insula".into(), false);
        let (tls_cert, tls_key, token_file) = Default::default();
        Self {
            listen,
            state,
            allow_remote,
            quota,
            quotas,
            prune_minutes,
            stories_kept_days,
            tls_cert,
            tls_key,
            token_file,
        }
    }
}

/// Serves until Ctrl-C or SIGTERM.
pub async fn run(args: CoordinatorArgs, verbose: u8) -> Result<(), Failure> {
    let settings: CoordinatorSettings = settings::plain(
        &CoordinatorSettings::default(),
        args.config.as_deref(),
        &args.sets,
        CoordinatorSettings::paths,
    )?;
    let state = args.state.unwrap_or(settings.state.clone());
    make_state_directory(&state)?;
    let _log = logging::start(verbose.max(1), Some((&state, "coordinator.log")));
    let listen = args.listen.unwrap_or(settings.listen);
    let protection = Protection {
        tls_cert: settings::named(settings.tls_cert),
        tls_key: settings::named(settings.tls_key),
        token_file: settings::named(settings.token_file),
    };
    let CoordinatorSettings { allow_remote, quota, quotas, prune_minutes, stories_kept_days, .. } = settings;
    let config = CoordinatorConfig {
        allow_remote,
        protection,
        quota,
        quotas,
        prune_minutes,
        stories_kept_days,
        ..CoordinatorConfig::new(state.clone(), listen)
    };
    let serving = Serving::start(config).await?;
    say!("coordinator at {}, state in {}", serving.url(), state.display());
    // A coordinator that cannot write its journal any more ends, so that whoever looks after it starts it again.
    tokio::select! {
        () = super::worker::asked_to_stop() => {}
        () = serving.ending() => {}
    }
    serving.end().await
}

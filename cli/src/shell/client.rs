//! A line to a coordinator: a running one, or the state directory opened for the time of one command.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

use insula_coordinator::shell::{
    guard::Protection,
    server::{self, CoordinatorConfig, Running},
};
use insula_proto::v1::{
    artifacts_client::ArtifactsClient, corpora_client::CorporaClient, fleet_client::FleetClient,
    jobs_client::JobsClient, logs_client::LogsClient,
};
use insula_worker::shell::{Access, Channel, ConnectError, Trouble};
use tokio_util::sync::CancellationToken;

use crate::{
    args::{AccessArgs, ClientArgs},
    failure::Failure,
};

/// Name of the file in a state directory that says where its coordinator listens: the URL, and on further lines, where
/// the coordinator has them, the files of its certificates and its access token.
const ADDRESS_FILE: &str = "address";
/// Where a coordinator listens that was told nothing else.
pub const USUAL_ADDRESS: &str = "http://127.0.0.1:7461";
/// A free port on loopback.
pub const ANY_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
/// Largest message accepted; a job with 100,000 losses fits.
const MESSAGE_BYTES: usize = 64 << 20;

/// A connection, and the coordinator behind it where this process runs that itself.
pub struct Client {
    channel: Channel,
    /// For messages.
    pub address: String,
    serving: Option<Serving>,
}

/// Reads what the arguments name to be let in by a coordinator.
///
/// # Errors
/// When a file cannot be read, or holds something else.
pub fn access(args: &AccessArgs) -> Result<Access, Failure> {
    Access::read(args.ca.as_deref(), args.token_file.as_deref()).map_err(|e| Failure::Input(e.to_string()))
}

/// A coordinator in this process. Dropping it without [`Serving::stop`] leaves the shutdown to the process's end.
pub struct Serving {
    running: Running,
    protection: Protection,
    address_file: std::path::PathBuf,
}

impl Serving {
    /// Starts a coordinator over `config.state_dir` and leaves its address there for other commands.
    ///
    /// # Errors
    /// When the directory or the address cannot be used.
    #[expect(clippy::disallowed_methods, reason = "the address file is how commands on one machine find each other")]
    pub async fn start(config: CoordinatorConfig) -> Result<Self, Failure> {
        let (address_file, protection) = (config.state_dir.join(ADDRESS_FILE), config.protection.clone());
        let running =
            server::start(config, CancellationToken::new()).await.map_err(|e| Failure::Operation(e.to_string()))?;
        let serving = Self { running, protection, address_file };
        std::fs::write(&serving.address_file, serving.for_this_machine())
            .map_err(|e| Failure::operation(serving.address_file.display(), e))?;
        Ok(serving)
    }

    /// Where it listens, `http://HOST:PORT` or `https://HOST:PORT`.
    pub fn url(&self) -> String {
        self.url_of(self.running.addr)
    }

    fn url_of(&self, address: SocketAddr) -> String {
        format!("{}://{address}", if self.protection.is_tls() { "https" } else { "http" })
    }

    /// What commands on this machine need to find it and be let in: see [`ADDRESS_FILE`].
    fn for_this_machine(&self) -> String {
        let mut address = self.running.addr;
        if address.ip().is_unspecified() {
            address.set_ip(match address.ip() {
                IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        let mut text = self.url_of(address);
        let Protection { tls_cert, token_file, .. } = &self.protection;
        for (key, path) in [("ca", tls_cert), ("token_file", token_file)] {
            if let Some(path) = path.as_ref().and_then(|path| std::path::absolute(path).ok()) {
                text += &format!("\n{key}={}", path.display());
            }
        }
        text
    }

    /// Completes when it ends by itself, because its journal cannot be written; [`Serving::end`] then says why.
    pub async fn ending(&self) {
        self.running.ending().await;
    }

    /// Stops serving, politely.
    pub async fn stop(self) {
        if let Err(error) = self.end().await {
            tracing::warn!("the coordinator did not stop well: {error}");
        }
    }

    /// Stops serving, politely.
    ///
    /// # Errors
    /// When it had ended by itself, or could not end well.
    #[expect(clippy::disallowed_methods, reason = "takes back the address file")]
    pub async fn end(self) -> Result<(), Failure> {
        let _ = std::fs::remove_file(&self.address_file);
        self.running.stop().await.map_err(|error| Failure::operation("the coordinator ended", error))
    }
}

impl Client {
    /// Connects as the arguments say.
    ///
    /// # Errors
    /// When nothing answers or it does not let this command in, or the state directory cannot be opened.
    pub async fn connect(args: &ClientArgs) -> Result<Self, Failure> {
        if let Some(address) = &args.coordinator {
            return Self::to(address, &access(&args.access)?).await;
        }
        let state = &args.state.state;
        if let Some(client) = Self::serving_already(state, &args.access).await? {
            return Ok(client);
        }
        if !state.is_dir() {
            return Self::to(USUAL_ADDRESS, &access(&args.access)?).await;
        }
        Self::over(Serving::start(CoordinatorConfig::new(state.clone(), ANY_PORT)).await?).await
    }

    /// The coordinator that serves this state directory now, if one does.
    #[expect(clippy::disallowed_methods, reason = "the address file is how commands on one machine find each other")]
    async fn serving_already(state: &Path, args: &AccessArgs) -> Result<Option<Self>, Failure> {
        let Ok(text) = std::fs::read_to_string(state.join(ADDRESS_FILE)) else { return Ok(None) };
        let mut lines = text.lines();
        let address = lines.next().unwrap_or_default().trim();
        let mut args = args.clone();
        for (key, path) in lines.filter_map(|line| line.split_once('=')) {
            match key {
                "ca" => _ = args.ca.get_or_insert_with(|| path.into()),
                "token_file" => _ = args.token_file.get_or_insert_with(|| path.into()),
                _ => {}
            }
        }
        match Self::to(address, &access(&args)?).await {
            Ok(client) => Ok(Some(client)),
            Err(Failure::Unreachable { .. }) => Ok(None), // a file that a killed coordinator left
            Err(failure) => Err(failure),
        }
    }

    /// Connects to a coordinator of this process, which stops with [`Client::close`].
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn over(serving: Serving) -> Result<Self, Failure> {
        let mut client = Self::to(&serving.url(), &Access::default()).await?;
        client.serving = Some(serving);
        Ok(client)
    }

    /// Connects to a running coordinator.
    ///
    /// # Errors
    /// When no line can be made of address and access, or nothing answers.
    pub async fn to(address: &str, access: &Access) -> Result<Self, Failure> {
        let channel = access.connect(address).await.map_err(|error| match error {
            ConnectError::Trouble(Trouble::Away(why)) => Failure::Unreachable { address: address.to_owned(), why },
            ConnectError::Trouble(Trouble::Refused(why)) => Failure::Input(format!("no line to {address}: {why}")),
            ConnectError::Access(error) => Failure::Input(error.to_string()),
        })?;
        Ok(Self { channel, address: address.to_owned(), serving: None })
    }

    /// Jobs.
    pub fn jobs(&self) -> JobsClient<Channel> {
        JobsClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES)
    }

    /// The fleet.
    pub fn fleet(&self) -> FleetClient<Channel> {
        FleetClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES)
    }

    /// Corpora.
    pub fn corpora(&self) -> CorporaClient<Channel> {
        CorporaClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES)
    }

    /// Logs.
    pub fn logs(&self) -> LogsClient<Channel> {
        LogsClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES)
    }

    /// Artifacts.
    pub fn artifacts(&self) -> ArtifactsClient<Channel> {
        ArtifactsClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES)
    }

    /// A coordinator's refusal as this command's failure.
    pub fn failure(&self, status: &tonic::Status) -> Failure {
        Failure::from_status(&self.address, status)
    }

    /// Stops the coordinator this command opened, if it did.
    pub async fn close(self) {
        if let Some(serving) = self.serving {
            serving.stop().await;
        }
    }
}

//! A line to a coordinator: a running one, or the state directory opened for the time of one command.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use insula_coordinator::shell::server::{self, CoordinatorConfig, Running};
use insula_proto::v1::{
    artifacts_client::ArtifactsClient, fleet_client::FleetClient, jobs_client::JobsClient, logs_client::LogsClient,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use crate::{args::ClientArgs, failure::Failure};

/// Name of the file in a state directory that says where its coordinator listens.
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

/// A coordinator in this process. Dropping it without [`Serving::stop`] leaves the shutdown to the process's end.
pub struct Serving {
    running: Running,
    address_file: std::path::PathBuf,
}

impl Serving {
    /// Starts a coordinator over `config.state_dir` and leaves its address there for other commands.
    ///
    /// # Errors
    /// When the directory or the address cannot be used.
    #[expect(clippy::disallowed_methods, reason = "the address file is how commands on one machine find each other")]
    pub async fn start(config: CoordinatorConfig) -> Result<Self, Failure> {
        let address_file = config.state_dir.join(ADDRESS_FILE);
        let running =
            server::start(config, CancellationToken::new()).await.map_err(|e| Failure::Operation(e.to_string()))?;
        let serving = Self { running, address_file };
        std::fs::write(&serving.address_file, serving.url())
            .map_err(|e| Failure::operation(serving.address_file.display(), e))?;
        Ok(serving)
    }

    /// Where it listens, `http://HOST:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.running.addr)
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
    /// When nothing answers, or the state directory cannot be opened.
    pub async fn connect(args: &ClientArgs) -> Result<Self, Failure> {
        if let Some(address) = &args.coordinator {
            return Self::to(address).await;
        }
        let state = &args.state.state;
        if let Some(client) = Self::serving_already(state).await {
            return Ok(client);
        }
        if !state.is_dir() {
            return Self::to(USUAL_ADDRESS).await;
        }
        Self::over(Serving::start(CoordinatorConfig::new(state.clone(), ANY_PORT)).await?).await
    }

    /// The coordinator that serves this state directory now.
    #[expect(clippy::disallowed_methods, reason = "the address file is how commands on one machine find each other")]
    async fn serving_already(state: &Path) -> Option<Self> {
        let address = std::fs::read_to_string(state.join(ADDRESS_FILE)).ok()?;
        Self::to(address.trim()).await.ok()
    }

    /// Connects to a coordinator of this process, which stops with [`Client::close`].
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn over(serving: Serving) -> Result<Self, Failure> {
        let mut client = Self::to(&serving.url()).await?;
        client.serving = Some(serving);
        Ok(client)
    }

    /// Connects to a running coordinator.
    ///
    /// # Errors
    /// When the address does not parse or nothing answers.
    pub async fn to(address: &str) -> Result<Self, Failure> {
        let endpoint = Endpoint::from_shared(address.to_owned())
            .map_err(|_| Failure::Input(format!("coordinator address '{address}': expected http://HOST:PORT")))?;
        let endpoint = endpoint.connect_timeout(Duration::from_secs(5)).tcp_nodelay(true);
        let unreachable = |e: tonic::transport::Error| Failure::Unreachable {
            address: address.to_owned(),
            why: std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string),
        };
        let channel = endpoint.connect().await.map_err(unreachable)?;
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

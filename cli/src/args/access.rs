//! What can be typed for coordinators that other machines reach.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// What it takes to be let in by a coordinator on another machine.
#[derive(Debug, Clone, Default, Args)]
pub struct AccessArgs {
    /// The CA that an https:// coordinator's certificate must be signed by (PEM); by default those the system knows.
    #[arg(long, env = "INSULA_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// The file with the coordinator's access token; without it, the token in INSULA_TOKEN.
    #[arg(long, env = "INSULA_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// What `insula coordinator` does besides serving.
#[derive(Debug, Subcommand)]
pub enum CoordinatorCommand {
    /// Make what a coordinator needs to be reached by other machines: a certificate, an access token, and settings for
    /// both sides.
    InitTls(InitTlsArgs),
}

/// `insula coordinator init-tls`
#[derive(Debug, Args)]
pub struct InitTlsArgs {
    /// The folder to make it in; nothing in it is overwritten.
    pub dir: PathBuf,
    /// A name or address that other machines reach this one by; the first goes into the workers' settings.
    #[arg(long = "host", value_name = "NAME", required = true)]
    pub hosts: Vec<String>,
    /// The port to listen on.
    #[arg(long, default_value_t = 7461)]
    pub port: u16,
}

//! What can be typed about jobs and workers that are there.

use clap::Args;

use super::ClientArgs;

/// `insula resume`
#[derive(Debug, Args)]
pub struct ResumeArgs {
    /// The job.
    pub job: String,
    /// Pause again after this epoch; by default it goes on to its end.
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub epoch: u32,
    /// Which coordinator.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `insula pin`
#[derive(Debug, Args)]
pub struct PinArgs {
    /// The job.
    pub job: String,
    /// No longer.
    #[arg(long)]
    pub off: bool,
    /// Which coordinator.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `insula workers`
#[derive(Debug, Args)]
pub struct WorkersArgs {
    /// Go on every second until interrupted.
    #[arg(short, long)]
    pub follow: bool,
    /// Print JSON, a line each time.
    #[arg(long)]
    pub json: bool,
    /// Which coordinator.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `insula audit`
#[derive(Debug, Args)]
pub struct AuditArgs {
    /// The job.
    pub job: String,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// Which coordinator.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `insula prune`
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Only say what would be deleted.
    #[arg(long)]
    pub dry_run: bool,
    /// Which coordinator.
    #[command(flatten)]
    pub client: ClientArgs,
}

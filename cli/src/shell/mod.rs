//! The commands themselves: the rooms of the command line that touch the world.

mod audit;
mod bench;
mod client;
mod coordinator;
mod corpus;
mod doctor;
mod export;
mod follow;
mod init_tls;
mod jobs;
mod launch;
mod logging;
mod memory;
mod model;
mod out;
mod predict;
mod run;
mod settings;
mod steer;
mod study;
mod worker;

use crate::{
    args::{BenchCommand, Cli, Command, CoordinatorArgs, CoordinatorCommand, ReproduceCommand},
    failure::Failure,
};

/// Does what was typed.
///
/// # Errors
/// Why it could not be done.
pub fn run(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Command::Bench(BenchCommand::Engine(args)) => bench::engine::run(&args),
        Command::Bench(BenchCommand::Data(args)) => bench::data::run(&args),
        Command::Corpus(command) => corpus::run(command),
        Command::Model(command) => model::run(command),
        Command::Predict(args) => predict::run(&args),
        Command::Coordinator(CoordinatorArgs { command: Some(CoordinatorCommand::InitTls(args)), .. }) => {
            init_tls::run(&args)
        }
        command => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
            let runtime = runtime.map_err(|e| Failure::operation("start the async runtime", e))?;
            let result = runtime.block_on(asynchronous(command, cli.verbose));
            // A computing thread finishes its update by itself; there is nobody left to wait for it.
            runtime.shutdown_background();
            result
        }
    }
}

async fn asynchronous(command: Command, verbose: u8) -> Result<(), Failure> {
    match command {
        Command::Run(args) => run::run(args, verbose).await,
        Command::Coordinator(args) => coordinator::run(args, verbose).await,
        Command::Worker(args) => worker::run(args, verbose).await,
        Command::Submit(args) => jobs::submit(args).await,
        Command::Status(args) => jobs::status(args).await,
        Command::Watch(args) => jobs::watch(args).await,
        Command::Logs(args) => jobs::logs(args).await,
        Command::Cancel(args) => jobs::cancel(args).await,
        Command::Explain(args) => steer::explain(args).await,
        Command::Resume(args) => steer::resume(args).await,
        Command::Pin(args) => steer::pin(args).await,
        Command::Audit(args) => audit::run(args).await,
        Command::Workers(args) => jobs::workers(args).await,
        Command::Prune(args) => steer::prune(args).await,
        Command::Report(args) => jobs::report(args).await,
        Command::Doctor(args) => doctor::run(args).await,
        Command::Bench(BenchCommand::Fleet(args)) => bench::fleet::run(&args).await,
        Command::Sweep(args) => study::sweep(args, verbose).await,
        Command::Reproduce(ReproduceCommand::Instructerc(args)) => study::reproduce(args, verbose).await,
        Command::Serve(args) => predict::serve(args, verbose).await,
        Command::Bench(_) | Command::Corpus(_) | Command::Model(_) | Command::Predict(_) => {
            unreachable!("done without a runtime")
        }
    }
}

//! `kage-bench`: measures the whole system and compares it with its bare parts.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};
use kage_agent::adapters::AdapterConfig;
use kage_agent::process::Runner;
use kage_core::task::Labels;
use kage_tests::bench::adapter::BenchAdapter;
use kage_tests::bench::figure::{Figure, markdown};
use kage_tests::bench::machine::Machine;
use kage_tests::bench::{baseline, checkpoint, context, dispatch, idle, recovery, restore, stream};
use rustix::process::{Signal, set_parent_process_death_signal};
use tokio_util::sync::CancellationToken;

/// The allocator of the measured programs.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Benchmarks of Kage Bunshin.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Output format of the figures.
    #[arg(long, value_enum, default_value = "human", global = true)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A line per figure.
    Human,
    /// A JSON object per figure.
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Sessions per second, and the time from submit to accept.
    Dispatch,
    /// Output from programs to a watcher: MiB per second, and the time of a line.
    Stream,
    /// Bytes on the wire when sessions share a base context.
    Context,
    /// How long work is interrupted when an agent is lost, and how long a coordinator takes to be
    /// ready.
    Recovery,
    /// The cost of 1,000 idle agents: memory, processor time, and throughput of `dispatch`.
    Fleet,
    /// Checkpoints of a large worktree: the time until one survives a power cut, and until a
    /// coordinator has stored it.
    Checkpoint,
    /// Restores of a large worktree, including its scan and the safety checkpoint.
    Restore,
    /// Everything; also writes docs/benchmarks.md.
    All,
    /// This program as the measured coordinator.
    #[command(hide = true)]
    ServeCoordinator {
        #[arg(long)]
        data_dir: PathBuf,
        #[arg(long)]
        listen: SocketAddr,
    },
    /// This program as an agent with the benchmarks' adapters.
    #[command(hide = true)]
    ServeAgent {
        #[arg(long)]
        state: PathBuf,
        #[arg(long)]
        coordinator: String,
        #[arg(long)]
        token_file: PathBuf,
        #[arg(long)]
        name: String,
        #[arg(long)]
        adapters: PathBuf,
        #[arg(long)]
        slots: u32,
    },
    /// This program as many idle agents.
    #[command(hide = true)]
    ServeIdle {
        #[arg(long)]
        coordinator: String,
        #[arg(long)]
        token_file: PathBuf,
        #[arg(long)]
        first: u32,
        #[arg(long)]
        count: u32,
        #[arg(long)]
        ready: PathBuf,
    },
    /// This program as the bare transport.
    #[command(hide = true)]
    ServeBare { endpoint: PathBuf },
}

fn main() -> ExitCode {
    // The agent runs programs through this executable.
    kage_agent::process::warden_main_if_asked();
    let arguments = Arguments::parse();
    if matches!(
        arguments.command,
        Command::ServeCoordinator { .. }
            | Command::ServeAgent { .. }
            | Command::ServeIdle { .. }
            | Command::ServeBare { .. }
    ) {
        // When the benchmark is interrupted, the measured processes must end with it.
        let _unsupported = set_parent_process_death_signal(Some(Signal::KILL));
    }
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kage-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let format = arguments.format;
    match arguments.command {
        Command::Dispatch => print(&dispatch::run(dispatch::Size::default()).await?, format),
        Command::Stream => print(&stream::run(stream::Size::default()).await?, format),
        Command::Context => print(&context::run(context::Size::default()).await?, format),
        Command::Recovery => print(&recovery::run(recovery::Size::default()).await?, format),
        Command::Fleet => print(&idle::run(idle::Size::default()).await?, format),
        Command::Checkpoint => print(&checkpoint::run(checkpoint::Size::default()).await?, format),
        Command::Restore => print(&restore::run(restore::Size::default()).await?, format),
        Command::All => all(format).await,
        Command::ServeCoordinator { data_dir, listen } => {
            let config = kage_coordinator::Config {
                listen,
                ..kage_coordinator::Config::new(data_dir)
            };
            // Killed rather than stopped: nobody keeps the measured data.
            let ports = kage_coordinator::Ports::system();
            Ok(kage_coordinator::run(config, ports, CancellationToken::new()).await?)
        }
        Command::ServeAgent {
            state,
            coordinator,
            token_file,
            name,
            adapters,
            slots,
        } => {
            let token = std::fs::read_to_string(&token_file).context("the token file can be read")?;
            let config = kage_agent::Config {
                state_dir: state,
                coordinator_url: coordinator,
                credentials: kage_proto::client::Credentials::bearer(&token),
                name,
                slots,
                labels: Labels::default(),
                limits: kage_agent::Limits::default(),
            };
            serve_agent(config, &adapters).await
        }
        Command::ServeIdle {
            coordinator,
            token_file,
            first,
            count,
            ready,
        } => {
            let token = std::fs::read_to_string(&token_file).context("the token file can be read")?;
            idle::serve(&coordinator, token.trim(), first..first + count, &ready).await
        }
        Command::ServeBare { endpoint } => baseline::serve(&endpoint).await,
    }
}

/// Serves as an agent with the benchmarks' adapters and those of a folder of manifests.
async fn serve_agent(config: kage_agent::Config, adapters: &Path) -> anyhow::Result<()> {
    let runner = Runner::this_executable();
    let mut loaded = AdapterConfig::new(std::env::vars_os().collect(), runner.clone());
    loaded.manifest_dirs = vec![adapters.to_owned()];
    let mut registry = kage_agent::adapters::load(loaded).await?;
    registry.extend(BenchAdapter::registry()?);
    let mut ports = kage_agent::Ports::system(registry);
    ports.runner = runner;
    Ok(kage_agent::run(config, ports, CancellationToken::new()).await?)
}

async fn all(format: Format) -> anyhow::Result<()> {
    let mut figures = dispatch::run(dispatch::Size::default()).await?;
    print(&figures, format)?;
    let more = stream::run(stream::Size::default()).await?;
    print(&more, format)?;
    figures.extend(more);
    let more = context::run(context::Size::default()).await?;
    print(&more, format)?;
    figures.extend(more);
    let more = recovery::run(recovery::Size::default()).await?;
    print(&more, format)?;
    figures.extend(more);
    let more = idle::run(idle::Size::default()).await?;
    print(&more, format)?;
    figures.extend(more);
    let more = checkpoint::run(checkpoint::Size::default()).await?;
    print(&more, format)?;
    figures.extend(more);
    let more = restore::run(restore::Size::default()).await?;
    print(&more, format)?;
    figures.extend(more);
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/benchmarks.md"));
    std::fs::create_dir_all(path.parent().context("docs is a directory")?)?;
    let machine = Machine::this(&std::env::temp_dir());
    std::fs::write(path, document(&machine, &figures)).context("docs/benchmarks.md can be written")
}

fn document(machine: &Machine, figures: &[Figure]) -> String {
    format!(
        "# Benchmarks\n\n\
         Written by `cargo run --release -p kage-tests --bin kage-bench -- all`. Every figure stands beside a\n\
         baseline of the same run, or a goal where it says so; coordinator, agents and the client are processes\n\
         of one machine and share it.\n\n\
         Machine: {machine}.\n\n{}",
        markdown(figures)
    )
}

#[expect(clippy::print_stdout, reason = "figures are what this program prints")]
fn print(figures: &[Figure], format: Format) -> anyhow::Result<()> {
    for figure in figures {
        match format {
            Format::Human => println!("{figure}"),
            Format::Json => println!("{}", serde_json::to_string(figure)?),
        }
    }
    Ok(())
}

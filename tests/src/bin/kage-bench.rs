//! `kage-bench`: measures the whole system and compares it with its bare parts.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};
use kage_agent::adapters::AdapterConfig;
use kage_agent::process::{AgentEnvironment, Runner};
use kage_core::task::Labels;
use kage_tests::bench::adapter::BenchAdapter;
use kage_tests::bench::figure::{Figure, markdown};
use kage_tests::bench::machine::Machine;
use kage_tests::bench::medium::Medium;
use kage_tests::bench::{
    adapter_overhead, baseline, billing, checkpoint, contain, context, context_split, dispatch, gate, idle, neighbour,
    output, proxy, recovery, restore, stream, task, tools, workspace,
};
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
    /// File systems to measure on, each in turn. All but the first need root.
    #[arg(long, value_enum, default_value = "here", value_delimiter = ',', global = true)]
    medium: Vec<Medium>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A line per figure.
    Human,
    /// A JSON object per figure.
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand, ValueEnum)]
enum Bench {
    /// Sessions per second, and the time from submit to accept.
    Dispatch,
    /// The time until a call of a model may be made while 1,000 others wait.
    Gate,
    /// Output from programs to a watcher: MiB per second, and the time of a line.
    Stream,
    /// Bytes on the wire when sessions share a base context.
    Context,
    /// Splitting contexts into a base and deltas: time and bytes.
    ContextSplit,
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
    /// The whole path of a task on a large repository, from `kage run` to its end.
    Task,
    /// A worktree for a session of a large repository.
    Workspace,
    /// A checkout of another program beside a busy agent.
    CheckoutNeighbour,
    /// What a box adds to the start of a program, and to a build.
    Contain,
    /// What an agent adds to a run of the real `claude`, beside its workspace.
    AdapterOverhead,
    /// A program that prints 1 GiB: the agent's memory, and MiB per second.
    Output,
    /// Reading, editing and searching in a large tree by the tools of API sessions.
    Tools,
    /// What sessions with one base are billed for, compared with sessions apart and without a cache.
    Billing,
    /// What the gateway of a session adds to each token of an answer, and how much passes it.
    Proxy,
}

impl Bench {
    async fn measure(self) -> anyhow::Result<Vec<Figure>> {
        match self {
            Self::Dispatch => dispatch::run(dispatch::Size::default()).await,
            Self::Gate => gate::run(gate::Size::default()).await,
            Self::Stream => stream::run(stream::Size::default()).await,
            Self::Context => context::run(context::Size::default()).await,
            Self::ContextSplit => context_split::run(context_split::Size::default()),
            Self::Recovery => recovery::run(recovery::Size::default()).await,
            Self::Fleet => idle::run(idle::Size::default()).await,
            Self::Checkpoint => checkpoint::run(checkpoint::Size::default()).await,
            Self::Restore => restore::run(restore::Size::default()).await,
            Self::Task => task::run(task::Size::default()).await,
            Self::Workspace => workspace::run(workspace::Size::default()).await,
            Self::CheckoutNeighbour => neighbour::run(neighbour::Size::default()).await,
            Self::Contain => contain::run(contain::Size::default()).await,
            Self::AdapterOverhead => adapter_overhead::run(adapter_overhead::Size::default()).await,
            Self::Output => output::run(output::Size::default()).await,
            Self::Tools => tools::run(tools::Size::default()).await,
            Self::Billing => billing::run(billing::Size::default()).await,
            Self::Proxy => proxy::run(proxy::Size::default()).await,
        }
    }

    /// Where `all` measures it: what depends on the file system on every one that this machine has.
    fn media(self) -> Vec<Medium> {
        match self {
            Self::Task | Self::Workspace | Self::CheckoutNeighbour => Medium::available(),
            Self::Dispatch
            | Self::Gate
            | Self::Stream
            | Self::Context
            | Self::ContextSplit
            | Self::Recovery
            | Self::Fleet
            | Self::Checkpoint
            | Self::Restore
            | Self::Contain
            | Self::AdapterOverhead
            | Self::Output
            | Self::Tools
            | Self::Billing
            | Self::Proxy => vec![Medium::Here],
        }
    }

    /// Measures on a medium. On one that is made for it, a process of its own measures, whose
    /// temporary files are there.
    async fn measure_on(self, medium: Medium) -> anyhow::Result<Vec<Figure>> {
        if medium == Medium::Here {
            let here = Machine::this(&std::env::temp_dir()).file_system;
            let mut figures = self.measure().await?;
            figures.iter_mut().for_each(|figure| figure.medium.clone_from(&here));
            return Ok(figures);
        }
        let name = self.to_possible_value().context("every bench has a name")?;
        let mounted = medium.mount()?;
        let lines = mounted.run_this_program(&[name.get_name(), "--format", "json"])?;
        let figures = lines.lines().map(|line| {
            let mut figure: Figure = serde_json::from_str(line)?;
            figure.medium = medium.to_string();
            Ok(figure)
        });
        figures.collect()
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Bench(Bench),
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
        Command::Bench(bench) => measure(bench, &arguments.medium, format).await.map(drop),
        Command::All => all(format).await,
        Command::ServeCoordinator { data_dir, listen } => {
            let config = kage_coordinator::Config {
                listen,
                token_agents: kage_core::access::Capabilities::ALL,
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
                caches: kage_core::caches::CacheSettings::default(),
                contain: kage_agent::contain::ContainSettings {
                    // As the settings of a harness's other agents have it: where sessions say how far they are.
                    write: kage_tests::cluster::outside_beside(&std::env::temp_dir()),
                    ..Default::default()
                },
                contained: kage_core::contain::Containment::NOTHING,
                network: Default::default(),
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
    let mut loaded = AdapterConfig::new(AgentEnvironment::of_this_process(), runner.clone());
    loaded.manifest_dirs = vec![adapters.to_owned()];
    let mut registry = kage_agent::adapters::load(loaded).await?;
    registry.extend(BenchAdapter::registry()?);
    let mut ports = kage_agent::Ports::system(registry);
    ports.runner = runner;
    Ok(kage_agent::run(config, ports, CancellationToken::new()).await?)
}

/// Measures on each medium, and prints what it finds as it finds it.
async fn measure(bench: Bench, media: &[Medium], format: Format) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for medium in media {
        let more = bench.measure_on(*medium).await?;
        print(&more, format)?;
        figures.extend(more);
    }
    Ok(figures)
}

async fn all(format: Format) -> anyhow::Result<()> {
    let mut figures = Vec::new();
    for bench in Bench::value_variants() {
        figures.extend(measure(*bench, &bench.media(), format).await?);
    }
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

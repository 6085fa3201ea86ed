//! `kage-coordinator`: parses, waits for a signal, sets the exit code. Everything else is in the library.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser};
use kage_coordinator::config::prices_with;
use kage_coordinator::{Config, Origin, Ports, RunError, Timings, run};
use kage_core::deadline::{Patience, Slack};
use kage_core::price::PriceTable;
use kage_core::retention::Limits;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Holds the state of every task and places the work.
#[derive(Debug, Parser)]
#[command(name = "kage-coordinator", version)]
struct Arguments {
    /// Where everything is kept.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Take what is there and its database as belonging together, also when they do not say so.
    #[arg(long)]
    adopt_data: bool,
    /// Where to listen. On any address but loopback it speaks TLS.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7443")]
    listen: SocketAddr,
    /// Speak TLS on loopback too.
    #[arg(long)]
    tls: bool,
    /// A name or address under which others reach it; may be repeated.
    #[arg(long, value_name = "NAME")]
    public_name: Vec<String>,
    /// Let pages of this origin (https://HOST[:PORT]) call it from a browser; may be repeated.
    #[arg(long, value_name = "ORIGIN")]
    web_origin: Vec<Origin>,
    /// Forget tasks that ended so many days ago [default: 90].
    #[arg(long, value_name = "DAYS")]
    keep_days: Option<u32>,
    /// Forget the oldest tasks that ended when all of them together have more output and blobs
    /// than so many GiB [default: 50].
    #[arg(long, value_name = "GIB")]
    keep_gib: Option<u32>,
    /// Prices of model tokens that replace the built-in ones of the models that it names.
    #[arg(long, value_name = "FILE")]
    prices: Option<PathBuf>,
    #[command(flatten)]
    timings: Waits,
}

/// How long it waits for what: longer over bad networks, shorter where others should take
/// over sooner. All are seconds, with a fraction if need be.
#[derive(Debug, Clone, Copy, Args)]
struct Waits {
    /// How often agents say that they are there [default: 5].
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    heartbeat: Option<Duration>,
    /// How long an agent may act without hearing from the coordinator [default: 60].
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    lease_ttl: Option<Duration>,
    /// After so long without a word from an agent its attempts end [default: 20].
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    lost_after: Option<Duration>,
    /// After so long without a connection an agent's attempts end [default: 5].
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    grace: Option<Duration>,
    /// After so long without a connection an agent kills what it froze [default: 600].
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    max_detached: Option<Duration>,
    /// What an attempt gets besides its task's time limit, at least, before it is ended whatever
    /// its agent does [default: 60].
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    limit_slack: Option<Duration>,
    /// After so long without an answer to an order to stop, an attempt ends [default: 60].
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    stop_answer: Option<Duration>,
}

impl Waits {
    fn timings(self) -> Timings {
        let default = Timings::default();
        Timings {
            heartbeat: self.heartbeat.unwrap_or(default.heartbeat),
            lease_ttl: self.lease_ttl.unwrap_or(default.lease_ttl),
            lost_after: self.lost_after.unwrap_or(default.lost_after),
            grace: self.grace.unwrap_or(default.grace),
            max_detached: self.max_detached.unwrap_or(default.max_detached),
            ..default
        }
    }

    fn patience(self) -> Patience {
        let default = Patience::default();
        Patience {
            slack: Slack {
                least: self.limit_slack.unwrap_or(default.slack.least),
                ..default.slack
            },
            stop_answer: self.stop_answer.unwrap_or(default.stop_answer),
        }
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| "is no number of seconds".to_owned())?;
    Duration::try_from_secs_f64(number).map_err(|error| error.to_string())
}

/// Many threads make and drop small values all the time; the system's allocator is slower at that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What was typed cannot be done.
const USAGE: u8 = 2;
/// What sysexits.h calls an internal error.
const INTERNAL: u8 = 70;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(EnvFilter::try_from_env("KAGE_LOG").unwrap_or_else(|_| EnvFilter::new("info")))
        .init();
    let prices = match arguments.prices.as_deref().map(prices_with) {
        Some(Err(error)) => {
            eprintln!("kage-coordinator: {:#}", anyhow::Error::from(error));
            return ExitCode::from(USAGE);
        }
        Some(Ok(prices)) => prices,
        None => PriceTable::builtin().clone(),
    };
    let config = Config {
        prices,
        listen: arguments.listen,
        tls: arguments.tls,
        public_names: arguments.public_name,
        web_origins: arguments.web_origin,
        retention: Limits::of(arguments.keep_days, arguments.keep_gib),
        timings: arguments.timings.timings(),
        patience: arguments.timings.patience(),
        adopt_data: arguments.adopt_data,
        ..Config::new(arguments.data_dir)
    };
    match serve(config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kage-coordinator: {error:#}");
            let usage = error.downcast_ref().is_some_and(RunError::is_usage);
            ExitCode::from(if usage { USAGE } else { INTERNAL })
        }
    }
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let shutdown = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let running = run(config, Ports::system(), shutdown.clone());
    tokio::pin!(running);
    loop {
        tokio::select! {
            result = &mut running => return Ok(result?),
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if shutdown.is_cancelled() {
            anyhow::bail!("stopped by a second signal");
        }
        shutdown.cancel();
    }
}

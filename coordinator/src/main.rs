//! `kage-coordinator`: parses, waits for a signal, sets the exit code. Everything else is in the library.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use kage_coordinator::{Config, Origin, Ports, run};
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
    /// Where to listen. On any address but loopback it speaks TLS.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7700")]
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
}

/// Many threads make and drop small values all the time; the system's allocator is slower at that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What sysexits.h calls an internal error.
const INTERNAL: u8 = 70;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(EnvFilter::try_from_env("KAGE_LOG").unwrap_or_else(|_| EnvFilter::new("info")))
        .init();
    let config = Config {
        listen: arguments.listen,
        tls: arguments.tls,
        public_names: arguments.public_name,
        web_origins: arguments.web_origin,
        ..Config::new(arguments.data_dir)
    };
    match serve(config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kage-coordinator: {error:#}");
            ExitCode::from(INTERNAL)
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

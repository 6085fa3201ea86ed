//! The command people type. Everything it does is in the library.

use std::process::ExitCode;

use kage::args;
use kage::output::{Log, Output};
use kage::{command, exit};
use tracing_subscriber::EnvFilter;

/// Many threads make and drop small values all the time; the system's allocator is slower at that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // An agent starts this program again as the warden of a session's program.
    kage_agent::process::warden_main_if_asked();
    let cli = match args::parse(std::env::args_os().collect()) {
        Ok(cli) => cli,
        Err(error) => return exit::mistyped(&error, &Output::asked_for(std::env::args())).into(),
    };
    let out = Output::new(cli.global.format);
    let level = match cli.global.verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_env("KAGE_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(|| Log)
        .init();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return exit::report(&error.into(), &out).into(),
    };
    let exit = runtime
        .block_on(command::dispatch(cli))
        .unwrap_or_else(|error| exit::report(&error, &out));
    // An unanswered question still reads standard input; it is not awaited.
    runtime.shutdown_background();
    exit.into()
}

//! `kage up`: a coordinator and an agent in one process.

use crate::args::Up;
use crate::daemon;
use crate::exit::Exit;
use crate::invocation::Invocation;

pub(super) async fn run(invocation: Invocation, args: Up) -> anyhow::Result<Exit> {
    daemon::up(&invocation, args).await?;
    Ok(Exit::Done)
}

//! `kage coordinator`: runs one until it is told to end.

use crate::args::Coordinator;
use crate::daemon;
use crate::exit::Exit;
use crate::invocation::Invocation;

pub(super) async fn run(invocation: Invocation, args: Coordinator) -> anyhow::Result<Exit> {
    let data_dir = args.data_dir.unwrap_or_else(|| invocation.state.coordinator());
    daemon::coordinator(data_dir, args.listen).await?;
    Ok(Exit::Done)
}

//! `kage coordinator`: runs one until it is told to end.

use super::Session;
use crate::args::Coordinator;
use crate::daemon;
use crate::exit::Exit;

pub(super) async fn run(session: Session, args: Coordinator) -> anyhow::Result<Exit> {
    let data_dir = args.data_dir.unwrap_or_else(|| session.state.coordinator());
    daemon::coordinator(data_dir, args.listen).await?;
    Ok(Exit::Done)
}

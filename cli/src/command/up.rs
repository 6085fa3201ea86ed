//! `kage up`: a coordinator and an agent in one process, for one machine.

use super::Session;
use crate::args::Up;
use crate::daemon;
use crate::exit::Exit;

pub(super) async fn run(session: Session, args: Up) -> anyhow::Result<Exit> {
    daemon::up(&session, args.slots, args.background).await?;
    Ok(Exit::Done)
}

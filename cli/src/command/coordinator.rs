//! `kage coordinator`: runs one until it is told to end.

use kage_core::retention::Limits;

use crate::args::Coordinator;
use crate::daemon;
use crate::exit::Exit;
use crate::invocation::Invocation;

pub(super) async fn run(invocation: Invocation, args: Coordinator) -> anyhow::Result<Exit> {
    let data_dir = args.data_dir.unwrap_or_else(|| invocation.state.coordinator());
    let config = kage_coordinator::Config {
        listen: args.listen,
        tls: args.tls,
        public_names: args.public_name,
        web_origins: args.web_origin,
        retention: Limits::of(args.keep_days, args.keep_gib),
        ..kage_coordinator::Config::new(data_dir)
    };
    daemon::coordinator(config).await?;
    Ok(Exit::Done)
}

//! `kage coordinator`: runs one until it is told to end.

use kage_coordinator::config::prices_with;
use kage_core::retention::Limits;

use crate::args::Coordinator;
use crate::daemon;
use crate::exit::Exit;
use crate::invocation::Invocation;
use crate::settings;

pub(super) async fn run(invocation: Invocation, args: Coordinator) -> anyhow::Result<Exit> {
    let data_dir = args.data_dir.unwrap_or_else(|| invocation.state.coordinator());
    let config = kage_coordinator::Config {
        adopt_data: args.adopt_data,
        listen: args.listen,
        tls: args.tls,
        public_names: args.public_name,
        web_origins: args.web_origin,
        retention: Limits::of(args.keep_days, args.keep_gib),
        prices: match args.prices {
            Some(file) => prices_with(&file)?,
            None => settings::prices()?,
        },
        ..kage_coordinator::Config::new(data_dir)
    };
    daemon::coordinator(config).await?;
    Ok(Exit::Done)
}

//! `kage coordinator`: runs a coordinator until a signal ends it. Its subcommands are in `backup`.

use std::net::SocketAddr;

use kage_coordinator::{Config, Timings};
use kage_core::access::Capabilities;
use kage_core::deadline::{Patience, Slack};
use kage_core::retention::Limits;

use super::backup;
use crate::args::{Coordinator, CoordinatorOptions};
use crate::config_file;
use crate::daemon;
use crate::exit::Exit;
use crate::invocation::Invocation;
use crate::settings;

/// Loopback: other addresses need an explicit flag.
const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 7443);

pub(super) async fn run(invocation: Invocation, args: Coordinator) -> anyhow::Result<Exit> {
    if let Some(command) = args.command {
        return backup::run(&invocation, command).await;
    }
    let options = args.options.or(config_file::read(args.config.as_deref())?);
    let config = Config {
        adopt_data: args.adopt_data,
        accept_older: args.accept_older,
        ..config(&invocation, options)?
    };
    daemon::coordinator(config).await?;
    Ok(Exit::Done)
}

fn config(invocation: &Invocation, options: CoordinatorOptions) -> anyhow::Result<Config> {
    let timings = timings(&options);
    let patience = patience(&options);
    let data_dir = options.data_dir.unwrap_or_else(|| invocation.state.coordinator());
    Ok(Config {
        listen: options.listen.unwrap_or(LISTEN),
        tls: options.tls.unwrap_or(false),
        public_names: options.public_name,
        web_origins: options.web_origin,
        retention: Limits::of(options.keep_days, options.keep_gib),
        prices: settings::prices(options.prices.as_deref())?,
        timings,
        patience,
        callers: options.limits.limits(),
        budgets: options.budgets.rules(),
        token_agents: options.token_agents.unwrap_or(Capabilities::RUN),
        ..Config::new(data_dir)
    })
}

fn timings(options: &CoordinatorOptions) -> Timings {
    let usual = Timings::default();
    Timings {
        heartbeat: options.heartbeat.unwrap_or(usual.heartbeat),
        lease_ttl: options.lease_ttl.unwrap_or(usual.lease_ttl),
        lost_after: options.lost_after.unwrap_or(usual.lost_after),
        grace: options.grace.unwrap_or(usual.grace),
        max_detached: options.max_detached.unwrap_or(usual.max_detached),
        ..usual
    }
}

fn patience(options: &CoordinatorOptions) -> Patience {
    let usual = Patience::default();
    Patience {
        slack: Slack {
            least: options.limit_slack.unwrap_or(usual.slack.least),
            ..usual.slack
        },
        stop_answer: options.stop_answer.unwrap_or(usual.stop_answer),
    }
}

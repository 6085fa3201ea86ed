//! Metrics: every name and label, described once. `/metrics` renders them.

use std::sync::OnceLock;

use kage_core::attempt::EndReason;
use kage_core::job::JobType;
use kage_core::session::SessionStateKind;
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

const TASKS_CREATED: &str = "kage_tasks_created_total";
const ATTEMPTS_STARTED: &str = "kage_attempts_started_total";
const ATTEMPTS_ENDED: &str = "kage_attempts_ended_total";
const EVENTS: &str = "kage_events_total";
const OUTPUT_BYTES: &str = "kage_output_bytes_total";
const OFFERS_REFUSED: &str = "kage_offers_refused_total";
const AGENTS_CONNECTED: &str = "kage_agents_connected";
const JOBS_WAITING: &str = "kage_jobs_waiting";
const JOBS_LEASED: &str = "kage_jobs_leased";
const SESSIONS: &str = "kage_sessions";
const SESSIONS_ENDED: &str = "kage_sessions_ended_total";
const CONNECTIONS_CUT: &str = "kage_connections_cut_total";
const COMMIT_COMMANDS: &str = "kage_store_commit_commands";
const FETCHED_LATE: &str = "kage_store_rows_fetched_late_total";

const KIND: &str = "kind";
const REASON: &str = "reason";
const STATE: &str = "state";

/// Upper bounds of the buckets for sizes of commits.
const COMMIT_SIZES: [f64; 8] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];

/// One recorder per process: the `metrics` facade has no other.
static RECORDER: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

/// Installs the recorder. `None` when the program that embeds this library has its own.
pub(crate) fn install() -> Option<PrometheusHandle> {
    RECORDER
        .get_or_init(|| {
            let sizes = Matcher::Full(COMMIT_COMMANDS.to_owned());
            let builder = PrometheusBuilder::new().set_buckets_for_metric(sizes, &COMMIT_SIZES);
            let recorder = builder.expect("there are buckets").build_recorder();
            let handle = recorder.handle();
            metrics::set_global_recorder(recorder).ok()?;
            describe_counter!(TASKS_CREATED, "Tasks that were stored.");
            describe_counter!(ATTEMPTS_STARTED, "Attempts that were started, by kind of job.");
            describe_counter!(ATTEMPTS_ENDED, "Attempts that lost their authority, by reason.");
            describe_counter!(EVENTS, "State events that were stored.");
            describe_counter!(OUTPUT_BYTES, "Bytes of output that agents delivered.");
            describe_counter!(OFFERS_REFUSED, "Offers that agents refused.");
            describe_gauge!(AGENTS_CONNECTED, "Agents that are connected now.");
            describe_gauge!(JOBS_WAITING, "Jobs that wait for an agent now.");
            describe_gauge!(JOBS_LEASED, "Jobs that agents work on now.");
            describe_gauge!(SESSIONS, "Sessions that have not ended, by state.");
            describe_counter!(SESSIONS_ENDED, "Sessions that ended, by the state they came to.");
            describe_counter!(CONNECTIONS_CUT, "Connections that were ended or not taken, by reason.");
            describe_counter!(
                FETCHED_LATE,
                "Rows that a command read without naming them before: each costs a trip to the store."
            );
            describe_histogram!(COMMIT_COMMANDS, "Commands that one commit of the store made durable.");
            Some(handle)
        })
        .clone()
}

pub(crate) fn task_created() {
    counter!(TASKS_CREATED).increment(1);
}

pub(crate) fn attempt_started(job: JobType) {
    counter!(ATTEMPTS_STARTED, KIND => job.as_str()).increment(1);
}

pub(crate) fn attempt_ended(reason: EndReason) {
    counter!(ATTEMPTS_ENDED, REASON => reason.as_str()).increment(1);
}

pub(crate) fn events(count: usize) {
    counter!(EVENTS).increment(count as u64);
}

pub(crate) fn output_bytes(count: usize) {
    counter!(OUTPUT_BYTES).increment(count as u64);
}

pub(crate) fn offer_refused() {
    counter!(OFFERS_REFUSED).increment(1);
}

pub(crate) fn session_ended(state: SessionStateKind) {
    counter!(SESSIONS_ENDED, STATE => state.as_str()).increment(1);
}

/// Why a connection is ended, or refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    NoRequest,
    /// No call was open for long.
    Idle,
    /// Its address has too many strangers.
    Address,
    Strangers,
    /// Known callers hold every place.
    Full,
}

impl Cut {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::NoRequest => "no_request",
            Self::Idle => "idle",
            Self::Address => "address",
            Self::Strangers => "strangers",
            Self::Full => "full",
        }
    }
}

pub(crate) fn connection_cut(reason: Cut) {
    counter!(CONNECTIONS_CUT, REASON => reason.as_str()).increment(1);
}

/// Counts a commit of this many commands.
#[expect(clippy::cast_precision_loss, reason = "a commit has few commands")]
pub(crate) fn committed(commands: usize) {
    histogram!(COMMIT_COMMANDS).record(commands as f64);
}

pub(crate) fn fetched_late(rows: u32) {
    if rows > 0 {
        counter!(FETCHED_LATE).increment(rows.into());
    }
}

/// Gauges that are computed for each scrape.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Levels {
    pub(crate) agents_connected: usize,
    /// Sessions whose turn has not come: they wait for other sessions and not for an agent.
    pub(crate) later: u64,
    /// Of sessions that have not ended, by their present state.
    pub(crate) queued: u64,
    pub(crate) running: u64,
    pub(crate) claimed: u64,
    pub(crate) verifying: u64,
    /// Checks of bases, for which no session waits.
    pub(crate) bases_waiting: u64,
    pub(crate) bases_checked: u64,
}

#[expect(
    clippy::cast_precision_loss,
    reason = "gauges are floats; counts stay far below 2^52"
)]
pub(crate) fn levels(levels: Levels) {
    gauge!(AGENTS_CONNECTED).set(levels.agents_connected as f64);
    gauge!(JOBS_WAITING).set((levels.queued + levels.claimed + levels.bases_waiting) as f64);
    gauge!(JOBS_LEASED).set((levels.running + levels.verifying + levels.bases_checked) as f64);
    let states = [
        (SessionStateKind::Queued, levels.later + levels.queued),
        (SessionStateKind::Running, levels.running),
        (SessionStateKind::Claimed, levels.claimed),
        (SessionStateKind::Verifying, levels.verifying),
    ];
    for (state, count) in states {
        gauge!(SESSIONS, STATE => state.as_str()).set(count as f64);
    }
}

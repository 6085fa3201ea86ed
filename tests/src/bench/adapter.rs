//! Adapters for the benchmarks. They do as little as possible, behind the same port as every other
//! adapter: events, output, leases and fences are the real agent's.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hdrhistogram::Histogram;
use kage_agent::Registry;
use kage_agent::adapters::port::{Adapter, AdapterEnd, Reporter, ReporterClosed, SessionInput};
use kage_agent::calls::Calls;
use kage_core::call::{Ask, OutputBounds, RateTold, USUAL_OUTPUT};
use kage_core::event::{EventBody, OutputStream};
use kage_core::failure::{Failure, FailureKind};
use kage_core::fleet::AdapterInfo;
use kage_core::usage::Usage;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

/// The work of a benchmark adapter. The session's model sets the amount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BenchAdapter {
    /// Reports when it was started and its input, and ends.
    Nothing,
    /// Prints seeded noise. Model: `SEED,BYTES`.
    Noise,
    /// Prints lines with the time of printing. Model: `LINES,MICROSECONDS` between them.
    Lines,
    /// Asks for calls of a model and tells the 99th percentile of the time until they were granted, in nanoseconds.
    /// Model: `CALLS,ACCOUNT`; with no calls it has the account held, and waits.
    Calls,
}

impl BenchAdapter {
    /// The adapter's name in tasks.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nothing => "bench-nothing",
            Self::Noise => "bench-noise",
            Self::Lines => "bench-lines",
            Self::Calls => "bench-calls",
        }
    }

    pub fn registry() -> anyhow::Result<Registry> {
        [Self::Nothing, Self::Noise, Self::Lines, Self::Calls]
            .into_iter()
            .map(|adapter| Ok((adapter.name().parse()?, Arc::new(adapter) as Arc<dyn Adapter>)))
            .collect()
    }

    async fn work(self, input: SessionInput, reporter: &Reporter) -> Result<(), WorkError> {
        match self {
            Self::Nothing => {
                let shared = hex::encode(Sha256::digest(input.prompt.shared.as_bytes()));
                let summary = format!("{} {shared}", now_nanos());
                reporter.event(EventBody::Activity(summary)).await?;
                // As a program that tells of no tokens.
                let used = EventBody::UsageRecorded {
                    model: String::new(),
                    usage: Usage::UNKNOWN,
                    reported: None,
                    metered: false,
                    tools: None,
                    call: None,
                };
                reporter.event(used).await?;
            }
            Self::Noise => {
                let (seed, mut left) = two_numbers(input.model.as_deref())?;
                let mut noise = Noise::new(seed);
                while left > 0 {
                    let size = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
                    reporter.output(OutputStream::Stdout, noise.take(size)).await?;
                    left -= size as u64;
                }
            }
            Self::Lines => {
                let (lines, pause) = two_numbers(input.model.as_deref())?;
                let mut ticks = tokio::time::interval(Duration::from_micros(pause.max(1)));
                for _ in 0..lines {
                    ticks.tick().await;
                    let line = format!("{} {PADDING}\n", now_nanos());
                    reporter.output(OutputStream::Stdout, line.into()).await?;
                }
            }
            Self::Calls => {
                let (calls, account) = two_numbers(input.model.as_deref())?;
                let account = account.to_string();
                if calls == 0 {
                    return wait_for_call(&input.calls, reporter, &account).await;
                }
                let p99 = timed_calls(&input.calls, calls, &account).await?;
                reporter.event(EventBody::Activity(p99.to_string())).await?;
            }
        }
        Ok(())
    }
}

/// A call of an account that is named like this.
fn ask(account: &str) -> Result<Ask, WorkError> {
    Ok(Ask {
        account: format!("bench/{account}").parse().map_err(|_| WorkError::Model)?,
        model: "bench".to_owned(),
        free: false,
        prefix: None,
        input: 1_000,
        output: OutputBounds::of(USUAL_OUTPUT, false),
    })
}

/// Has an account held for as long as the bench takes, and waits with all others.
async fn wait_for_call(calls: &Calls, reporter: &Reporter, account: &str) -> Result<(), WorkError> {
    loop {
        let (tell, mut waits) = tokio::sync::watch::channel(false);
        let asking = calls.reserve(ask(account)?, |_| {
            tell.send_replace(true);
        });
        tokio::pin!(asking);
        let granted = loop {
            tokio::select! {
                granted = &mut asking => break granted.map_err(|_| WorkError::Model)?,
                Ok(()) = waits.changed() => reporter.event(EventBody::Activity(WAITS.to_owned())).await?,
            }
        };
        granted.release(&RateTold {
            // Nobody waits much longer than this; whoever goes then has it held again.
            retry_after: Some(Duration::from_secs(50)),
            ..RateTold::default()
        });
    }
}

/// How long 99 of 100 questions took at most, in nanoseconds.
async fn timed_calls(calls: &Calls, count: u64, account: &str) -> Result<u64, WorkError> {
    let mut times = Histogram::<u64>::new(3).map_err(|_| WorkError::Model)?;
    for _ in 0..count {
        let begun = Instant::now();
        let granted = calls.reserve(ask(account)?, |_| ()).await;
        times.saturating_record(u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX));
        let granted = granted.map_err(|_| WorkError::Model)?;
        granted.started(RateTold::default());
        granted.release(&RateTold::default());
    }
    Ok(times.value_at_quantile(0.99))
}

/// What a session says that waits for a call.
pub const WAITS: &str = "waits";

const CHUNK: usize = 64 << 10;
/// Makes lines about as long as those of real programs.
const PADDING: &str = "a line of output of about the length that programs print";

enum WorkError {
    Closed,
    Model,
}

impl From<ReporterClosed> for WorkError {
    fn from(_: ReporterClosed) -> Self {
        Self::Closed
    }
}

impl Adapter for BenchAdapter {
    fn info(&self) -> AdapterInfo {
        AdapterInfo {
            name: self.name().parse().expect("the names above are names"),
            version: String::new(),
            unavailable: None,
            resumes: self.resumes(),
            access: None,
            slots: 0,
        }
    }

    fn secrets(&self) -> Vec<kage_agent::process::Secret> {
        Vec::new()
    }

    fn uses_scratch(&self) -> bool {
        false
    }

    fn asks_for_calls(&self) -> bool {
        true
    }

    fn run(&self, input: SessionInput, reporter: Reporter, stop: CancellationToken) -> BoxFuture<'_, AdapterEnd> {
        async move {
            let worked = stop.run_until_cancelled(self.work(input, &reporter)).await;
            match worked {
                Some(Ok(())) => AdapterEnd::Done { summary: String::new() },
                Some(Err(WorkError::Model)) => AdapterEnd::Failed(Failure::new(
                    FailureKind::InvalidRequest,
                    "the model must be two numbers",
                )),
                None | Some(Err(WorkError::Closed)) => AdapterEnd::Stopped,
            }
        }
        .boxed()
    }
}

fn two_numbers(model: Option<&str>) -> Result<(u64, u64), WorkError> {
    let (first, second) = model.and_then(|model| model.split_once(',')).ok_or(WorkError::Model)?;
    let number = |text: &str| text.parse().map_err(|_| WorkError::Model);
    Ok((number(first)?, number(second)?))
}

/// Nanoseconds since the Unix epoch. Sender and receiver are on one machine and read one clock.
#[must_use]
pub fn now_nanos() -> u64 {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Incompressible bytes that are the same for the same seed.
#[derive(Debug)]
pub struct Noise(SmallRng);

impl Noise {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(SmallRng::seed_from_u64(seed))
    }

    #[must_use]
    pub fn take(&mut self, size: usize) -> Bytes {
        let mut bytes = BytesMut::zeroed(size);
        self.0.fill_bytes(&mut bytes);
        bytes.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_the_same_for_a_seed_however_it_is_cut() {
        let mut whole = Noise::new(7);
        let mut pieces = Noise::new(7);
        let whole = whole.take(4096);
        let pieces: Vec<u8> = (0..4).flat_map(|_| pieces.take(1024)).collect();
        assert_eq!(whole, pieces);
        assert_ne!(whole, Noise::new(8).take(4096));
    }

    #[test]
    fn every_adapter_is_registered_under_its_name() {
        let registry = BenchAdapter::registry().unwrap();
        assert_eq!(registry.len(), 4);
        assert!(registry.iter().all(|(name, adapter)| adapter.info().name == *name));
    }
}

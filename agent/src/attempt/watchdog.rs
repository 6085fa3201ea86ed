//! Lets an adapter work until it ends, is told to stop, or takes too long. Time in which the
//! attempt is frozen does not count. An adapter that does not stop is abandoned.

use std::sync::Arc;
use std::time::Duration;

use kage_core::failure::{Failure, FailureKind};
use kage_core::time::in_words;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::adapters::port::{Adapter, AdapterEnd, Reporter, SessionInput};
use crate::process::allowance::Allowance;

/// How an adapter's work ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Watched {
    pub(super) end: AdapterEnd,
    /// It did not stop, so it may still be running and hold its reporter.
    pub(super) abandoned: bool,
}

/// Why an adapter is told to stop.
enum Why {
    Told,
    TooLong(Failure),
}

impl Why {
    fn end(self) -> AdapterEnd {
        match self {
            Self::Told => AdapterEnd::Stopped,
            Self::TooLong(failure) => AdapterEnd::Failed(failure),
        }
    }

    fn too_long(text: String) -> Self {
        Self::TooLong(Failure::new(FailureKind::Timeout, text))
    }
}

/// Lets the adapter work. `patience` is how long it may go on after it was told to stop.
pub(super) async fn watch_over(
    adapter: Arc<dyn Adapter>,
    input: SessionInput,
    reporter: Reporter,
    last_active: watch::Receiver<Instant>,
    stopped: &CancellationToken,
    patience: Duration,
) -> Watched {
    let (timeout, idle_timeout) = (input.timeout, input.idle_timeout);
    let mut frozen = input.frozen.clone();
    let mut freezer = true;
    let mut allowance = Allowance::new(timeout);
    allowance.freeze(*frozen.borrow_and_update());
    let stop = CancellationToken::new();
    let told = stop.clone();
    let mut working = JoinSet::new();
    working.spawn(async move { adapter.run(input, reporter, told).await }.in_current_span());
    let mut idle_from = *last_active.borrow();
    let why = loop {
        tokio::select! {
            // An end by itself counts more than an order to stop.
            biased;
            joined = working.join_next() => {
                return Watched {
                    end: ended(joined),
                    abandoned: false,
                };
            }
            () = stopped.cancelled() => break Why::Told,
            changed = frozen.changed(), if freezer => {
                freezer = changed.is_ok();
                // A closed channel means that nothing can freeze or thaw the attempt: then it is
                // not frozen.
                allowance.freeze(freezer && *frozen.borrow_and_update());
                idle_from = Instant::now();
            }
            () = allowance.used_up() => break Why::too_long(format!("it took longer than {}", in_words(timeout))),
            () = tokio::time::sleep_until(idle_from + idle_timeout), if !allowance.is_frozen() => {
                idle_from = idle_from.max(*last_active.borrow());
                if idle_from.elapsed() >= idle_timeout {
                    break Why::too_long(format!("it printed nothing and reported nothing for {}", in_words(idle_timeout)));
                }
            }
        }
    };
    stop.cancel();
    let abandoned = tokio::time::timeout(patience, working.join_next()).await.is_err();
    if abandoned {
        // It is aborted when the set is dropped, unless it blocks its thread.
        tracing::error!("adapter did not stop and is abandoned");
    }
    Watched {
        end: why.end(),
        abandoned,
    }
}

fn ended(joined: Option<Result<AdapterEnd, JoinError>>) -> AdapterEnd {
    match joined {
        Some(Ok(end)) => end,
        Some(Err(error)) => AdapterEnd::Failed(crash("the adapter", &error)),
        None => AdapterEnd::Stopped,
    }
}

/// The failure for a part of an attempt that panicked.
pub(super) fn crash(what: &str, error: &JoinError) -> Failure {
    Failure::new(FailureKind::AdapterCrash, format!("{what} crashed: {error}"))
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Mutex;

    use futures_util::future::BoxFuture;
    use kage_core::fleet::AdapterInfo;
    use tokio::time::timeout;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// An adapter that does nothing until it is told to stop, and then what its variant says.
    enum Still {
        Stops,
        /// Holds its thread until the test sends.
        Blocks(Mutex<std::sync::mpsc::Receiver<()>>),
    }

    impl Adapter for Still {
        fn info(&self) -> AdapterInfo {
            AdapterInfo {
                name: "still".parse().unwrap(),
                version: String::new(),
                unavailable: None,
                resumes: self.resumes(),
            }
        }

        fn secrets(&self) -> Vec<String> {
            Vec::new()
        }

        fn run(&self, _: SessionInput, _: Reporter, stop: CancellationToken) -> BoxFuture<'_, AdapterEnd> {
            Box::pin(async move {
                stop.cancelled().await;
                match self {
                    Self::Stops => {}
                    Self::Blocks(until) => until.lock().unwrap().recv().unwrap(),
                }
                AdapterEnd::Stopped
            })
        }
    }

    fn input(timeout: Duration, idle_timeout: Duration, frozen: watch::Receiver<bool>) -> SessionInput {
        SessionInput {
            timeout,
            idle_timeout,
            frozen,
            ..SessionInput::blank("/nonexistent".into())
        }
    }

    #[tokio::test]
    async fn neither_clock_runs_while_the_attempt_is_frozen() {
        for (limit, idle, why) in [
            (Duration::ZERO, MINUTE, "it took longer"),
            (MINUTE, Duration::ZERO, "it printed nothing"),
        ] {
            let (freeze, frozen) = watch::channel(true);
            let (_active, last_active) = watch::channel(Instant::now());
            let stopped = CancellationToken::new();
            let mut watched = pin!(watch_over(
                Arc::new(Still::Stops),
                input(limit, idle, frozen),
                Reporter::channel(1).0,
                last_active,
                &stopped,
                MINUTE,
            ));
            assert!(timeout(Duration::from_millis(20), &mut watched).await.is_err());
            freeze.send_replace(false);
            let Watched {
                end: AdapterEnd::Failed(failure),
                abandoned: false,
            } = watched.await
            else {
                panic!("it ended otherwise");
            };
            assert!(failure.message.starts_with(why), "{failure}");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn one_that_blocks_its_thread_is_given_up() {
        let (release, until) = std::sync::mpsc::channel();
        let (_active, last_active) = watch::channel(Instant::now());
        let stopped = CancellationToken::new();
        stopped.cancel();
        let watched = watch_over(
            Arc::new(Still::Blocks(Mutex::new(until))),
            input(MINUTE, MINUTE, watch::channel(false).1),
            Reporter::channel(1).0,
            last_active,
            &stopped,
            Duration::from_millis(20),
        )
        .await;
        let given_up = Watched {
            end: AdapterEnd::Stopped,
            abandoned: true,
        };
        assert_eq!(watched, given_up);
        release.send(()).unwrap();
    }
}

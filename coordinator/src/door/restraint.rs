//! What one caller may take of the coordinator: calls in a time, watches at once, and wrong tokens from one
//! address. `auth` says who is limited, and under which name. Connections and what strangers send are limited
//! by `lobby` and `auth`.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kage_core::left_out::in_units;
use kage_proto::status::ApiError;
use tokio::time::Instant;

use crate::config::CallerLimits;
use crate::door::lobby::From;
use crate::door::outflow::Outflows;
use crate::door::rate::{Rates, Turn};

/// How long the answer to a wrong token may be held back. A stranger's call has this time at least.
const HELD_BACK: Duration = Duration::from_secs(5);
/// Unused calls of so much time can be made at once.
const SAVED_CALLS: u32 = 10;

/// What is counted of stored bytes, and for how long.
const KIB: u64 = 1 << 10;
const HOUR: Duration = Duration::from_secs(60 * 60);

#[derive(Debug)]
pub(crate) struct Restraint {
    limits: CallerLimits,
    wrong: Rates<From>,
    calls: Rates<String>,
    /// KiB that are stored.
    sent: Rates<String>,
    watches: Mutex<HashMap<String, u32>>,
    /// What waits for the networks of watchers.
    pub(crate) outflows: Outflows,
}

impl Restraint {
    pub(crate) fn new(limits: CallerLimits) -> Self {
        let wrong = limits.wrong_tokens_per_minute;
        let calls = limits.calls_per_second;
        let sent = u32::try_from(limits.upload_per_hour.div_ceil(KIB)).unwrap_or(u32::MAX);
        Self {
            limits,
            wrong: Rates::new(wrong, Duration::from_secs(60), wrong, HELD_BACK),
            calls: Rates::new(
                calls,
                Duration::from_secs(1),
                calls.saturating_mul(SAVED_CALLS),
                Duration::ZERO,
            ),
            // What an hour has may come at once.
            sent: Rates::new(sent, HOUR, sent, Duration::ZERO),
            watches: Mutex::default(),
            outflows: Outflows::new(limits.watch_bytes),
        }
    }

    /// Somebody at this address showed a wrong token or secret: waits before that is said. An error
    /// instead of it, if there are too many of them.
    pub(crate) async fn wrong_token(&self, address: IpAddr) -> Result<(), ApiError> {
        match self.wrong.take(From::of(address), Instant::now()) {
            Turn::Now => Ok(()),
            Turn::After(wait) => {
                tokio::time::sleep(wait).await;
                Ok(())
            }
            Turn::Refused(retry) => Err(ApiError::ResourceExhausted {
                message: "too many wrong tokens came from this address; use the right one".to_owned(),
                retry: Some(retry),
            }),
        }
    }

    /// Counts a call of a caller with this name; `None` = it is not limited.
    pub(crate) fn call(&self, name: Option<String>) -> Result<(), ApiError> {
        let Some(name) = name else {
            return Ok(());
        };
        match self.calls.take(name, Instant::now()) {
            Turn::Now | Turn::After(_) => Ok(()),
            Turn::Refused(retry) => Err(ApiError::ResourceExhausted {
                message: format!(
                    "a caller may make {} calls in a second; wait, or ask for more (`calls_per_second` of the \
                     coordinator's `[limits]`)",
                    self.limits.calls_per_second
                ),
                retry: Some(retry),
            }),
        }
    }

    /// Whether a caller with this name may send more that is stored.
    pub(crate) fn may_send(&self, name: &str) -> Result<(), ApiError> {
        let wait = self.sent.wait(&name.to_owned(), Instant::now());
        if wait.is_zero() {
            return Ok(());
        }
        Err(ApiError::ResourceExhausted {
            message: format!(
                "a token may send {} in an hour; wait, or ask for more (`upload_mib_per_hour` of the coordinator's \
                 `[limits]`)",
                in_units(self.limits.upload_per_hour)
            ),
            retry: Some(wait),
        })
    }

    /// Counts what a caller with this name sent.
    pub(crate) fn sent(&self, name: &str, bytes: u64) {
        let kib = u32::try_from(bytes.div_ceil(KIB)).unwrap_or(u32::MAX);
        self.sent.charge(name.to_owned(), kib, Instant::now());
    }

    /// Counts a watch of a caller with this name until the returned value is dropped.
    pub(crate) fn watch(self: &Arc<Self>, name: Option<String>) -> Result<OpenWatch, ApiError> {
        if let Some(name) = &name {
            let mut watches = self.watches();
            let open = watches.entry(name.clone()).or_default();
            if self.limits.watches > 0 && *open >= self.limits.watches {
                return Err(ApiError::ResourceExhausted {
                    message: format!(
                        "a token may have {} watches open at once; end some, or ask for more (`watches` of the \
                         coordinator's `[limits]`)",
                        self.limits.watches
                    ),
                    retry: Some(Duration::from_secs(1)),
                });
            }
            *open += 1;
        }
        Ok(OpenWatch {
            restraint: Arc::clone(self),
            name,
        })
    }

    fn watches(&self) -> MutexGuard<'_, HashMap<String, u32>> {
        // Numbers change in one step.
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An open watch; it counts until it is dropped.
#[derive(Debug)]
pub(crate) struct OpenWatch {
    restraint: Arc<Restraint>,
    name: Option<String>,
}

impl Drop for OpenWatch {
    fn drop(&mut self) {
        let Some(name) = &self.name else {
            return;
        };
        let mut watches = self.restraint.watches();
        if let Some(open) = watches.get_mut(name) {
            *open -= 1;
            if *open == 0 {
                watches.remove(name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn person(n: u32) -> Option<String> {
        Some(format!("token:{n}"))
    }

    fn restraint() -> Arc<Restraint> {
        Arc::new(Restraint::new(CallerLimits {
            wrong_tokens_per_minute: 1,
            calls_per_second: 2,
            watches: 2,
            ..CallerLimits::default()
        }))
    }

    fn is_refused<T>(outcome: Result<T, ApiError>) -> bool {
        match outcome {
            Ok(_) => false,
            Err(ApiError::ResourceExhausted { retry, .. }) => retry.is_some(),
            Err(other) => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_token_has_its_calls_and_the_owner_has_any() {
        let restraint = restraint();
        let burst = (0..20).map(|_| restraint.call(person(1)));
        assert!(burst.into_iter().all(|outcome| outcome.is_ok()));
        assert!(is_refused(restraint.call(person(1))));
        assert!(restraint.call(person(2)).is_ok());
        assert!((0..1000).all(|_| restraint.call(None).is_ok()));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(restraint.call(person(1)).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_token_sent_in_an_hour_is_waited_for() {
        let restraint = Restraint::new(CallerLimits {
            upload_per_hour: 1 << 20,
            ..CallerLimits::default()
        });
        restraint.sent("token:1", 3 << 20);
        assert!(is_refused(restraint.may_send("token:1")));
        assert!(restraint.may_send("token:2").is_ok());
        tokio::time::advance(2 * HOUR).await;
        assert!(restraint.may_send("token:1").is_ok());
    }

    #[tokio::test]
    async fn a_watch_counts_until_it_ends() {
        let restraint = restraint();
        let first = restraint.watch(person(1)).unwrap();
        let _second = restraint.watch(person(1)).unwrap();
        assert!(is_refused(restraint.watch(person(1))));
        let _other = restraint.watch(person(2)).unwrap();
        let all: Vec<_> = (0..9).map(|_| restraint.watch(None).unwrap()).collect();
        drop(first);
        drop(restraint.watch(person(1)).unwrap());
        drop(all);
        assert_eq!(restraint.watches().len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn wrong_tokens_of_an_address_are_answered_ever_later() {
        let restraint = restraint();
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        let start = Instant::now();
        restraint.wrong_token(address).await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert!(is_refused(restraint.wrong_token(address).await));
        tokio::time::advance(Duration::from_secs(57)).await;
        restraint.wrong_token(address).await.unwrap();
        assert_eq!(start.elapsed(), Duration::from_secs(60));
        restraint.wrong_token("192.0.2.2".parse().unwrap()).await.unwrap();
    }
}

//! The gateway of a session: opened before everything that has to know where it is, served while the session's
//! program may call, and closed before the attempt's end is told, so that every call is.

use kage_core::event::EventBody;
use kage_core::failure::{Failure, FailureKind};
use kage_core::failure_table::local_failure;
use kage_core::usage::Usage;
use kage_proto::convert::agent::{Work, WorkKind};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Attempt;
use crate::adapters::api;
use crate::adapters::metered::{GatewayPass, ProgramCount};
use crate::calls::Calls;
use crate::equipment::Equipment;
use crate::gateway::{Gateway, GatewayTold, Metered};

/// Opens the gateway of a session whose program's calls can go through one.
pub(super) fn open(equipment: &Equipment, work: &Work) -> Result<Option<Gateway>, Failure> {
    let WorkKind::Session(session) = &work.kind else {
        return Ok(None);
    };
    let adapter = equipment.adapters.get(&session.adapter);
    let Some(provider) = adapter.and_then(|adapter| adapter.metered(session.model.as_deref())) else {
        return Ok(None);
    };
    let failed = |why: String| local_failure(FailureKind::MachineBusy, format!("there is no gateway: {why}"));
    let client = api::client().map_err(|error| failed(error.to_string()))?;
    let key = format!("kage-{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>());
    let gateway = Gateway::open(provider, client, key).map_err(|error| failed(error.to_string()))?;
    Ok(Some(gateway))
}

impl Attempt {
    /// Does the work while the gateway is served.
    pub(super) async fn while_metered<T>(&self, gateway: Gateway, work: impl Future<Output = T>) -> T {
        let (pass, end) = (gateway.pass(), CancellationToken::new());
        let mut last_wait = String::new();
        let tell = |told| {
            if let GatewayTold::Waits(_) = &told {
                // Its program is silent because it is told to wait.
                self.active.send_replace(Instant::now());
            }
            let body = match told {
                GatewayTold::Used(body) => Some(body),
                GatewayTold::Waits(reason) if reason == last_wait => None,
                GatewayTold::Waits(reason) => {
                    last_wait.clone_from(&reason);
                    Some(EventBody::Activity(format!("a call of its model waits: {reason}")))
                }
            };
            async {
                if let Some(body) = body
                    && self.recording.post(body).await.is_err()
                {
                    tracing::debug!("a call is not told");
                }
            }
        };
        let serving = gateway.serve(Calls::Gated(self.gate.clone()), tell, end.clone());
        let working = async {
            let done = work.await;
            end.cancel();
            done
        };
        let (done, served) = tokio::join!(working, serving);
        match served {
            Ok(metered) => self.compare(metered, &pass).await,
            Err(error) => tracing::warn!(%error, "a program had no gateway"),
        }
        done
    }

    /// Says where the program's own numbers are others than those of the gateway.
    async fn compare(&self, metered: Metered, pass: &GatewayPass) {
        let Metered {
            answered,
            broken,
            refused,
            usage,
        } = metered;
        tracing::debug!(answered, broken, refused, "the gateway closed");
        if let Some(text) = drift(usage, broken, pass.own_count.get())
            && self.recording.post(EventBody::Warning(text)).await.is_err()
        {
            tracing::debug!("a difference is not told");
        }
    }
}

/// What people are told of two counts that differ; `None`: they agree, or the program counts nothing.
fn drift(metered: Usage, broken: u64, program: ProgramCount) -> Option<String> {
    let own = program.usage;
    let input = |usage: Usage| usage.total().saturating_sub(usage.output);
    if own.total() == 0 || (input(own), own.output) == (input(metered), metered.output) {
        return None;
    }
    let why = match broken {
        0 => String::new(),
        broken => format!("; answers that broke off, which programs do not count: {broken}"),
    };
    Some(format!(
        "the program counted {} tokens of input and {} of output, its gateway {} and {}, which are billed{why}",
        input(own),
        own.output,
        input(metered),
        metered.output
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_counts_are_compared_where_there_are_two() {
        let usage = |input, output| Usage {
            input,
            output,
            ..Usage::default()
        };
        let program = |usage| ProgramCount { usage, reported: None };
        assert_eq!(drift(usage(10, 2), 0, ProgramCount::default()), None);
        assert_eq!(drift(usage(10, 2), 0, program(Usage::UNKNOWN)), None);
        // The same, divided into classes in another way.
        let cached = Usage {
            cache_read: 4,
            ..usage(6, 2)
        };
        assert_eq!(drift(usage(10, 2), 1, program(cached)), None);
        let text = drift(usage(17, 5), 1, program(usage(10, 2))).unwrap();
        assert!(
            text.contains("10 tokens of input and 2 of output, its gateway 17 and 5"),
            "{text}"
        );
        assert!(text.ends_with("do not count: 1"), "{text}");
    }
}

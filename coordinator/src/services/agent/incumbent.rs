//! Decides which connection may use an agent's identity: the live one. A Hello of another start of
//! the same agent is a restart if the older connection is closed or silent, and a copy of the
//! identity (a cloned machine, a restored folder) if it answers. A copy is refused before anything
//! of the live agent is changed.
//!
//! ```text
//!   Hello --no other start is connected-------------------> let in
//!         --ping--> connection ends, or nothing is heard --> let in; the older one is cut
//!              \---> something is heard -------------------> AGENT_ID_IN_USE
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kage_core::id::{AgentId, BootId};
use kage_proto::status::ApiError;
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

use crate::board::Outbox;
use crate::board::agents::Incumbent;
use crate::coordinator::Coordinator;

/// Time limit of the answer to a ping: an agent answers from the loop that also sends its
/// heartbeats, and that loop never waits.
const PING: Duration = Duration::from_secs(2);
/// How many times another start may have joined in between before it counts as a live agent.
const ROUNDS: u32 = 3;

/// Admits a start of an agent, unless another start of it is alive. Until the returned value is
/// dropped, no other start of it is admitted.
pub(super) async fn make_way(
    coordinator: &Coordinator,
    turns: &Arc<Turns>,
    (agent, boot): (AgentId, BootId),
    newcomer: &Outbox,
) -> Result<Turn, ApiError> {
    let mut name = String::new();
    for _ in 0..ROUNDS {
        let challenged = coordinator.board().challenge(agent, boot);
        let mut silent = None;
        if let Some(incumbent) = challenged {
            (name, silent) = (incumbent.name.clone(), Some(incumbent.serial));
            let lives = tokio::select! {
                lives = lives(incumbent, coordinator.timings.heartbeat) => lives,
                // The newcomer is gone and cannot take over.
                () = newcomer.closed() => return Err(gone()),
            };
            if lives {
                return Err(in_use(agent, &name));
            }
            tracing::info!(%agent, "the older connection of an agent does not answer, and is given up");
        }
        let turn = turns.take(agent).await;
        let present = coordinator.board().incumbent(agent, boot);
        if present.is_none() || present == silent {
            return Ok(turn);
        }
        // Meanwhile another start of it came in, which may live.
    }
    Err(in_use(agent, &name))
}

/// True when something is heard over the connection in time.
async fn lives(incumbent: Incumbent, heartbeat: Duration) -> bool {
    let Some(mut pulse) = incumbent.pulse else {
        return false;
    };
    let last = *pulse.borrow_and_update();
    let answer = Instant::now() + PING;
    let deadline = if incumbent.answers_pings {
        answer
    } else {
        // It knows no pings; it is heard at its next heartbeat at the latest.
        answer.max(last.heard + heartbeat + PING)
    };
    let heard = async {
        loop {
            match pulse.changed().await {
                Ok(()) if pulse.borrow().heard > last.heard => return true,
                // Only its earlier message was handled.
                Ok(()) => {}
                // The connection ended.
                Err(_) => return false,
            }
        }
    };
    let in_time = tokio::time::timeout_at(deadline, heard).await;
    // While its message is being handled, further messages are not read: that silence is ours.
    in_time.unwrap_or_else(|_| pulse.borrow().busy)
}

fn in_use(agent: AgentId, name: &str) -> ApiError {
    ApiError::AgentIdInUse {
        message: format!(
            "agent {agent} is connected already, as {name}, and lives: this one runs with a copy of its identity; to \
             join as an agent of its own, remove this copy's state folder, then start it anew (where agents join: \
             `kage agent run --join TOKEN HOST:PORT` with a new token of `kage token create --role agent`)"
        ),
    }
}

fn gone() -> ApiError {
    ApiError::Unavailable {
        message: "the agent left before it was let in".to_owned(),
        retry: None,
    }
}

/// The agents being admitted, one start of each at a time.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<HashMap<AgentId, Arc<tokio::sync::Mutex<()>>>>);

/// A start of an agent that is being admitted.
pub(super) struct Turn {
    agent: AgentId,
    turns: Arc<Turns>,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Turns {
    async fn take(self: &Arc<Self>, agent: AgentId) -> Turn {
        let turn = Arc::clone(
            self.0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .entry(agent)
                .or_default(),
        );
        Turn {
            agent,
            turns: Arc::clone(self),
            guard: Some(turn.lock_owned().await),
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.guard = None;
        let mut turns = self.turns.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A waiter holds it too.
        if turns.get(&self.agent).is_some_and(|turn| Arc::strong_count(turn) == 1) {
            turns.remove(&self.agent);
        }
    }
}

#[cfg(test)]
mod tests {
    use kage_core::access::Admittance;
    use kage_core::fleet::Agent;
    use kage_core::time::Timestamp;
    use tokio::sync::mpsc;

    use super::*;
    use crate::board::{Board, Serial};
    use crate::config::Timings;

    const NOW: Timestamp = Timestamp::from_millis(1);
    const HEARTBEAT: Duration = Duration::from_secs(5);

    fn me() -> AgentId {
        AgentId::from_random(1)
    }

    fn other_boot() -> BootId {
        BootId::from_random(99)
    }

    type Inbox = mpsc::Receiver<Result<kage_proto::v1::ConnectResponse, tonic::Status>>;

    /// A board with one connected agent.
    fn connected(answers_pings: bool) -> (Board, Serial, Inbox) {
        let agent = Agent {
            id: me(),
            name: "one".to_owned(),
            boot: BootId::from_random(1),
            labels: Default::default(),
            adapters: Vec::new(),
            slots: 1,
            pid: 1,
            version: String::new(),
            draining: false,
            cordoned: false,
            admittance: Admittance::EARLIER,
            machine: None,
            contained: kage_core::contain::Containment::NOTHING,
            seen_at: NOW,
        };
        let mut board = Board::new(Timings::default());
        let (outbox, inbox) = mpsc::channel(1);
        let joined = board.join(agent, outbox, &[], Instant::now());
        if answers_pings {
            board.answers_pings(me(), joined.serial);
        }
        (board, joined.serial, inbox)
    }

    #[test]
    fn only_another_start_is_in_the_way() {
        let (mut board, serial, mut inbox) = connected(true);
        assert!(
            board.challenge(me(), BootId::from_random(1)).is_none(),
            "the same start"
        );
        assert!(inbox.try_recv().is_err(), "it is not even asked");
        assert!(board.challenge(AgentId::from_random(2), other_boot()).is_none());
        assert_eq!(board.incumbent(me(), other_boot()), Some(serial));
        assert!(board.challenge(me(), other_boot()).is_some());
        assert!(inbox.try_recv().is_ok(), "it is sent a ping");
        board.leave(me(), serial, Instant::now());
        assert!(
            board.challenge(me(), other_boot()).is_none(),
            "a closed connection is none"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_says_anything_lives() {
        for (answers_pings, after) in [(true, 1999), (false, 6999)] {
            let (mut board, serial, _inbox) = connected(answers_pings);
            let incumbent = board.challenge(me(), other_boot()).unwrap();
            let says = async {
                tokio::time::sleep(Duration::from_millis(after)).await;
                board.heard(me(), serial, NOW, Instant::now());
            };
            assert!(tokio::join!(lives(incumbent, HEARTBEAT), says).0, "{answers_pings}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_silent_gives_way_after_two_seconds_or_its_next_heartbeat() {
        for (answers_pings, expected) in [(true, 2), (false, 7)] {
            let (board, _serial, _inbox) = connected(answers_pings);
            let began = Instant::now();
            assert!(!lives(board.challenge(me(), other_boot()).unwrap(), HEARTBEAT).await);
            assert_eq!(began.elapsed().as_secs(), expected, "{answers_pings}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_whose_connection_ends_or_does_not_take_a_ping_gives_way_at_once() {
        let (mut board, serial, _inbox) = connected(true);
        let began = Instant::now();
        let incumbent = board.challenge(me(), other_boot()).unwrap();
        assert!(
            !lives(board.challenge(me(), other_boot()).unwrap(), HEARTBEAT).await,
            "its inbox is full"
        );
        board.leave(me(), serial, Instant::now());
        assert!(!lives(incumbent, HEARTBEAT).await);
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_waits_for_the_coordinator_lives() {
        let (mut board, serial, _inbox) = connected(true);
        board.heard(me(), serial, NOW, Instant::now());
        assert!(lives(board.challenge(me(), other_boot()).unwrap(), HEARTBEAT).await);
        board.carried_out(me(), serial);
        let (board, _, _inbox) = (board, serial, _inbox);
        let incumbent = board.challenge(me(), other_boot());
        assert!(!lives(incumbent.unwrap(), HEARTBEAT).await);
    }

    #[tokio::test]
    async fn turns_of_one_agent_come_one_after_the_other_and_are_forgotten() {
        let turns = Arc::new(Turns::default());
        let first = turns.take(me()).await;
        let other = turns.take(AgentId::from_random(2)).await;
        let (own, (waits, waited)) = (Arc::clone(&turns), tokio::sync::oneshot::channel());
        let waiting = tokio::spawn(async move {
            let turn = own.take(me()).await;
            waits.send(()).unwrap();
            drop(turn);
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop((first, other));
        waited.await.unwrap();
        waiting.await.unwrap();
        assert!(turns.0.lock().unwrap().is_empty());
    }
}

//! Random messages to sessions, and forks of them.

use kage_core::fallback::AdapterLacks;
use kage_core::id::{Digest, JobId, SessionId};
use kage_core::session::{Successor, fork_name};
use proptest::prelude::*;

use super::pair::Pair;
use crate::store::conformance::fixture::{request, task_id};
use crate::store::{ForkSession, SendMessage};

/// What a person says to a session. Numbers are small, so that steps concern the same rows.
#[derive(Debug, Clone)]
pub(super) enum Steer {
    Say {
        task: u128,
        session: usize,
        request: u128,
    },
    Fork {
        task: u128,
        session: usize,
        checkpoint: Option<u32>,
        says: bool,
        request: u128,
    },
}

pub(super) fn steer() -> impl Strategy<Value = Steer> {
    prop_oneof![
        3 => (1..7u128, 0..3usize, 1..20u128)
            .prop_map(|(task, session, request)| Steer::Say { task, session, request }),
        1 => (1..7u128, 0..3usize, prop::option::of(1..4u32), any::<bool>(), 1..9u128)
            .prop_map(|(task, session, checkpoint, says, request)| Steer::Fork { task, session, checkpoint, says, request }),
    ]
}

impl Pair {
    pub(super) async fn steer(&mut self, step: Steer) {
        self.next_job += 1;
        let (now, next_job) = (self.now, JobId::from_random((1 << 100) + self.next_job));
        let task = match step {
            Steer::Say {
                task,
                session,
                request: key,
            } => {
                let Some(session) = self.session(task, session).await else {
                    return;
                };
                let mut command = SendMessage {
                    request: request(key),
                    task: task_id(task),
                    session,
                    text: format!("message {key}"),
                    next_job,
                    now,
                };
                command.request.payload = Digest::of(format!("{task} {session}").as_bytes());
                self.apply(command).await.map(|_| task)
            }
            Steer::Fork {
                task,
                session,
                checkpoint,
                says,
                request: key,
            } => {
                let Some(from) = self.session(task, session).await else {
                    return;
                };
                let Some(view) = self.sqlite.task(task_id(task)).await.unwrap() else {
                    return;
                };
                let adapter = if says { "scripted" } else { "other" }.parse().unwrap();
                let names: Vec<_> = view.sessions.iter().map(|session| session.name.clone()).collect();
                let mut command = ForkSession {
                    request: request(key),
                    task: task_id(task),
                    session: from,
                    checkpoint,
                    next: Successor {
                        id: SessionId::from_random((1 << 101) + self.next_job),
                        name: fork_name(&adapter, &names),
                        adapter,
                        model: None,
                        fallbacks: Vec::new(),
                        by: "user".to_owned(),
                    },
                    text: says.then(|| "go on".to_owned()),
                    beside: names.len(),
                    lacks: AdapterLacks::default(),
                    lacks_verify: None,
                    waits_for_agent: false,
                    next_job,
                    now,
                };
                command.request.payload = Digest::of(format!("{task} {from} {checkpoint:?} {says}").as_bytes());
                self.apply(command).await.map(|_| task)
            }
        };
        if let Some(task) = task {
            self.seen.reopened(task_id(task));
        }
    }
}

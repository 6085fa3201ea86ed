//! The writer of the outbox, which waits for the disk. Commands that arrived meanwhile become one
//! transaction, so many attempts share one flush.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kage_core::id::AttemptId;
use tokio::sync::mpsc;

use super::rows::Rows;
use super::{OutboxChange, OutboxCommand, Settled, Settlement, Space, Stored};
use crate::delivery::hindrance::Hindrances;
use crate::ports::Blocking;

/// Commands per transaction: more would only delay the first of them.
const GROUP: usize = 512;
/// The wait before a failed transaction is retried, as on a full disk.
const RETRY: Duration = Duration::from_secs(1);

/// Numbering of an attempt that may still produce.
#[derive(Debug, Clone, Copy)]
pub(super) struct Numbering {
    next: u64,
    finished: bool,
}

pub(super) struct Writer {
    pub(super) rows: Rows,
    pub(super) settled: Arc<Settled>,
    pub(super) changes: mpsc::Sender<Vec<OutboxChange>>,
    pub(super) events: Space,
    pub(super) hindrances: Hindrances,
    pub(super) attempts: HashMap<AttemptId, Numbering>,
    pub(super) blocking: Blocking,
}

impl Writer {
    /// Writes until every [`super::Outbox`] is dropped. Blocks on the disk.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<OutboxCommand>) {
        let mut group = Vec::with_capacity(GROUP);
        while commands.recv_many(&mut group, GROUP).await > 0 {
            let settled = self.settled.take();
            let Some(committed) = self.write(&mut group, &settled, &commands).await else {
                return;
            };
            self.blocking.pause().await;
            // Delivery has ended and does not listen; the next start finds the rows.
            if !committed.is_empty() && self.changes.send(committed).await.is_err() {
                tracing::debug!("events were committed after delivery ended");
            }
        }
        let settled = self.settled.take();
        if let Err(error) = self.rows.commit(|batch| {
            settled
                .iter()
                .try_for_each(|(attempt, settlement)| batch.settle(*attempt, settlement))
        }) {
            tracing::warn!(%error, "acknowledgements were not saved; what they cover is sent again");
        }
    }

    /// Numbers and commits a group. `None` when the agent ends before the disk accepts it.
    async fn write(
        &mut self,
        group: &mut Vec<OutboxCommand>,
        settled: &HashMap<AttemptId, Settlement>,
        commands: &mpsc::Receiver<OutboxCommand>,
    ) -> Option<Vec<OutboxChange>> {
        let mut opened = Vec::new();
        let mut committed = Vec::with_capacity(group.len());
        for command in group.drain(..) {
            match command {
                OutboxCommand::Open(key) => {
                    let numbering = Numbering {
                        next: 1,
                        finished: false,
                    };
                    self.attempts.insert(key.attempt, numbering);
                    opened.push(key);
                }
                OutboxCommand::Post {
                    attempt,
                    mut event,
                    size,
                    last,
                } => match self.attempts.get_mut(&attempt) {
                    Some(numbering) if !numbering.finished => {
                        event.seq = numbering.next;
                        numbering.next += 1;
                        numbering.finished = last;
                        committed.push((attempt, Stored { event, size }));
                    }
                    Some(_) | None => self.events.give(size),
                },
            }
        }
        let mut hindered = None;
        loop {
            let result = self.rows.commit(|batch| {
                opened.iter().try_for_each(|key| batch.open(key))?;
                committed
                    .iter()
                    .try_for_each(|(attempt, stored)| batch.event(*attempt, &stored.event))?;
                settled
                    .iter()
                    .try_for_each(|(attempt, settlement)| batch.settle(*attempt, settlement))
            });
            match result {
                Ok(()) => break drop(hindered),
                Err(error) if commands.is_closed() => {
                    tracing::error!(%error, "outbox cannot be written; ending without it");
                    return None;
                }
                Err(error) => {
                    tracing::error!(%error, "outbox cannot be written; attempts wait");
                    hindered.get_or_insert_with(|| self.hindrances.begin("what it tells cannot be stored", &error));
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
        for (attempt, settlement) in settled {
            if settlement.forget {
                self.attempts.remove(attempt);
            }
        }
        Some(
            committed
                .into_iter()
                .map(|(attempt, stored)| OutboxChange::Committed(attempt, stored))
                .collect(),
        )
    }
}

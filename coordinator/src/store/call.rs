//! A command on its way to an engine: carried out once, answered once, with its type erased.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::apply::Command;
use super::change::Change;
use super::error::{EngineError, StoreError};
use super::rows::{Failed, Rows};
use super::unit::Unit;
use crate::telemetry;

/// The outcome of a command's transaction.
#[derive(Debug, Clone)]
pub(super) enum Fate {
    Committed,
    /// It may be durable or not.
    Unknown(Arc<EngineError>),
    /// Nothing was stored.
    BrokenOff(Arc<EngineError>),
}

/// Whether to keep what a command wrote.
#[derive(Debug)]
#[must_use]
pub(super) enum Verdict {
    /// It is: this is what it changed.
    Keep(Vec<Change>),
    /// It is not: the command was refused.
    TakeBack,
    /// It is not: the engine failed.
    EngineFailed(Arc<EngineError>),
}

/// A command of a type that the engine does not know.
pub(super) trait Call: Send {
    /// Carries it out. Called once.
    fn apply(&mut self, rows: &mut dyn Rows) -> Verdict;

    /// Answers the caller, which may be gone.
    fn answer(self: Box<Self>, fate: &Fate);
}

/// A command and its waiting caller.
#[derive(Debug)]
pub(super) struct Pending<C: Command> {
    command: Option<C>,
    outcome: Option<Result<C::Outcome, StoreError>>,
    reply: oneshot::Sender<Result<C::Outcome, StoreError>>,
}

impl<C: Command> Pending<C> {
    /// The command, and the receiver of its answer.
    pub(super) fn new(command: C) -> (Self, oneshot::Receiver<Result<C::Outcome, StoreError>>) {
        let (reply, answer) = oneshot::channel();
        let pending = Self {
            command: Some(command),
            outcome: None,
            reply,
        };
        (pending, answer)
    }
}

/// Fetches what a command reads, lets it decide, and writes what it changed.
fn carry_out<C: Command>(command: C, engine: &mut dyn Rows) -> Result<(C::Outcome, Vec<Change>), Failed> {
    let mut unit = Unit::prefetch(engine, &command.reads())?;
    let outcome = command.apply(&mut unit);
    let fetches = unit.fetches();
    debug_assert_eq!(fetches, 0, "{} reads what it does not name", std::any::type_name::<C>());
    telemetry::fetched_late(fetches);
    let outcome = outcome?;
    Ok((outcome, unit.flush()?))
}

impl<C: Command> Call for Pending<C> {
    fn apply(&mut self, rows: &mut dyn Rows) -> Verdict {
        let Some(command) = self.command.take() else {
            return Verdict::TakeBack;
        };
        let (outcome, verdict) = match carry_out(command, rows) {
            Ok((outcome, changes)) => (Ok(outcome), Verdict::Keep(changes)),
            Err(Failed::Refused(error)) => (Err(error), Verdict::TakeBack),
            Err(Failed::Engine(error)) => {
                let source = Arc::new(error);
                let verdict = Verdict::EngineFailed(Arc::clone(&source));
                (Err(StoreError::Engine { source }), verdict)
            }
        };
        self.outcome = Some(outcome);
        verdict
    }

    fn answer(self: Box<Self>, fate: &Fate) {
        let answer = match (fate, self.outcome) {
            (Fate::Committed, Some(outcome)) => outcome,
            (Fate::Unknown(source), _) => Err(StoreError::Unknown { source: source.clone() }),
            // A decision of an interrupted transaction was based on rows that no longer hold.
            (Fate::BrokenOff(source), _) => Err(StoreError::Engine { source: source.clone() }),
            (Fate::Committed, None) => Err(StoreError::Closed),
        };
        // The caller may have stopped waiting; the change stays.
        drop(self.reply.send(answer));
    }
}

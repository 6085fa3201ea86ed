//! The one truth: tasks, sessions, jobs, attempts, events, agents and contexts.
//!
//! A command goes in, core decides on the rows it concerns, and the rows and the outcome
//! come back together: `store.apply(CreateTask { .. }).await?` is durable when it returns.
//! Decisions are in `kage_core`; this module only loads, saves and serialises them.

mod command;
mod error;
mod query;

pub use command::{
    AppendEvents, Appended, CancelTask, Changes, Claim, ContextPut, CreateTask, Created, EndAttempts, EndedAttempt,
    Ending, ExtendAllLeases, PruneRequests, PutContext, QueuedJob, REQUEST_LIFETIME, RecordAgent, RecordContextSent,
    RenewLeases, Renewed, Request, SetDraining, Start, StartAttempt, StopAttempt,
};
pub use error::{EngineError, OpenError, ReadError, StoreError};
pub use query::{
    AttemptView, ContextSent, ContextStats, Counts, InvalidPageToken, LiveAttempt, MIN_PREFIX, Named, PageToken,
    TaskEvent, TaskPage, TaskView, Work,
};

//! The way of an attempt's reports to the coordinator: recorded, masked, stored on the disk, sent
//! until acknowledged.
//!
//! ```text
//!   adapter ─reports─▶ recorder (mask) ─events─▶ outbox ─▶ ledger ─▶ sender ─▶ coordinator
//!                          └─output──▶ files ───────────────┘           acknowledged ─▶ dropped
//! ```

pub(crate) mod live;
pub(crate) mod forms;
pub(crate) mod mask;
pub(crate) mod output;
pub(crate) mod hindrance;
pub mod outbox;
pub(crate) mod ledger;
pub(crate) mod sender;
pub(crate) mod recorder;

//! Everything that Kage Bunshin does with git: the only crate that spawns `git` or opens libgit2.
//! It owns how git is made safe to run on repositories of unknown origin, and the repositories that
//! Kage itself keeps. A user's own repository is read through a private git directory
//! ([`user_repo`], [`snapshot`]) and written only by [`landing`]. A session's files are kept by
//! [`checkpoint`] and brought back by [`restore`].
//!
//! Functions that spawn `git` are `async` and cancel-safe: dropping one kills the process and
//! everything that it started. Functions that use libgit2 ([`diff`]) block. A started checkpoint or
//! restore continues when its future is dropped.
//!
//! The modules are listed foundation first.

pub mod error;
pub mod executable;
pub mod command;
pub mod program;

mod beneath;
pub mod lock_file;
mod lock;
mod patterns;
pub mod private;
pub mod removal;
mod shared_work;
mod shadow;
mod staging;
mod durable;
mod ignored;
pub mod secrets;

mod loose;
mod objects;
mod large;
mod left_out;
mod known;
pub mod creation;
pub mod diff;

pub mod mirror;
pub mod smart_http;
pub mod user_repo;
mod names;
mod submodules;
pub mod included;
pub mod snapshot;
pub mod landing;

pub mod worktree;
pub mod checkpoint;
pub mod restore;
mod rebuild;
mod unfinished;
pub mod upkeep;

pub mod decoders;

pub use checkpoint::Checkpoint;
pub use command::{Auth, TlsAuth};
pub use error::{FetchProblem, GitError, RefusedObject, RefusedPush};
pub use mirror::{Expected, Incident, Incoming, Mirror, Origin, Wanted};
pub use secrets::{FileWithSecret, Secrets, Sought};
pub use user_repo::UserRepo;
pub use worktree::{SetAside, Worktree};

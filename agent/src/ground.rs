//! What sessions work on: repositories, worktrees, base contexts and bulk bytes of this machine,
//! and what goes when they are too many for its disk.

pub(crate) mod blobs;
pub(crate) mod uses;
pub(crate) mod contexts;
pub(crate) mod parking;
pub(crate) mod workspace;
pub mod disk;

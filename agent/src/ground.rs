//! What sessions work on: repositories, worktrees, base contexts and bulk bytes of this machine,
//! and what is removed when they exceed its disk limits.

pub(crate) mod blobs;
pub mod port;
pub mod caches;
pub(crate) mod work_folder;
pub(crate) mod uses;
pub(crate) mod folders;
pub(crate) mod contexts;
pub(crate) mod parking;
pub(crate) mod pool;
pub(crate) mod workspace;
pub mod disk;

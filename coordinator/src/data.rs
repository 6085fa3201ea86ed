//! The data folder and its content besides the database: whether the two belong together, the
//! coordinator's secret and certificates, blobs, repositories, files about to be deleted, and when none
//! is.

pub(crate) mod custody;
pub(crate) mod folder;
pub(crate) mod secrets;
pub(crate) mod authority;
pub(crate) mod blobs;
pub(crate) mod repositories;
pub(crate) mod quarantine;
pub(crate) mod standstill;
pub(crate) mod stored;

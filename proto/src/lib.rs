//! The wire: `kage/v1/*.proto`, the types generated from them, and their conversion
//! to and from the domain types of `kage-core`.
//!
//! Wire types stop here: services decode into domain types at their edge, and
//! `tonic::Status` is built and read in `status` only.

#![warn(missing_docs)]

/// The generated types and services of package `kage.v1`. Their documentation is in the `.proto` files.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod v1 {
    tonic::include_proto!("kage.v1");
}

pub mod blob;
pub mod client;
pub mod codec;
pub mod convert;
pub mod stored;
pub mod json;
pub mod status;
pub mod unary;

pub mod decoders;

/// The encoded `FileDescriptorSet` of every `.proto` file, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kage.v1.bin"));

/// The newest agent protocol this build speaks.
pub const PROTOCOL: u32 = 1;
/// The oldest agent protocol this build speaks.
pub const PROTOCOL_MIN: u32 = 1;
/// The most bytes that travel inside a message; more goes over the blob plane.
pub const MAX_INLINE: usize = 64 << 10;
/// The largest message accepted.
pub const MAX_MESSAGE: usize = 1 << 20;
/// The largest message of TaskService, whose tasks have their whole prompt.
pub const MAX_TASK_MESSAGE: usize = kage_core::task::MAX_PROMPT_BYTES + (4 << 20);

//! Model providers that follow scripts and enforce the rules of the real ones. The demo and the
//! tests point `claude-api` and the real `claude` program at the Messages API here.
//!
//! ```text
//! request -> request (rules) -> model: script, turn -> fault -> error, cut, hang
//!                                                   -> reply -> cache accounting -> server: JSON | SSE
//! ```

mod script;
mod request;
mod cache;
mod reply;
mod model;
mod server;

pub use cache::CallUsage;
pub use model::{Answer, Recorded};
pub use script::{ApiError, Block, Fault, Matcher, Reply, Script, Turn};
pub use server::ScriptedServer;

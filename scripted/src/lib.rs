//! Model providers that follow scripts and enforce the rules of the real ones: the Messages API, the
//! Responses API, Gemini, chat completions and Ollama's own API, all on one port. The demo and the tests point adapters and real programs
//! here.
//!
//! ```text
//! request -> rules of its dialect -> model: script, turn -> rate limits -> 429
//!                                                        -> fault -> error, cut, hang
//!                                                        -> reply -> cache accounting -> server: JSON | SSE
//! ```

mod script;
mod request;
mod cache;
mod reply;
mod responses;
mod gemini;
mod chat;
mod ollama;
mod dialect;
mod limits;
mod model;
mod server;

pub use cache::CallUsage;
pub use limits::RateLimits;
pub use model::{Answer, Recorded};
pub use script::{ApiError, Block, Fault, Matcher, Reply, Script, Turn};
pub use server::ScriptedServer;

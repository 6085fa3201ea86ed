//! The command line: arguments, commands and output.
//!
//! It talks to a coordinator like any other client. `kage coordinator`, `kage agent run`
//! and `kage up` run the two libraries in this process.

mod config_file;
pub mod settings;
pub mod args;
pub mod assignments;
pub mod terminal;
pub mod table;
mod pager;
pub mod output;
pub mod view;
pub mod state;
mod machine;
mod running;
pub mod in_use;
pub mod connect;
pub mod http;
pub mod exit;
mod editor;
mod found;
pub mod watch;
mod live;
pub mod progress;
pub mod invocation;
pub mod here;
pub mod newest;
pub mod tasks;
mod listed;
mod verification;
mod transcript;
mod picked;
pub mod hold;
mod sent_contexts;
pub mod follow;
mod instructions;
mod common_texts;
pub mod contexts;
pub mod work_folder;
pub mod run_plan;
pub mod base;
mod agreed;
mod adapters;
mod conformance;
mod environment;
mod again;
mod landed_settings;
pub mod result;
pub mod landing;
mod service_manager;
mod daemon;
mod demo;
pub mod command;

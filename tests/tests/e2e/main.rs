//! Stories with real processes, for errors that only the wiring can have. One binary, so that the
//! programs under test are found and built once.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

mod network;
mod machines;

mod access;
mod adapters;
mod again;
mod backup;
mod budgets;
mod cancel;
mod chaos;
mod checkpoints;
mod claude_cli;
mod command_line;
mod config_files;
mod claude_code;
mod claude_code_moves;
mod courses;
mod crash;
mod deploy;
mod door;
mod environment;
mod errors;
mod gateway;
mod git_processes;
mod in_the_way;
mod installed;
mod json;
mod kept_verdicts;
mod landing;
mod local_models;
mod logins;
mod long_prompt;
mod mcp;
mod mirrors;
mod namespaces;
mod names;
mod odd_files;
mod places;
mod readme;
mod real_acp;
mod real_clis;
mod real_clis_faults;
mod real_clis_move;
mod recovery;
mod remote;
mod removal;
mod renewal;
mod rework;
mod risk;
mod selected;
mod shells;
mod slots;
mod steering;
mod suspicious;
mod terminal;
mod three_agents;
mod unfinished;
mod upgrade;
mod verdicts;
mod watching;
mod work_folder;
mod worktree;

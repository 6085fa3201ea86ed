//! Commands that an agent lets us run for it: in the session's box, with the environment that the agent itself has,
//! in the worktree. Output is kept within the limit that the agent names; what it leaves running ends with the session.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::files::Worktree;
use super::rpc::{RequestId, RpcError, code};
use crate::adapters::port::Reporter;
use crate::process::{Chunk, Command, Control, Environment, Limits, Runner, Status, Stdin};

/// Commands that are open at the same time.
const MAX_OPEN: usize = 16;
/// Commands that run at the same time: those that are open, and those that were released and are being ended.
const MAX_RUNNING: usize = 32;
/// Requests that wait for the end of a command at the same time. More of them are refused, and not left unread: what
/// ends the commands may come after them.
const MAX_WAITING: usize = 64;
/// Bytes of output that are kept, unless the agent wants fewer.
const KEPT: usize = 1 << 20;
/// Time between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(2);

/// What commands are run with.
#[derive(Debug)]
pub(super) struct Shell {
    pub(super) worktree: Worktree,
    pub(super) env: Environment,
    pub(super) runner: Runner,
    pub(super) frozen: watch::Receiver<bool>,
    pub(super) reporter: Reporter,
}

/// The commands of one session.
#[derive(Debug)]
pub(super) struct Terminals {
    shell: Shell,
    open: BTreeMap<String, Terminal>,
    number: u64,
    running: JoinSet<()>,
    /// Requests that are answered when a command ends.
    waiting: JoinSet<(RequestId, Value)>,
}

#[derive(Debug)]
struct Terminal {
    output: Arc<Mutex<Kept>>,
    stop: CancellationToken,
    ended: watch::Receiver<Option<Status>>,
}

/// The end of a command's output.
#[derive(Debug)]
struct Kept {
    bytes: Vec<u8>,
    limit: usize,
    truncated: bool,
}

impl Kept {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() > self.limit {
            self.truncated = true;
            let mut cut = self.bytes.len() - self.limit;
            // Not within a character.
            while self.bytes.get(cut).is_some_and(|byte| byte & 0xc0 == 0x80) {
                cut += 1;
            }
            self.bytes.drain(..cut);
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Create {
    command: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<EnvVariable>,
    #[serde(default)]
    cwd: Option<PathBuf>,
    #[serde(default)]
    output_byte_limit: Option<usize>,
}

#[derive(Debug, Deserialize)]
struct EnvVariable {
    name: String,
    value: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Named {
    terminal_id: String,
}

/// What becomes of a request.
#[derive(Debug)]
pub(super) enum Called {
    Answer(RequestId, Result<Value, RpcError>),
    /// It is answered by [`Terminals::ended`].
    Later,
}

impl Terminals {
    pub(super) fn new(shell: Shell) -> Self {
        Self {
            shell,
            open: BTreeMap::new(),
            number: 0,
            running: JoinSet::new(),
            waiting: JoinSet::new(),
        }
    }

    /// Carries out a request.
    pub(super) fn call(&mut self, id: RequestId, method: &str, params: Value) -> Called {
        if method == "terminal/create" {
            let created = serde_json::from_value(params).map_err(invalid);
            return Called::Answer(id, created.and_then(|create| self.create(create)));
        }
        let named: Result<Named, _> = serde_json::from_value(params).map_err(invalid);
        let name = match named {
            Ok(Named { terminal_id }) => terminal_id,
            Err(error) => return Called::Answer(id, Err(error)),
        };
        let Some(terminal) = self.open.get(&name) else {
            let error = RpcError::new(code::INVALID_PARAMS, "there is no such terminal");
            return Called::Answer(id, Err(error));
        };
        match method {
            "terminal/output" => Called::Answer(id, Ok(terminal.output())),
            "terminal/wait_for_exit" if self.waiting.len() >= MAX_WAITING => {
                let text = format!("{MAX_WAITING} requests wait for the end of a command already");
                Called::Answer(id, Err(RpcError::new(code::INTERNAL, text)))
            }
            "terminal/wait_for_exit" => {
                let mut ended = terminal.ended.clone();
                self.waiting.spawn(async move {
                    // Without its sender it has been given up.
                    let status = ended.wait_for(Option::is_some).await.ok().and_then(|status| *status);
                    (id, exit_status(status.unwrap_or(Status::Signal(9))))
                });
                Called::Later
            }
            "terminal/kill" => {
                terminal.stop.cancel();
                Called::Answer(id, Ok(json!({})))
            }
            "terminal/release" => {
                terminal.stop.cancel();
                self.open.remove(&name);
                Called::Answer(id, Ok(json!({})))
            }
            other => {
                let error = RpcError::new(code::UNKNOWN_METHOD, format!("{other} is no request about terminals"));
                Called::Answer(id, Err(error))
            }
        }
    }

    /// The next answer to a request that waited; for ever when none waits. Cancel-safe.
    pub(super) async fn ended(&mut self) -> (RequestId, Value) {
        loop {
            match self.waiting.join_next().await {
                Some(Ok(answered)) => return answered,
                // Nobody aborts them, and they do not panic.
                Some(Err(error)) => tracing::error!(%error, "a wait for a command broke"),
                None => return std::future::pending().await,
            }
        }
    }

    /// Ends every command, and waits until nothing of them is left.
    pub(super) async fn close(mut self) {
        for terminal in self.open.values() {
            terminal.stop.cancel();
        }
        self.waiting.abort_all();
        while self.running.join_next().await.is_some() {}
    }

    fn create(&mut self, create: Create) -> Result<Value, RpcError> {
        if self.open.len() >= MAX_OPEN {
            let text = format!("{MAX_OPEN} terminals are open: release one first");
            return Err(RpcError::new(code::INTERNAL, text));
        }
        while let Some(done) = self.running.try_join_next() {
            if let Err(error) = done {
                tracing::error!(%error, "a command of the agent's broke");
            }
        }
        if self.running.len() >= MAX_RUNNING {
            let text = format!("{MAX_RUNNING} commands run or are being ended: wait for one of them");
            return Err(RpcError::new(code::INTERNAL, text));
        }
        let cwd = match &create.cwd {
            Some(path) => self.shell.worktree.folder(path)?,
            None => self.shell.worktree.path().to_owned(),
        };
        let stop = CancellationToken::new();
        let (sender, ended) = watch::channel(None);
        let terminal = Terminal {
            output: Arc::new(Mutex::new(Kept {
                bytes: Vec::new(),
                limit: create.output_byte_limit.unwrap_or(KEPT).min(KEPT),
                truncated: false,
            })),
            stop: stop.clone(),
            ended,
        };
        let command = command(create, self.shell.env.clone(), cwd)?;
        let control = Control {
            stop,
            frozen: self.shell.frozen.clone(),
        };
        let limits = Limits {
            timeout: None,
            grace: GRACE,
        };
        let (runner, reporter, output) = (
            self.shell.runner.clone(),
            self.shell.reporter.clone(),
            Arc::clone(&terminal.output),
        );
        self.running.spawn(async move {
            // The reader below always reads.
            let (chunk_sender, mut chunks) = mpsc::channel::<Chunk>(4);
            let gather = async {
                while let Some(chunk) = chunks.recv().await {
                    reporter.alive();
                    let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
                    output.push(&chunk.bytes);
                }
            };
            let (run, ()) = tokio::join!(runner.run(command, limits, control, chunk_sender), gather);
            reporter.program_ended(&run);
            let status = match run {
                Ok(run) => run.status,
                Err(error) => {
                    let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
                    output.push(format!("{error}\n").as_bytes());
                    Status::Code(127)
                }
            };
            sender.send_replace(Some(status));
        });
        self.number += 1;
        let name = format!("terminal-{}", self.number);
        self.open.insert(name.clone(), terminal);
        Ok(json!({"terminalId": name}))
    }
}

impl Terminal {
    fn output(&self) -> Value {
        let status = *self.ended.borrow();
        let output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        let mut result = json!({
            "output": String::from_utf8_lossy(&output.bytes),
            "truncated": output.truncated,
        });
        if let Some(status) = status {
            result["exitStatus"] = exit_status(status);
        }
        result
    }
}

fn invalid(error: serde_json::Error) -> RpcError {
    RpcError::new(code::INVALID_PARAMS, error.to_string())
}

fn exit_status(status: Status) -> Value {
    match status {
        Status::Code(code) => json!({"exitCode": code, "signal": null}),
        Status::Signal(signal) => json!({"exitCode": null, "signal": signal.to_string()}),
    }
}

/// The command, with the agent's variables. One without arguments may be a line for a shell.
fn command(create: Create, env: Environment, cwd: PathBuf) -> Result<Command, RpcError> {
    let Create {
        command,
        args,
        env: variables,
        ..
    } = create;
    let mut words = Vec::new();
    for EnvVariable { name, value } in variables {
        if name.is_empty() || name.contains('=') {
            return Err(RpcError::new(code::INVALID_PARAMS, "a variable without a name"));
        }
        words.push(format!("{name}={value}"));
    }
    if args.is_empty() && command.contains(char::is_whitespace) {
        words.extend(["/bin/sh".to_owned(), "-c".to_owned(), command]);
    } else if command.starts_with('-') || command.contains('=') {
        // `env`, which sets the variables, would not take it for a command.
        return Err(RpcError::new(
            code::INVALID_PARAMS,
            format!("{command:?} is no command"),
        ));
    } else {
        words.push(command);
        words.extend(args);
    }
    if words.iter().any(|word| word.contains('\0')) {
        return Err(RpcError::new(code::INVALID_PARAMS, "a word with a NUL"));
    }
    Ok(Command {
        program: "/usr/bin/env".into(),
        args: words.into_iter().map(Into::into).collect(),
        env,
        cwd,
        stdin: Stdin::Null,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::acp::rpc::{Incoming, read};

    fn id() -> RequestId {
        match read(br#"{"id":1,"method":"x"}"#) {
            Incoming::Request { id, .. } => id,
            other => panic!("{other:?}"),
        }
    }

    fn answer(called: Called) -> Result<Value, RpcError> {
        match called {
            Called::Answer(_, result) => result,
            Called::Later => panic!("it waits"),
        }
    }

    #[tokio::test]
    async fn released_commands_and_waits_are_bounded_too() {
        let place = tempfile::tempdir().unwrap();
        let (reporter, _reports) = Reporter::channel(8);
        let (_freeze, frozen) = watch::channel(false);
        let mut terminals = Terminals::new(Shell {
            worktree: Worktree::open(place.path()).unwrap(),
            env: Environment::from_iter([("PATH", "/usr/local/bin:/usr/bin:/bin")]),
            runner: Runner::default(),
            frozen,
            reporter,
        });
        let create = |terminals: &mut Terminals| {
            let params = json!({"command": "sleep", "args": ["300"]});
            answer(terminals.call(id(), "terminal/create", params))
        };
        // Nothing runs in this test while nothing is awaited, so no command ends in between.
        let mut name = json!({});
        for number in 1..=MAX_RUNNING {
            name = create(&mut terminals).unwrap();
            if number < MAX_RUNNING {
                answer(terminals.call(id(), "terminal/release", name.clone())).unwrap();
            }
        }
        assert!(create(&mut terminals).unwrap_err().message.contains("commands run"));
        for _ in 0..MAX_WAITING {
            let called = terminals.call(id(), "terminal/wait_for_exit", name.clone());
            assert!(matches!(called, Called::Later), "{called:?}");
        }
        let refused = answer(terminals.call(id(), "terminal/wait_for_exit", name.clone())).unwrap_err();
        assert!(refused.message.contains("wait for the end"), "{refused:?}");
        answer(terminals.call(id(), "terminal/kill", name)).unwrap();
        terminals.close().await;
    }
}

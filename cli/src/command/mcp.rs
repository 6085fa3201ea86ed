//! `kage mcp`: a server of the Model Context Protocol on standard input and output, so that an AI tool can start
//! a race and look at its results. A call of a tool is a command that could have been typed ([`requests`]), and
//! its result is the JSON of that command. Nothing here lands a result: that stays with a person.
//!
//! A task takes longer than many clients wait for an answer. Clients with the protocol's tasks extension
//! (`io.modelcontextprotocol/tasks`) get a task of the protocol for `run` and `wait`. For the others `run` returns
//! at once, and `wait` after less than a minute; it sends notifications of progress to clients that ask for them.

use std::ffi::OsString;
use std::time::Duration;

use anyhow::Context as _;
use rmcp::handler::server::ServerHandler;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, CancelTaskParams, ContentBlock, CreateTaskResult,
    ErrorCode, GetTaskParams, GetTaskResult, Implementation, ListToolsResult, PaginatedRequestParams,
    ProgressNotificationParam, ProgressToken, ServerCapabilities, ServerConfig, Tool, UpdateTaskParams,
};
use rmcp::service::{Peer, RequestContext, RoleServer, ServiceExt as _};
use rmcp::task_manager::{TaskContext, TaskExit, TaskManager, TaskOptions};
use rmcp::{ErrorData, transport};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_util::task::LocalPoolHandle;

use crate::args::{self, Format};
use crate::connect::Access;
use crate::exit::{self, Exit};
use crate::invocation::Invocation;
use crate::output::{Kept, Output};
use crate::settings;
use crate::state::StateDir;
use crate::tasks;

use requests::{Diff, DryRun, Explain, List, OfTask, Run, Wait};
use tools::Name;

mod requests;
mod tools;
mod waiting;

/// How long the result of a protocol task is kept at least: a client may ask for it the next morning.
const KEPT_MILLIS: u64 = 24 * 60 * 60 * 1000;
const POLL_MILLIS: u64 = 1_000;
/// Threads for commands. Others wait for one that has nothing to do but wait itself.
const COMMANDS: usize = 2;

pub(super) async fn run(invocation: &Invocation) -> anyhow::Result<Exit> {
    let server = Server {
        state: invocation.state.clone(),
        threads: LocalPoolHandle::new(COMMANDS),
        running: TaskManager::new(),
    };
    let running = server.running.clone();
    let begun = Box::pin(server.serve(transport::stdio())).await;
    let serving = begun.context("the client did not begin")?;
    // Until the client closes standard input. Tasks of Kage go on: the daemon has them.
    serving.waiting().await.context("the server broke off")?;
    running.shutdown();
    Ok(Exit::Done)
}

#[derive(Clone)]
struct Server {
    state: StateDir,
    /// Where commands run.
    threads: LocalPoolHandle,
    /// The tasks of the protocol.
    running: TaskManager,
}

/// What a command printed, or why it failed.
type Answer = anyhow::Result<Value>;

impl Server {
    /// A command as it would have been typed.
    async fn typed(&self, command: Vec<OsString>) -> Answer {
        let line = std::iter::once("kage".into()).chain(command).collect();
        let cli = args::parse(line).map_err(|error| exit::mistake(&error))?;
        let (invocation, kept) = self.invocation()?;
        // Commands are written for one thread.
        let carried_out = self.threads.spawn_pinned(|| super::carry_out(invocation, cli.command));
        carried_out.await.context("a command broke off")??;
        document(&kept)
    }

    /// An invocation whose results are kept. Settings may have changed since the last one.
    fn invocation(&self) -> anyhow::Result<(Invocation, Kept)> {
        let (out, kept) = Output::kept(Format::Json);
        let invocation = Invocation {
            settings: settings::load()?,
            state: self.state.clone(),
            out,
        };
        Ok((invocation, kept))
    }

    /// Answers a call at once, or for a task that goes on with the access to it.
    async fn call(&self, name: Name, arguments: Value) -> anyhow::Result<Called> {
        let command = match name {
            Name::Run => {
                let stored = self.typed(read::<Run>(arguments)?.command()?).await?;
                let task = stored["id"].as_str().context("a stored task has an id")?.to_owned();
                return Ok(Called::Running {
                    task: Some(task),
                    limit: None,
                    stored: Some(stored),
                });
            }
            Name::Wait => {
                let wait: Wait = read(arguments)?;
                return Ok(Called::Running {
                    task: wait.task,
                    limit: Some(Duration::from_secs(wait.seconds.into())),
                    stored: None,
                });
            }
            Name::List => {
                let tasks = self.typed(read::<List>(arguments)?.command()).await?;
                // The result of a tool is an object.
                return Ok(Called::Done(json!({ "tasks": tasks })));
            }
            Name::Show => read::<OfTask>(arguments)?.command("show"),
            Name::Report => read::<OfTask>(arguments)?.command("compare"),
            Name::Cancel => read::<OfTask>(arguments)?.command("stop"),
            Name::Diff => read::<Diff>(arguments)?.command()?,
            Name::DryRun => read::<DryRun>(arguments)?.command(),
            Name::Explain => read::<Explain>(arguments)?.command()?,
        };
        Ok(Called::Done(self.typed(command).await?))
    }
}

/// How a call went.
enum Called {
    Done(Value),
    /// A task goes on.
    Running {
        /// `None`: the newest.
        task: Option<String>,
        /// How long a client without protocol tasks waits.
        limit: Option<Duration>,
        /// What such a client gets at once.
        stored: Option<Value>,
    },
}

/// Sends a notification of progress to a client that asked for them. `sent` counts them: how many sessions have
/// ended may stay the same, and progress may not.
async fn tell_progress(peer: Peer<RoleServer>, token: Option<ProgressToken>, sent: u32, step: waiting::Step) {
    let Some(token) = token else { return };
    let progress = ProgressNotificationParam::new(token, f64::from(sent)).with_message(step.words);
    // A client that does not listen any more has also given the call up.
    drop(peer.notify_progress(progress).await);
}

/// Waits as a task of the protocol. One that `run` began is stopped when the client cancels it.
async fn as_protocol_task(
    server: Server,
    access: Access,
    task: kage_proto::v1::Task,
    stops: bool,
    context: TaskContext,
) -> Result<CallToolResult, TaskExit> {
    let id = task.id.clone();
    let end = async {
        let (invocation, kept) = server.invocation()?;
        let told = |step: waiting::Step| {
            context.set_status_message(step.words);
            std::future::ready(())
        };
        waiting::wait(&invocation.out, &access, task, None, told).await?;
        document(&kept)
    };
    let ended = tokio::select! {
        ended = end => ended,
        () = context.cancelled() => {
            if stops && let Err(error) = tasks::cancel(&access, &id).await {
                return Ok(answer(Err(error)));
            }
            return Err(TaskExit::Cancelled);
        }
    };
    Ok(answer(ended))
}

impl ServerHandler for Server {
    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder().enable_tools().enable_tasks().build();
        let about = Implementation::new("kage", env!("CARGO_PKG_VERSION")).with_title("Kage Bunshin");
        ServerConfig::new(capabilities)
            .with_server_info(about)
            .with_instructions(tools::INSTRUCTIONS)
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(tools::all()))
    }

    fn get_tool(&self, name: &str) -> Option<Tool> {
        Name::of(name).map(Name::tool)
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let Some(name) = Name::of(&request.name) else {
            let message = format!("there is no tool `{}`", request.name);
            return Err(ErrorData::new(ErrorCode::INVALID_PARAMS, message, None));
        };
        let arguments = Value::Object(request.arguments.unwrap_or_default());
        let called = match self.call(name, arguments).await {
            Ok(called) => called,
            Err(error) => return Ok(answer(Err(error)).into()),
        };
        let takes_tasks = context
            .client_capabilities()
            .is_some_and(|client| client.supports_tasks());
        let (task, limit) = match called {
            Called::Done(value) => return Ok(answer(Ok(value)).into()),
            Called::Running {
                stored: Some(stored), ..
            } if !takes_tasks => return Ok(answer(Ok(stored)).into()),
            Called::Running { task, limit, .. } => (task, limit),
        };
        let begun = async {
            let (invocation, kept) = self.invocation()?;
            let access = invocation.existing().await?;
            let task = tasks::find(&access, task).await?;
            anyhow::Ok((invocation, kept, access, task))
        };
        let (invocation, kept, access, task) = match begun.await {
            Ok(begun) => begun,
            Err(error) => return Ok(answer(Err(error)).into()),
        };
        if takes_tasks {
            let options = TaskOptions::new()
                .with_ttl_ms(KEPT_MILLIS)
                .with_poll_interval_ms(POLL_MILLIS);
            let server = self.clone();
            let task = self.running.spawn(options, |context| {
                Box::pin(as_protocol_task(server, access, task, name == Name::Run, context))
            });
            return Ok(CallToolResponse::Task(CreateTaskResult::new(task)));
        }
        let token = context.meta.get_progress_token();
        let mut sent = 0;
        let told = |step| {
            sent += 1;
            tell_progress(context.peer.clone(), token.clone(), sent, step)
        };
        let waited = waiting::wait(&invocation.out, &access, task, limit, told).await;
        Ok(answer(waited.and_then(|()| document(&kept))).into())
    }

    async fn get_task(
        &self,
        request: GetTaskParams,
        _: RequestContext<RoleServer>,
    ) -> Result<GetTaskResult, ErrorData> {
        self.running.get_task(&request.task_id).map(GetTaskResult::new)
    }

    async fn update_task(&self, request: UpdateTaskParams, _: RequestContext<RoleServer>) -> Result<(), ErrorData> {
        self.running.update_task(&request.task_id, request.input_responses)
    }

    async fn cancel_task(&self, request: CancelTaskParams, _: RequestContext<RoleServer>) -> Result<(), ErrorData> {
        self.running.cancel_task(&request.task_id)
    }
}

/// The arguments of a tool.
fn read<T: DeserializeOwned>(arguments: Value) -> Result<T, exit::Refusal> {
    serde_json::from_value(arguments).map_err(|error| exit::Refusal::usage(format!("the arguments: {error}")))
}

/// The JSON document that a command printed.
fn document(kept: &Kept) -> Answer {
    serde_json::from_slice(&kept.bytes()).context("a command prints one document")
}

/// A result for the model, or an error with what can be done about it.
fn answer(answer: Answer) -> CallToolResult {
    match answer {
        Ok(value) => CallToolResult::structured(value),
        Err(error) => {
            let (words, json) = exit::told(&error);
            CallToolResult::error(vec![ContentBlock::text(words), ContentBlock::text(json)])
        }
    }
}

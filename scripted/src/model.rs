//! The scripted model: decides what each request is answered, and records it. It checks the
//! headers, finds the script and the turn, and keeps the prompt cache. It does not know HTTP
//! beyond headers; the server sends what is decided here.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use http::HeaderMap;
use serde_json::Value;

use crate::cache::{Accounting, CallUsage, PromptCache, drawn, head_tokens, prompt_tokens, tokens};
use crate::dialect::{Dialect, Message};
use crate::limits::{Limiter, RateLimits, Standing};
use crate::ollama;
use crate::request::{Endpoint, Request};
use crate::script::{ApiError, Block, Fault, Script, Turn};

/// The word in `anthropic-beta` without which no conversation is made shorter.
const COMPACTION: &str = "compact-2026-01-12";
/// What the model says of a conversation that is made shorter.
const SUMMARY: &str = "Summary: the task is under way, and files were read.";

/// A request as it came, and what it was answered.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// Path and query.
    pub path: String,
    /// Headers as they came, keys included.
    pub headers: HeaderMap,
    /// The body; `null` when it was not JSON.
    pub body: Value,
    /// Name of the script that matched.
    pub script: Option<String>,
    pub answer: Answer,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The turn's reply, whole.
    Reply(CallUsage),
    /// The turn's reply, broken off.
    Broken(CallUsage),
    Count(u64),
    /// An error of a script, or because a rule was broken.
    Error(ApiError),
    Hang,
}

/// The state behind the port. Requests are kept forever: a demo or a test is short.
#[derive(Debug, Default)]
pub(crate) struct Model {
    scripts: Vec<Script>,
    /// Faults used up, by script and turn.
    met: HashMap<(usize, usize), usize>,
    cache: PromptCache,
    /// The seed of counts, where they are drawn.
    drawn: Option<u64>,
    limiter: Limiter,
    requests: Vec<Recorded>,
}

/// A request that was decided on.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) number: u64,
    pub(crate) plan: Plan,
    /// How the account's limits stand now.
    pub(crate) standing: Option<Standing>,
}

/// What to do about a request, decided in one go.
#[derive(Debug)]
pub(crate) enum Plan {
    Error(ApiError),
    Hang,
    Count(u64),
    Reply {
        message: Box<Message>,
        accounting: Accounting,
        delay: Duration,
        pace: Duration,
        stream: bool,
        end: End,
    },
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum End {
    Whole,
    CutAfter(usize),
    CutBeforeLast,
    ErrorAfter(usize, ApiError),
}

impl Model {
    pub(crate) fn new(scripts: Vec<Script>) -> Self {
        Self {
            scripts,
            ..Self::default()
        }
    }

    pub(crate) fn add(&mut self, script: Script) {
        self.scripts.push(script);
    }

    /// Draws all counts from now on.
    pub(crate) fn draw_counts(&mut self, seed: u64) {
        self.drawn = Some(seed);
    }

    /// Sets the rate limits of every account, from the next request on.
    pub(crate) fn limit(&mut self, limits: Option<RateLimits>) {
        self.limiter.set(limits);
    }

    /// Every request so far, in the order of arrival.
    pub(crate) fn requests(&self) -> &[Recorded] {
        &self.requests
    }

    /// The answer begins: from now on others can read what it wrote to the cache.
    pub(crate) fn begin(&mut self, accounting: &Accounting) {
        self.cache.begin(accounting);
    }

    /// Decides and records. `now` is when the request arrived.
    pub(crate) fn take(
        &mut self,
        path: String,
        headers: HeaderMap,
        body: &[u8],
        endpoint: Endpoint,
        now: Instant,
    ) -> Taken {
        let number = self.requests.len() as u64 + 1;
        let json = serde_json::from_slice(body).unwrap_or(Value::Null);
        let mut script = None;
        let mut standing = None;
        let dialect = endpoint.dialect();
        let plan = dialect
            .authorize(&headers)
            .and_then(|key| Ok((key, endpoint.parse(&path, &json)?)))
            .and_then(|(key, request)| {
                let beta = headers.get("anthropic-beta").and_then(|value| value.to_str().ok());
                let listed = beta.is_some_and(|list| list.split(',').any(|item| item.trim() == COMPACTION));
                if request.compact_at.is_some() && !listed {
                    return Err(ApiError::invalid("context_management: Extra inputs are not permitted"));
                }
                if endpoint.counts() {
                    return Ok(Plan::Count(prompt_tokens(&request)));
                }
                let index = self.script_for(&request, &key, dialect)?;
                script = Some(self.scripts[index].name.clone());
                self.plan(number, index, dialect, &request, &key, now, &mut standing)
            })
            .unwrap_or_else(Plan::Error);
        let answer = match &plan {
            Plan::Error(error) => Answer::Error(error.clone()),
            Plan::Hang => Answer::Hang,
            Plan::Count(count) => Answer::Count(*count),
            Plan::Reply { message, end, .. } => match end {
                End::Whole => Answer::Reply(message.usage()),
                End::CutAfter(_) | End::CutBeforeLast | End::ErrorAfter(..) => Answer::Broken(message.usage()),
            },
        };
        self.requests.push(Recorded {
            path,
            headers,
            body: json,
            script,
            answer,
        });
        Taken { number, plan, standing }
    }

    fn script_for(&self, request: &Request, key: &str, dialect: Dialect) -> Result<usize, ApiError> {
        self.scripts
            .iter()
            .position(|script| script.matcher.matches(&request.model, &request.prompt, key))
            .ok_or_else(|| dialect.no_model(&request.model))
    }

    #[expect(clippy::too_many_arguments, reason = "one request, taken apart")]
    fn plan(
        &mut self,
        number: u64,
        index: usize,
        dialect: Dialect,
        request: &Request,
        key: &str,
        now: Instant,
        standing: &mut Option<Standing>,
    ) -> Result<Plan, ApiError> {
        let script = &self.scripts[index];
        let turn = script
            .turns
            .get(request.turn)
            .ok_or_else(|| ApiError::invalid(format!("script {} has no turn {}", script.name, request.turn)))?;
        let met = self.met.entry((index, request.turn)).or_default();
        let fault = turn.faults.get(*met);
        let is_answered = match fault {
            None | Some(Fault::Cut { .. } | Fault::CutBeforeLast) => true,
            Some(Fault::ErrorEvent { .. }) => request.stream,
            Some(Fault::Error(_) | Fault::Hang) => false,
        };
        if is_answered {
            check_tools(script, turn, request)?;
        }
        let mut accounting = self.cache.look_up(key, request, now);
        if let Some(room) = request.room {
            accounting.usage.input = ollama::fitted(accounting.usage.input, room)?;
        }
        if let Some(seed) = self.drawn {
            accounting.usage = drawn(seed, number, accounting.usage);
        }
        let shortened = request.compact_at.filter(|at| prompt_tokens(request) >= *at).map(|_| {
            let cost = CallUsage {
                output: tokens(SUMMARY.len()),
                ..accounting.usage
            };
            // The answer follows from the tools, the system prompt and the summary.
            accounting.usage = CallUsage {
                input: head_tokens(request) + tokens(SUMMARY.len()),
                ..CallUsage::default()
            };
            cost
        });
        let mut message = dialect.message(number, request, &turn.reply, accounting.usage);
        if let Some(cost) = shortened {
            message = message.after_summary(SUMMARY, cost);
        }
        let used = if is_answered {
            message.usage()
        } else {
            CallUsage::default()
        };
        if let Some((stands, admitted)) = self.limiter.admit(dialect, key, used, now) {
            *standing = Some(stands);
            admitted?;
        }
        *met += usize::from(fault.is_some());
        let end = match fault {
            None => End::Whole,
            Some(Fault::Error(error)) => return Ok(Plan::Error(error.clone())),
            Some(Fault::Hang) => return Ok(Plan::Hang),
            Some(Fault::ErrorEvent { error, .. }) if !request.stream => return Ok(Plan::Error(error.clone())),
            Some(Fault::ErrorEvent { after_events, error }) => End::ErrorAfter(*after_events, error.clone()),
            Some(Fault::Cut { after_events }) => End::CutAfter(*after_events),
            Some(Fault::CutBeforeLast) => End::CutBeforeLast,
        };
        Ok(Plan::Reply {
            message: Box::new(message),
            accounting,
            delay: turn.reply.delay,
            pace: turn.reply.pace,
            stream: request.stream,
            end,
        })
    }
}

/// A script that calls a tool which the request does not offer is wrong.
fn check_tools(script: &Script, turn: &Turn, request: &Request) -> Result<(), ApiError> {
    for block in &turn.reply.blocks {
        if let Block::ToolUse { name, .. } = block
            && !request.tools.contains(name)
        {
            return Err(ApiError::invalid(format!(
                "script {} calls tool {name}, which the request does not offer",
                script.name
            )));
        }
    }
    Ok(())
}

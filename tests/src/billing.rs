//! What a provider bills for the prompts of sessions that share a beginning, and what it would bill for the same
//! prompts otherwise: without a cache, and of sessions that each cache for themselves. The other two are not
//! computed: the requests that were made are made once more, of a provider with the same rules.
//!
//! Amounts are in tokens of uncached input. Answers cost the same in every case and are left out.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use kage_scripted::{Answer, Block, CallUsage, Matcher, Recorded, Reply, Script, ScriptedServer, Turn};
use serde_json::{Value, json};

/// What a token costs that is read from the cache: newer models, older ones, the largest.
pub const READS: [f64; 3] = [0.05, 0.1, 0.025];

/// The model whose prompts are counted. It caches from 512 tokens on.
pub const MODEL: &str = "claude-sonnet-5-5";
/// Calls of each session.
pub const TURNS: usize = 5;
/// Tokens that each turn adds: what the model says and what its tool gives.
pub const NEW: u64 = 600;
/// Bytes that the answer of a tool has.
const TOOL_BYTES: usize = 1_200;
/// Bytes that the model says before it calls a tool.
const SAID_BYTES: usize = 900;

/// A session of [`TURNS`] calls whose conversation grows by about [`NEW`] tokens each time. `tool` is a shell.
#[must_use]
pub fn script(name: &str, tool: &str) -> Script {
    let turns = (1..TURNS).map(|turn| {
        let words = format!("step {turn} ").repeat(SAID_BYTES / 7);
        let command = format!("printf '%{TOOL_BYTES}s' {turn} | tr ' ' x | tee -a notes.txt");
        let call = json!({ "command": command });
        Turn::from(Reply::new([Block::Text(words), Block::tool(tool, call)]))
    });
    Script::new(name, Matcher::model(MODEL), turns.chain([Turn::say("done")]))
}

/// A text of so many tokens, which says nothing.
#[must_use]
pub fn text(tokens: usize) -> String {
    "This is one of the rules of this project, as every session reads it. "
        .chars()
        .cycle()
        .take(tokens * 4)
        .collect()
}

/// The calls that were answered whole, in the order of arrival.
pub fn calls(requests: &[Recorded]) -> Vec<CallUsage> {
    let usage = |request: &Recorded| match request.answer {
        Answer::Reply(usage) => Some(usage),
        Answer::Broken(_) | Answer::Count(_) | Answer::Error(_) | Answer::Hang => None,
    };
    requests.iter().filter_map(usage).collect()
}

/// The tokens of the prompts, whatever they cost.
#[must_use]
pub fn prompts(calls: &[CallUsage]) -> u64 {
    let of = |call: &CallUsage| call.input + call.cache_read + call.cache_write_5m + call.cache_write_1h;
    calls.iter().map(of).sum()
}

/// What prompts cost, where reading costs `read` of uncached input.
#[must_use]
pub fn bill(calls: &[CallUsage], read: f64) -> f64 {
    let of = |call: &CallUsage| {
        call.input as f64
            + 1.25 * call.cache_write_5m as f64
            + 2.0 * call.cache_write_1h as f64
            + read * call.cache_read as f64
    };
    calls.iter().map(of).sum()
}

/// The same prompts, billed in three ways.
#[derive(Debug)]
pub struct Bills {
    /// As they were.
    pub run: Vec<CallUsage>,
    /// With a cache for each session alone.
    pub apart: Vec<CallUsage>,
    /// Without a cache.
    pub uncached: Vec<CallUsage>,
    /// How many sessions there were.
    pub sessions: usize,
}

impl Bills {
    /// Of everything that was asked of a provider.
    ///
    /// # Errors
    /// When the requests are not of sessions that ended, or are not answered a second time.
    pub async fn of(requests: &[Recorded]) -> anyhow::Result<Self> {
        let answered: Vec<&Recorded> = requests
            .iter()
            .filter(|request| matches!(request.answer, Answer::Reply(_)))
            .collect();
        let sessions = sessions(&answered)?;
        let apart: Vec<(String, Value)> = answered
            .iter()
            .zip(&sessions)
            .map(|(request, session)| (format!("session-{session}"), request.body.clone()))
            .collect();
        let mut uncached = apart.clone();
        uncached.iter_mut().for_each(|(_, body)| without_breakpoints(body));
        let bills = Self {
            run: calls(requests),
            apart: again(&apart).await?,
            uncached: again(&uncached).await?,
            sessions: sessions.iter().max().map_or(0, |last| last + 1),
        };
        ensure!(
            prompts(&bills.run) == prompts(&bills.apart) && prompts(&bills.run) == prompts(&bills.uncached),
            "the same prompts have other lengths"
        );
        Ok(bills)
    }

    /// What was billed, of what it would have been without a cache.
    #[must_use]
    pub fn of_uncached(&self, read: f64) -> f64 {
        bill(&self.run, read) / bill(&self.uncached, read)
    }

    /// What was billed, of what it would have been if each session cached for itself.
    #[must_use]
    pub fn of_apart(&self, read: f64) -> f64 {
        bill(&self.run, read) / bill(&self.apart, read)
    }

    /// How often so many tokens at the beginning were written at once.
    #[must_use]
    pub fn writes_of(&self, tokens: u64) -> usize {
        let is_write = |call: &&CallUsage| call.cache_write_5m + call.cache_write_1h + call.input >= tokens;
        self.run.iter().filter(is_write).count()
    }
}

/// The session of each request, as a number. A conversation is known by the first tool that its model called, and
/// goes on from a first request with the same words.
fn sessions(requests: &[&Recorded]) -> anyhow::Result<Vec<usize>> {
    let (mut waiting, mut known) = (BTreeMap::<String, Vec<usize>>::new(), BTreeMap::new());
    let (mut all, mut count) = (Vec::new(), 0);
    for request in requests {
        let messages = request.body["messages"].as_array().context("a request has messages")?;
        let opening = words(messages.first().context("a conversation begins")?);
        let called = messages
            .iter()
            .flat_map(blocks)
            .find(|block| block["type"] == "tool_use");
        let session = match called.map(|call| call["id"].to_string()) {
            None => {
                waiting.entry(opening).or_default().push(count);
                count += 1;
                count - 1
            }
            Some(id) => match known.get(&id) {
                Some(session) => *session,
                None => {
                    let session = waiting.get_mut(&opening).and_then(Vec::pop);
                    let session = session.context("a conversation goes on that did not begin")?;
                    known.insert(id, session);
                    session
                }
            },
        };
        all.push(session);
    }
    Ok(all)
}

fn blocks(message: &Value) -> impl Iterator<Item = &Value> {
    message["content"].as_array().into_iter().flatten()
}

/// The text of a message, without where its breakpoints are.
fn words(message: &Value) -> String {
    let mut message = message.clone();
    without_breakpoints(&mut message);
    message.to_string()
}

fn without_breakpoints(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("cache_control");
            fields.values_mut().for_each(without_breakpoints);
        }
        Value::Array(values) => values.iter_mut().for_each(without_breakpoints),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Makes requests again, each with a key, one after the other.
async fn again(requests: &[(String, Value)]) -> anyhow::Result<Vec<CallUsage>> {
    let turns = (0..2 * TURNS).map(|_| Turn::say("again"));
    let server = ScriptedServer::start(vec![Script::new("again", Matcher::any(), turns)]).await?;
    let _already_there = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::new();
    for (key, body) in requests {
        let response = client
            .post(format!("{}/v1/messages", server.url()))
            .header("x-api-key", key)
            .header("anthropic-version", "2023-06-01")
            .json(body)
            .send()
            .await?;
        ensure!(response.status().is_success(), "{}", response.text().await?);
        response.bytes().await?;
    }
    Ok(calls(&server.requests()))
}

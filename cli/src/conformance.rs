//! Whether an adapter keeps to what Kage expects of it: it is run against a scripted provider on this
//! machine, a step after the other, and each step is judged by what it did, what its output said and what the
//! provider saw. No key leaves the machine: every variable that could hold one has a value of the check's own.

mod tools;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use kage_agent::adapters::AdapterConfig;
use kage_agent::adapters::cli::manifest::Manifest;
use kage_agent::adapters::port::{Adapter, AdapterEnd, Beginning, Report, Reporter, Resumes, SessionInput};
use kage_agent::process::AgentEnvironment;
use kage_core::event::EventBody;
use kage_core::failure::FailureKind;
use kage_core::id::AttemptId;
use kage_core::prompt::Prompt;
use kage_core::usage::Usage;
use kage_scripted::{Answer, ApiError, Fault, Matcher, Script, ScriptedServer, Turn};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::exit::Refusal;

/// How long one run may take.
const RUN: Duration = Duration::from_secs(120);
/// How long a program may take to end when it is stopped.
const END: Duration = Duration::from_secs(30);
/// The file that the model of the check writes.
const FILE: &str = "made-by-the-check.txt";

/// Variables with addresses of providers, and what follows the server's address.
const ADDRESSES: [(&str, &str); 5] = [
    ("ANTHROPIC_BASE_URL", ""),
    ("OPENAI_BASE_URL", "/v1"),
    ("GOOGLE_GEMINI_BASE_URL", ""),
    ("COPILOT_PROVIDER_BASE_URL", "/v1"),
    ("KIMI_MODEL_BASE_URL", "/v1"),
];
/// Other variables of programs for a provider at another address.
const OTHERS: [(&str, &str); 2] = [
    ("COPILOT_PROVIDER_TYPE", "openai"),
    ("COPILOT_PROVIDER_WIRE_API", "completions"),
];

/// How a step came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    Holds,
    Missing,
    /// The adapter does not promise it.
    NotOffered,
}

/// What was found in a step.
#[derive(Debug, Serialize)]
pub(crate) struct Finding {
    pub(crate) step: &'static str,
    pub(crate) verdict: Verdict,
    pub(crate) detail: String,
}

impl Finding {
    fn of(step: &'static str, outcome: Result<String, String>) -> Self {
        let (verdict, detail) = match outcome {
            Ok(detail) => (Verdict::Holds, detail),
            Err(detail) => (Verdict::Missing, detail),
        };
        Self { step, verdict, detail }
    }
}

/// The environment in which the programs of a manifest find the server, and no key of the person's.
fn environment(manifest: &Manifest, url: &str) -> AgentEnvironment {
    let mut all: BTreeMap<OsString, OsString> = std::env::vars_os().collect();
    let mut set = |name: &str, value: String| drop(all.insert(name.into(), value.into()));
    let (secret, require) = (&manifest.env.secret, &manifest.env.require);
    for name in if secret.is_empty() { require } else { secret } {
        set(name, "sk-of-the-check".to_owned());
    }
    for name in &manifest.network.from {
        set(name, format!("{url}/v1"));
    }
    for (name, path) in ADDRESSES {
        set(name, format!("{url}{path}"));
    }
    for (name, value) in OTHERS {
        set(name, value.to_owned());
    }
    for name in ["NO_PROXY", "no_proxy"] {
        set(name, "127.0.0.1".to_owned());
    }
    // What lets it in without a key, as a folder with the person's login.
    for name in require
        .iter()
        .filter(|name| !secret.is_empty() && !secret.contains(name))
    {
        all.remove(std::ffi::OsStr::new(name));
    }
    AgentEnvironment::new(all)
}

/// The check of one adapter.
pub(crate) struct Check<'a> {
    manifest: &'a Manifest,
    adapter: Arc<dyn Adapter>,
    server: ScriptedServer,
    model: Option<String>,
    /// A folder of its own.
    root: PathBuf,
}

/// One run of the adapter.
struct Run {
    end: AdapterEnd,
    usage: Usage,
    /// Its conversation as it goes on elsewhere.
    said: Option<Vec<u8>>,
    worktree: PathBuf,
}

impl<'a> Check<'a> {
    /// Prepares a check below this folder. `config` makes the configuration of adapters for an environment.
    ///
    /// # Errors
    /// When the server cannot be started, or the adapter cannot be used here.
    pub(crate) async fn prepare(
        manifest: &'a Manifest,
        model: Option<String>,
        root: PathBuf,
        config: impl FnOnce(AgentEnvironment) -> anyhow::Result<AdapterConfig>,
    ) -> anyhow::Result<Self> {
        // The first one whose words are in the prompt answers: a conversation that goes on has those of
        // earlier steps too.
        let done = std::iter::repeat_n(Turn::say("I am done."), 16);
        let server =
            ScriptedServer::start(vec![Script::new("resume", Matcher::marker(marker("resume")), done)]).await?;
        let registry = kage_agent::adapters::load(config(environment(manifest, &server.url()))?).await?;
        let adapter = registry
            .get(&manifest.name)
            .with_context(|| format!("there is no adapter {}", manifest.name))?;
        if let Some(problem) = adapter.info().unavailable {
            return Err(Refusal::usage(format!("{} cannot be used here: {problem}", manifest.name)).into());
        }
        Ok(Self {
            manifest,
            adapter: Arc::clone(adapter),
            server,
            model,
            root,
        })
    }

    /// Runs every step.
    ///
    /// # Errors
    /// When the check itself cannot be run.
    pub(crate) async fn run(&self) -> anyhow::Result<Vec<Finding>> {
        let mut findings = Vec::new();
        self.script("call", 0, [Turn::say("Hello.")]);
        let run = self.in_time("call", Beginning::New).await?;
        let answered = self.server.requests_of("call");
        let Some(first) = answered.first() else {
            let why = match self.server.requests().last() {
                Some(request) => format!("its call was refused: {:?}", request.answer),
                None => {
                    "no call reached the scripted provider: [network] from names the variable of its address, and a \
                         program with several providers needs --model"
                        .to_owned()
                }
            };
            findings.push(Finding::of(
                "call",
                Err(format!("{why}; it ended so: {}", words(&run.end))),
            ));
            return Ok(findings);
        };
        let examples = tools::examples(&first.body);
        // A call before the one with the task may have no tools.
        let turn = answered
            .iter()
            .find_map(|request| tools::write(self.manifest.family(), &request.body, FILE));
        // Whoever makes up examples hears the first of them again: the answer came at another turn.
        let call = match &run.end {
            AdapterEnd::Done { .. } => Ok("it calls its provider, and says when it is done".to_owned()),
            _ if examples > 0 => Ok("it calls its provider".to_owned()),
            end => Err(format!("the model answered, and it ended so: {}", words(end))),
        };
        findings.push(Finding::of("call", call));

        let mut said = None;
        if let Some(turn) = turn {
            // An answer may be asked for again, with the files that it named.
            let again = if examples > 0 { 6 } else { 1 };
            let turns = std::iter::repeat_n(turn, again).chain([Turn::say("I wrote the file.")]);
            self.script("edit", examples, turns);
            let run = self.in_time("edit", Beginning::New).await?;
            findings.push(Finding::of("edit", edited(&run)));
            findings.push(Finding::of("tokens", self.counted("edit", run.usage)));
            said = run.said;
        } else {
            let why = "none of the tools of its call runs a command in a way that is known here: not tried";
            findings.push(Finding::of("edit", Err(why.to_owned())));
        }
        findings.push(Finding::of("refused key", self.refused(examples).await?));
        findings.push(Finding::of("stop", self.stopped(examples).await?));
        findings.push(self.resumed(said).await?);
        Ok(findings)
    }

    /// A provider that refuses the key: the failure has its class.
    async fn refused(&self, examples: usize) -> anyhow::Result<Result<String, String>> {
        let refusal = ApiError::new(401, "authentication_error", "Incorrect API key provided: sk-...eck.");
        let mut turn = Turn::say("It is never said.");
        turn.faults = vec![Fault::Error(refusal.with_code("invalid_api_key")); 100];
        self.script("refused", examples, [turn]);
        Ok(match self.in_time("refused", Beginning::New).await?.end {
            AdapterEnd::Failed(failure) if failure.kind == FailureKind::Auth => Ok(failure.message),
            end => Err(format!(
                "HTTP 401 is the failure `auth`, and it ended so: {}",
                words(&end)
            )),
        })
    }

    /// A provider that says nothing: the program ends when it is stopped, as when its time is over.
    async fn stopped(&self, examples: usize) -> anyhow::Result<Result<String, String>> {
        let mut turn = Turn::say("It is never said.");
        turn.faults = vec![Fault::Hang; 100];
        self.script("stop", examples, [turn]);
        let stop = CancellationToken::new();
        let halt = async {
            let called = async {
                let mut often = tokio::time::interval(Duration::from_millis(50));
                while self.server.requests_of("stop").is_empty() {
                    often.tick().await;
                }
            };
            let called = tokio::time::timeout(RUN, called).await.is_ok();
            stop.cancel();
            called
        };
        let both = async { tokio::join!(self.once("stop", Beginning::New, stop.clone()), halt) };
        let Ok((run, called)) = tokio::time::timeout(RUN + END, both).await else {
            return Ok(Err(format!("it still runs {} s after it was stopped", END.as_secs())));
        };
        Ok(match (run?.end, called) {
            (AdapterEnd::Stopped, true) => Ok("it ends while its provider says nothing".to_owned()),
            (end, true) => Err(format!("it was stopped, and ended so: {}", words(&end))),
            (_, false) => Err("it made no call".to_owned()),
        })
    }

    /// A conversation that goes on in another folder.
    async fn resumed(&self, said: Option<Vec<u8>>) -> anyhow::Result<Finding> {
        let step = "resume";
        if self.manifest.resume == Resumes::None {
            return Ok(Finding {
                step,
                verdict: Verdict::NotOffered,
                detail: "its manifest has no `resume`: an interrupted session begins a new conversation".to_owned(),
            });
        }
        let Some(said) = said else {
            return Ok(Finding::of(
                step,
                Err("there was no session file where [session] says".to_owned()),
            ));
        };
        let beginning = Beginning::GoOn {
            said: said.into(),
            note: String::new(),
            instruction: prompt(step),
        };
        let run = self.in_time(step, beginning).await?;
        let requests = self.server.requests_of(step);
        let knows = requests
            .iter()
            .any(|request| request.body.to_string().contains(&marker("edit")));
        Ok(Finding::of(
            step,
            match (run.end, knows) {
                (AdapterEnd::Done { .. }, true) => {
                    Ok("it goes on in another folder, and knows what was said".to_owned())
                }
                (AdapterEnd::Done { .. }, false) => Err("it went on without what was said before".to_owned()),
                (end, _) => Err(format!("it ended so: {}", words(&end))),
            },
        ))
    }

    /// What the model says in a step.
    fn script(&self, step: &str, examples: usize, turns: impl IntoIterator<Item = Turn>) {
        let examples = std::iter::repeat_n(Turn::say("An example."), examples);
        self.server
            .add(Script::new(step, Matcher::marker(marker(step)), examples.chain(turns)));
    }

    /// A run that is stopped when it takes too long.
    async fn in_time(&self, step: &str, beginning: Beginning) -> anyhow::Result<Run> {
        let stop = CancellationToken::new();
        let late = async {
            tokio::time::sleep(RUN).await;
            stop.cancel();
            tokio::time::sleep(END).await;
        };
        tokio::select! {
            run = self.once(step, beginning, stop.clone()) => run,
            () = late => anyhow::bail!("the program runs on after it was stopped"),
        }
    }

    async fn once(&self, step: &str, beginning: Beginning, stop: CancellationToken) -> anyhow::Result<Run> {
        let (worktree, scratch) = (self.root.join(step).join("tree"), self.root.join(step).join("scratch"));
        std::fs::create_dir_all(&worktree)?;
        std::fs::create_dir_all(&scratch)?;
        let mut input = SessionInput {
            attempt: AttemptId::from_random(rand::random()),
            model: self.model.clone(),
            prompt: Prompt {
                shared: String::new(),
                own: prompt(step),
            },
            worktree: Some(worktree.clone()),
            ..SessionInput::blank(scratch)
        };
        let file = self.adapter.session_file(&input);
        input.beginning = match (beginning, &file) {
            (
                Beginning::GoOn {
                    said,
                    note,
                    instruction,
                },
                Some(file),
            ) => Beginning::GoOn {
                said: file.local(said.to_vec()).into(),
                note,
                instruction,
            },
            (beginning, _) => beginning,
        };
        let (reporter, mut reports) = Reporter::channel(64);
        let gather = async {
            let mut usage = Usage::default();
            while let Some(report) = reports.recv().await {
                if let Report::Event(EventBody::UsageRecorded { usage: more, .. }) = report {
                    usage += more;
                }
            }
            usage
        };
        let (end, usage) = tokio::join!(self.adapter.run(input, reporter, stop), gather);
        let said = match file {
            Some(file) => file.kept()?,
            None => None,
        };
        Ok(Run {
            end,
            usage,
            said,
            worktree,
        })
    }

    /// The tokens are those that the provider counted.
    fn counted(&self, step: &str, told: Usage) -> Result<String, String> {
        let (mut input, mut output) = (0, 0);
        for request in self.server.requests_of(step) {
            if let Answer::Reply(usage) = request.answer {
                input += usage.input + usage.cache_write_5m + usage.cache_write_1h + usage.cache_read;
                output += usage.output;
            }
        }
        if told.total() == 0 {
            return Err("it tells no tokens: what its sessions use and cost is unknown".to_owned());
        }
        let whole = told.input + told.cache_write_5m + told.cache_write_1h + told.cache_read;
        if (whole, told.output) == (input, output) {
            return Ok(format!(
                "{input} of input and {output} of output, as the provider counted"
            ));
        }
        let (name, output_told) = ("the provider counted", told.output);
        Err(format!(
            "it told {whole} of input and {output_told} of output; {name} {input} and {output}"
        ))
    }
}

/// Words of a step, by which the server knows it.
fn marker(step: &str) -> String {
    format!("check-step-{step}")
}

fn prompt(step: &str) -> String {
    format!(
        "This is a check of an adapter ({}). Write the file {FILE}.",
        marker(step)
    )
}

/// How a run ended.
fn words(end: &AdapterEnd) -> String {
    match end {
        AdapterEnd::Done { summary } => format!("done, with the words {summary:?}"),
        AdapterEnd::Failed(failure) => format!("failed with {}: {}", failure.kind, failure.message),
        AdapterEnd::Stopped => "stopped: it did not end by itself in time".to_owned(),
    }
}

/// The file that the model asked for is there.
fn edited(run: &Run) -> Result<String, String> {
    match (&run.end, run.worktree.join(FILE).is_file()) {
        (AdapterEnd::Done { .. }, true) => Ok("the model's file is in the worktree".to_owned()),
        (end, false) => Err(format!(
            "the model asked for a file, and there is none; it ended so: {}",
            words(end)
        )),
        (end, true) => Err(format!("it wrote the file, and ended so: {}", words(end))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_and_no_login_of_the_persons_is_used() {
        let of = |env: &str| {
            let text = format!("name = 'x'\ncommand = 'x'\n[network]\nfrom = ['X_URL']\n[env]\n{env}");
            let manifest = Manifest::parse(&text, std::path::Path::new("/x.toml")).unwrap();
            let environment = environment(&manifest, "http://127.0.0.1:1");
            move |name: &str| environment.text(name).map(str::to_owned)
        };
        let value = of("secret = ['X_KEY']\nrequire = ['X_KEY', 'HOME']");
        assert_eq!(value("X_KEY").as_deref(), Some("sk-of-the-check"));
        assert_eq!(value("X_URL").as_deref(), Some("http://127.0.0.1:1/v1"));
        assert_eq!(value("HOME"), None, "a folder that lets it in is the person's");
        assert_eq!(of("require = ['X_KEY']")("X_KEY").as_deref(), Some("sk-of-the-check"));
    }
}

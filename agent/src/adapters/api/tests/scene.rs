//! The loop against the scripted providers, which enforce the rules of the real ones.

use kage_core::usage::Usage;
use kage_scripted::{Answer, CallUsage, Matcher, Script, ScriptedServer, Turn};

use super::super::*;
use super::provider::{Told, told};

/// An adapter, and how it finds the scripted provider.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spoken {
    pub(super) adapter: &'static str,
    pub(super) model: &'static str,
    pub(super) key: &'static str,
    pub(super) url: &'static str,
    /// What follows the server's address.
    pub(super) below: &'static str,
}

impl Spoken {
    /// The Messages API with this model.
    pub(super) const fn claude(model: &'static str) -> Self {
        Self {
            adapter: "claude-api",
            model,
            key: "ANTHROPIC_API_KEY",
            url: "ANTHROPIC_BASE_URL",
            below: "",
        }
    }
}

pub(super) const SPOKEN: [Spoken; 2] = [
    Spoken {
        adapter: "openai",
        model: "gpt-6.1-sol",
        key: "OPENAI_API_KEY",
        url: "OPENAI_BASE_URL",
        below: "/v1",
    },
    Spoken {
        adapter: "gemini-api",
        model: "gemini-4-argon",
        key: "GEMINI_API_KEY",
        url: "GOOGLE_GEMINI_BASE_URL",
        below: "",
    },
];

pub(super) struct Scene {
    pub(super) spoken: Spoken,
    pub(super) folder: tempfile::TempDir,
    pub(super) server: ScriptedServer,
    /// Text that all sessions of the task share.
    pub(super) base: String,
}

impl Scene {
    pub(super) async fn new(spoken: Spoken, turns: impl IntoIterator<Item = Turn>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["tree", "scratch"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let script = Script::new("s", Matcher::model(spoken.model), turns);
        Self {
            spoken,
            folder,
            server: ScriptedServer::start(vec![script]).await.unwrap(),
            // Longer than the shortest prefix that is cached.
            base: "the base ".repeat(3000),
        }
    }

    pub(super) fn adapter(&self) -> ApiAdapter {
        let Spoken { adapter, key, url, .. } = self.spoken;
        let address = format!("{}{}", self.server.url(), self.spoken.below);
        let env = [
            ("PATH", "/usr/local/bin:/usr/bin:/bin"),
            (key, "sk-test"),
            (url, address.as_str()),
        ];
        let env = env.map(|(name, value)| (name.into(), value.into())).into();
        let mut config = AdapterConfig::new(AgentEnvironment::new(env), Runner::default());
        config.calls.backoff = Duration::from_millis(10);
        let instance = instances(&config.settings)
            .into_iter()
            .find(|instance| instance.name.as_str() == adapter);
        ApiAdapter::new(instance.unwrap(), &config).unwrap()
    }

    pub(super) fn input(&self) -> SessionInput {
        SessionInput {
            prompt: kage_core::prompt::Prompt {
                shared: self.base.clone(),
                own: "the task".to_owned(),
            },
            model: Some(self.spoken.model.to_owned()),
            worktree: Some(self.tree()),
            ..SessionInput::blank(self.folder.path().join("scratch"))
        }
    }

    pub(super) fn tree(&self) -> std::path::PathBuf {
        self.folder.path().join("tree")
    }

    pub(super) async fn run(&self, input: SessionInput) -> Told {
        told(&self.adapter(), input, CancellationToken::new()).await
    }

    pub(super) async fn go(&self) -> Told {
        self.run(self.input()).await
    }

    /// What the provider counted for the calls that it answered whole.
    pub(super) fn ledger(&self) -> Usage {
        let mut sum = Usage::default();
        for request in self.server.requests() {
            if let Answer::Reply(call) = request.answer {
                sum += counted(call);
            }
        }
        sum
    }

    pub(super) fn answers(&self) -> Vec<Answer> {
        self.server
            .requests()
            .into_iter()
            .map(|request| request.answer)
            .collect()
    }
}

pub(super) fn counted(call: CallUsage) -> Usage {
    Usage {
        input: call.input,
        cache_write_5m: call.cache_write_5m,
        cache_write_1h: call.cache_write_1h,
        cache_read: call.cache_read,
        output: call.output,
        reasoning: call.reasoning,
        ..Usage::default()
    }
}

/// What was reported of calls.
pub(super) fn reported(told: &Told) -> Vec<Usage> {
    let usage = |event: &EventBody| match event {
        EventBody::UsageRecorded { usage, .. } => Some(*usage),
        _ => None,
    };
    told.events.iter().filter_map(usage).collect()
}

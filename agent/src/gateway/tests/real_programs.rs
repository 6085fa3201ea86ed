//! Real programs whose budget is used up after their first call: they end by themselves, soon, and the provider hears
//! nothing more of them.

use std::path::{Path, PathBuf};

use kage_core::failure::FailureKind;
use kage_core::id::AdapterName;
use kage_core::prompt::Prompt;

use super::*;
use crate::adapters::port::{AdapterEnd, Report, Reporter, SessionInput};
use crate::adapters::{AdapterConfig, load};
use crate::process::{AgentEnvironment, Runner};

/// A program, its model, and a call of its shell.
type Program = (&'static str, &'static str, fn(Value) -> Turn);

const PROGRAMS: [Program; 5] = [
    ("claude-code", "claude-sonnet-5-5", |call| Turn::call("Bash", call)),
    ("codex", "gpt-6.1-terra", |_call| {
        let code = "const r = await tools.exec_command({cmd:\"echo made > made.txt\"}); text(r);";
        Turn::call("exec", Value::from(code))
    }),
    ("gemini", "gemini-2.5-pro", |call| Turn::call("run_shell_command", call)),
    ("opencode", "anthropic/claude-sonnet-4-5", |call| {
        Turn::call("bash", call)
    }),
    ("opencode", "compatible/model-1", |call| Turn::call("bash", call)),
];

/// Where `scripts/test` installs them.
fn folder() -> PathBuf {
    let installed = || Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target/npm/node_modules/.bin");
    std::env::var_os("KAGE_TOOLS").map_or_else(installed, PathBuf::from)
}

#[tokio::test(flavor = "multi_thread")]
async fn real_programs_end_when_their_budget_is_used_up() {
    let folder = folder();
    for (adapter, model, shell) in PROGRAMS {
        let command = if adapter == "claude-code" { "claude" } else { adapter };
        if !folder.join(command).exists() {
            assert!(
                std::env::var_os("CI").is_none_or(|ci| ci != "true"),
                "{command} is installed in CI"
            );
            eprintln!("SKIPPED gateway::real_programs: {command} is not installed; ./scripts/test installs it");
            continue;
        }
        let call = json!({"command": "echo made > made.txt", "description": "make a file"});
        let turns = [shell(call), Turn::say("It is never said.")];
        let server = ScriptedServer::start(vec![Script::new("s", Matcher::any(), turns)])
            .await
            .unwrap();
        let place = tempfile::tempdir().unwrap();
        for name in ["tree", "scratch", "home"] {
            std::fs::create_dir(place.path().join(name)).unwrap();
        }
        let variables = [
            ("PATH", format!("{}:/usr/local/bin:/usr/bin:/bin", folder.display())),
            ("HOME", place.path().join("home").display().to_string()),
            ("ANTHROPIC_BASE_URL", server.url()),
            ("ANTHROPIC_API_KEY", REAL.to_owned()),
            ("OPENAI_BASE_URL", format!("{}/v1", server.url())),
            ("OPENAI_API_KEY", REAL.to_owned()),
            ("GOOGLE_GEMINI_BASE_URL", server.url()),
            ("GEMINI_API_KEY", REAL.to_owned()),
        ];
        let variables = variables.map(|(name, value)| (name.into(), value.into()));
        let config = AdapterConfig::new(AgentEnvironment::new(variables.into()), Runner::default());
        let registry = load(config).await.unwrap();
        let program = registry[&adapter.parse::<AdapterName>().unwrap()].clone();
        let provider = program.metered(Some(model)).expect("its key is in a variable");
        let gateway = Gateway::open(provider, api::client().unwrap(), KEY.to_owned()).unwrap();
        let limits = GatewayLimits {
            patience: Duration::from_secs(60),
            ..GatewayLimits::default()
        };
        let gateway = gateway.with_limits(limits);
        let (gate, log) = gate::granting(1, 128_000).await;
        let (pass, end) = (gateway.pass(), CancellationToken::new());
        let serving = gateway.serve(Calls::Gated(gate), |_told| std::future::ready(()), end.clone());
        let input = SessionInput {
            model: Some(model.to_owned()),
            prompt: Prompt {
                shared: String::new(),
                own: "make a file".to_owned(),
            },
            worktree: Some(place.path().join("tree")),
            gateway: Some(pass.clone()),
            ..SessionInput::blank(place.path().join("scratch"))
        };
        let (reporter, mut reports) = Reporter::channel(32);
        let running = async {
            let reading = async {
                while let Some(report) = reports.recv().await {
                    drop::<Report>(report)
                }
            };
            let running = tokio::time::timeout(4 * PATIENCE, program.run(input, reporter, CancellationToken::new()));
            let (ended, ()) = tokio::join!(running, reading);
            end.cancel();
            ended
        };
        let mut refusing = pass.refusing.clone();
        let watching = async {
            let heard = refusing.changed().await;
            heard.ok().map(|()| Instant::now())
        };
        let ended = async {
            let ended = running.await;
            (ended, Instant::now())
        };
        let all = async { tokio::join!(ended, watching, serving) };
        let ((ended, at), refused_at, served) = tokio::time::timeout(6 * PATIENCE, all)
            .await
            .expect("a call is refused");
        let took = refused_at.map(|since| at - since);
        eprintln!(
            "{adapter} {model}: ended {took:?} after the first of {} refusals",
            log.refused()
        );
        assert!(
            took.is_some(),
            "{adapter} {model} was refused nothing: {ended:?} {:#?}",
            server.requests()
        );
        let AdapterEnd::Failed(failure) = ended.unwrap_or_else(|_| panic!("{adapter} {model} does not end")) else {
            panic!("{adapter} {model} did not fail");
        };
        assert_eq!(
            failure.kind,
            FailureKind::BudgetExceeded,
            "{adapter} {model}: {failure}"
        );
        assert!(!pass.enough.is_cancelled(), "{adapter} {model} ended by itself");
        assert!((1..=3).contains(&log.refused()), "{adapter} {model}: {}", log.refused());
        assert_eq!(served.unwrap().answered, 1, "{adapter} {model}");
        assert_eq!(server.requests().len(), 1, "{adapter} {model}");
    }
}

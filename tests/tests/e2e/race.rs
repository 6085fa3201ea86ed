//! One race of everything: four real programs, a real agent of the Agent Client Protocol and two APIs on three
//! agents. The winner is verified. What every session used is what the provider has in its books, whose counts are
//! drawn at random, so that nobody can tell them without having read them; calls were refused, cut and repeated.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use kage_proto::v1;
use kage_scripted::{Answer, ApiError, CallUsage, Fault, Matcher, Script, ScriptedServer, Turn};
use kage_tests::cluster::{AgentOptions, Cluster};
use kage_tests::programs;
use kage_tests::repo::{SOLUTION, VERIFY};
use kage_tests::tasks::{Describe, session, task, verdict};
use serde_json::json;

use super::real_clis::CLIS;

/// What a provider tells of a call that breaks off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    /// No call does.
    None,
    /// All of its counts.
    Told,
    /// None of them.
    Untold,
}

/// A session of the race.
struct Racer {
    adapter: &'static str,
    /// The program; empty for an API.
    program: &'static str,
    /// The agent that it runs on.
    seat: &'static str,
    model: (&'static str, &'static str),
    mend: fn() -> Turn,
    /// What goes wrong before the first answer.
    faults: fn() -> Vec<Fault>,
    broken: Broken,
    /// Whether it tells how much of the input the cache held.
    tells_cache: bool,
}

/// Not all of them take a command substitution, or an edit in place.
const FIX: &str = "sed 's/ - / + /' add.sh > fixed && cat fixed > add.sh && rm fixed";

fn by_program(adapter: &str) -> Turn {
    let cli = CLIS.iter().find(|cli| cli.adapter == adapter).unwrap();
    (cli.shell)(FIX)
}

fn by_api() -> Turn {
    Turn::call("write_file", json!({"path": "add.sh", "content": SOLUTION}))
}

fn limited() -> Fault {
    Fault::rate_limited(Duration::from_secs(1))
}

const RACERS: &[Racer] = &[
    Racer {
        adapter: "claude-code",
        program: "claude",
        seat: "1",
        model: ("claude-sonnet-5-5", "claude-sonnet-5-5"),
        mend: || Turn::call("Bash", json!({"command": FIX, "description": "fix the sign"})),
        faults: || vec![limited(), Fault::CutBeforeLast],
        broken: Broken::Told,
        tells_cache: true,
    },
    Racer {
        adapter: "codex",
        program: "codex",
        seat: "1",
        model: ("gpt-6.1-terra", "gpt-6.1-terra"),
        mend: || by_program("codex"),
        faults: || vec![limited(), Fault::Cut { after_events: 2 }],
        broken: Broken::Untold,
        tells_cache: true,
    },
    Racer {
        adapter: "gemini",
        program: "gemini",
        seat: "2",
        model: ("gemini-2.5-pro", "gemini-2.5-pro"),
        mend: || by_program("gemini"),
        faults: Vec::new,
        broken: Broken::None,
        tells_cache: true,
    },
    Racer {
        adapter: "qwen",
        program: "qwen",
        seat: "2",
        model: ("qwen3-coder-plus", "qwen3-coder-plus"),
        mend: || by_program("qwen"),
        faults: Vec::new,
        broken: Broken::None,
        tells_cache: true,
    },
    Racer {
        adapter: "gemini-acp",
        program: "gemini",
        seat: "3",
        model: ("gemini-2.5-flash", "gemini-2.5-flash"),
        mend: || by_program("gemini"),
        faults: Vec::new,
        broken: Broken::None,
        tells_cache: false,
    },
    Racer {
        adapter: "claude-api",
        program: "",
        seat: "3",
        model: ("claude-haiku-5-5", "claude-haiku-5-5"),
        mend: by_api,
        faults: || {
            let overloaded = ApiError::new(529, "overloaded_error", "Overloaded");
            vec![Fault::Error(overloaded), Fault::CutBeforeLast]
        },
        broken: Broken::Told,
        tells_cache: true,
    },
    Racer {
        adapter: "openai",
        program: "",
        seat: "3",
        model: ("gpt-6.1-sol", "gpt-6.1-sol"),
        mend: by_api,
        faults: || vec![limited(), Fault::Cut { after_events: 2 }],
        broken: Broken::Untold,
        tells_cache: true,
    },
];

/// Where the programs are, or the first that is missing.
fn installed() -> Result<PathBuf, &'static str> {
    let mut programs = RACERS.iter().map(|racer| racer.program).filter(|name| !name.is_empty());
    let found = |name: &&str| match *name {
        "claude" => programs::claude().is_some(),
        other => programs::real(other).is_some(),
    };
    match programs.find(|name| !found(name)) {
        Some(missing) => Err(missing),
        None => programs::real("codex").ok_or("codex"),
    }
}

/// The provider's books about a script: of answers that came whole, and of those that broke off.
fn books(server: &ScriptedServer, script: &str) -> [CallUsage; 2] {
    let mut sums = [CallUsage::default(); 2];
    for request in server.requests_of(script) {
        let (sum, usage) = match request.answer {
            Answer::Reply(usage) => (&mut sums[0], usage),
            Answer::Broken(usage) => (&mut sums[1], usage),
            Answer::Count(_) | Answer::Error(_) | Answer::Hang => continue,
        };
        sum.input += usage.input;
        sum.cache_write_5m += usage.cache_write_5m;
        sum.cache_write_1h += usage.cache_write_1h;
        sum.cache_read += usage.cache_read;
        sum.output += usage.output;
        sum.reasoning += usage.reasoning;
    }
    sums
}

/// Input with what was written to the cache, what was read from it, and output.
fn billed(usages: &[CallUsage]) -> (u64, u64, u64) {
    let sum = |class: fn(&CallUsage) -> u64| usages.iter().map(class).sum();
    (
        sum(|it| it.input + it.cache_write_5m + it.cache_write_1h),
        sum(|it| it.cache_read),
        sum(|it| it.output),
    )
}

#[tokio::test]
async fn programs_an_agent_and_apis_race_and_are_billed_what_the_provider_counted() {
    let path = match installed() {
        Ok(path) => path,
        Err(missing) => {
            let reason = format!("{missing} is not installed; ./scripts/test installs it");
            return programs::skip("race", &reason);
        }
    };
    let scripts = RACERS.iter().map(|racer| {
        let mut first = (racer.mend)();
        first.faults = (racer.faults)();
        let turns = [first, Turn::say("I fixed the sign.")];
        Script::new(racer.adapter, Matcher::model(racer.model.1), turns)
    });
    let server = ScriptedServer::start(scripts.collect()).await.unwrap();
    let seed = rand::random();
    server.draw_counts(seed);
    let mut cluster = Cluster::start().await;
    for seat in ["1", "2", "3"] {
        let options = AgentOptions::named(&format!("agent-{seat}"))
            .label("seat", seat)
            .every_provider(&server.url())
            .with_path_of(&path)
            .slots(3);
        cluster.add_agent(options).await;
    }
    let repo = cluster.sample();
    let mut spec = task("make the test pass").on(&repo).verified_by(VERIFY);
    for racer in RACERS {
        spec = spec.session(racer.adapter, racer.adapter, racer.model.0);
    }
    for (assignment, racer) in spec.assignments.iter_mut().zip(RACERS) {
        assignment.requirements.insert("seat".to_owned(), racer.seat.to_owned());
    }
    let id = cluster.create(spec).await;
    let ended = cluster.ended(&id).await;

    for racer in RACERS {
        let session = session(&ended, racer.adapter);
        let answers: Vec<_> = server
            .requests_of(racer.adapter)
            .into_iter()
            .map(|request| request.answer)
            .collect();
        let all = format!("seed {seed}: {session:#?}\n{answers:#?}");
        assert_eq!(verdict(session), v1::VerdictKind::Passed, "{all}");
        assert_eq!(session.result.as_ref().unwrap().paths, ["add.sh"], "{all}");
        let [whole, broken] = books(&server, racer.adapter);
        let mut told = match racer.broken {
            Broken::Told => billed(&[whole, broken]),
            Broken::None | Broken::Untold => billed(&[whole]),
        };
        if !racer.tells_cache {
            told = (told.0 + told.1, 0, told.2);
        }
        assert_eq!(broken.input > 0, racer.broken != Broken::None, "{all}");
        let refused = answers.iter().any(|answer| matches!(answer, Answer::Error(_)));
        assert_eq!(refused, !(racer.faults)().is_empty(), "{all}");
        let used = session.usage.unwrap();
        let counted = (
            used.input + used.cache_write_5m + used.cache_write_1h,
            used.cache_read,
            used.output,
        );
        assert_eq!(counted, told, "{}: {all}", racer.adapter);
        if racer.broken == Broken::Untold {
            assert_ne!(
                used.unreported, 0,
                "what was not told is unknown, and not nothing: {all}"
            );
        }
    }

    assert_eq!(ended.state(), v1::TaskState::Succeeded, "{ended:#?}");
    let seats: BTreeSet<&str> = ended.sessions.iter().map(|session| session.agent.as_str()).collect();
    assert_eq!(seats.len(), 3, "{seats:?}");
    let best = cluster.report(&id).await.best.unwrap();
    let winner = session(&ended, &best.session);
    assert_eq!(verdict(winner), v1::VerdictKind::Passed, "{winner:#?}");
    let commit = cluster.fetch_result(&repo, winner);
    assert_eq!(repo.git(&["show", &format!("{commit}:add.sh")]), SOLUTION);
}

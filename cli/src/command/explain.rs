//! `kage explain`: what Kage does about an error, and why; or what it did about the errors of a
//! task. Core and the coordinator decide; this only shows it.

use std::io::Read as _;

use anyhow::Context as _;
use kage_core::failure::{Failure, FailureKind};
use kage_core::failure_table::FailureTable;
use kage_core::recovery::{Decision, History, Incident, Jitter, MAX_HOLDS, MAX_LOST, decide};
use kage_core::task::Policy;
use kage_core::time::{LocalTime, Timestamp};
use kage_proto::convert::time::time;
use kage_proto::json::JsonMessage;
use kage_proto::v1;
use serde::Serialize;

use crate::args::Explain;
use crate::exit::{Exit, Refusal};
use crate::invocation::Invocation;
use crate::settings;
use crate::tasks;
use crate::view;

/// How many characters of an id are enough to name a task.
const ID: std::ops::RangeInclusive<usize> = 4..=32;

pub(super) async fn run(invocation: &Invocation, args: Explain) -> anyhow::Result<Exit> {
    let words = match args.what.as_slice() {
        [] if args.adapter.is_none() => return of_task(invocation, None).await,
        [] => return Err(Refusal::usage("--adapter needs the words of an error").into()),
        [id] if args.adapter.is_none() && is_id(id) => return of_task(invocation, Some(id.clone())).await,
        [dash] if dash == "-" => {
            let mut bytes = Vec::new();
            std::io::stdin()
                .read_to_end(&mut bytes)
                .context("cannot read the error from standard input")?;
            String::from_utf8_lossy(&bytes).into_owned()
        }
        words => words.join(" "),
    };
    let table = FailureTable::builtin().clone().overlay(settings::failures(None)?);
    let here = jiff::Zoned::now();
    let heard = LocalTime {
        now: Timestamp::from_millis(u64::try_from(here.timestamp().as_millisecond()).unwrap_or_default()),
        utc_offset_seconds: here.offset().seconds(),
    };
    let answer = Answer::new(&table, args.adapter.as_deref().unwrap_or_default(), &words, heard);
    invocation.out.result("explanation", &answer.json(heard.now))?;
    invocation.out.text(&answer.words(heard.now))?;
    Ok(Exit::Done)
}

fn is_id(text: &str) -> bool {
    ID.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The decision about an error.
#[derive(Debug)]
struct Answer {
    /// False when no rule knows the words.
    known: bool,
    failure: Failure,
    max_attempts: u32,
    /// After the first failure of a session.
    first: Decision,
    /// The decision in the middle of a step, with safe checkpoints and `--rework`, if it differs.
    with_checkpoints: Option<Decision>,
    /// The decision after the last allowed attempt.
    last: Decision,
}

/// An answer, with its decisions as the incidents of sessions.
#[derive(Debug, Serialize)]
struct ExplanationJson {
    known: bool,
    max_attempts: u32,
    first: JsonMessage,
    #[serde(skip_serializing_if = "Option::is_none")]
    with_checkpoints: Option<JsonMessage>,
    last: JsonMessage,
}

impl Answer {
    fn new(table: &FailureTable, adapter: &str, words: &str, heard: LocalTime) -> Self {
        let now = heard.now;
        let found = table.classify(adapter, words, heard);
        let known = found.is_some();
        // As agents do with such a message of a program.
        let failure = found.unwrap_or_else(|| {
            let last = words.lines().rev().find(|line| !line.trim().is_empty());
            Failure::new(FailureKind::AdapterCrash, view::one_line(last.unwrap_or_default(), 400))
        });
        let max_attempts = Policy::default().max_attempts;
        let first = History {
            failed: 1,
            lost: 1,
            held: 1,
            max_attempts,
            ..History::default()
        };
        // After some steps of a session with reworks, in the middle of another step.
        let amid = History {
            settled: true,
            half_done: true,
            safe: true,
            max_reworks: 1,
            ..first
        };
        let last = History {
            failed: max_attempts,
            lost: MAX_LOST + 1,
            held: MAX_HOLDS + 1,
            turn_limits: max_attempts,
            max_attempts,
            ..History::default()
        };
        let plain = decide(first, &failure, Jitter::NONE, now);
        let amid = decide(amid, &failure, Jitter::NONE, now);
        Self {
            known,
            max_attempts,
            with_checkpoints: Some(amid).filter(|amid| *amid != plain),
            first: plain,
            last: decide(last, &failure, Jitter::NONE, now),
            failure,
        }
    }

    fn json(&self, now: Timestamp) -> ExplanationJson {
        let incident = |attempt, decision: &Decision| {
            let incident = Incident {
                at: now,
                verify: false,
                attempt,
                agent: None,
                failure: self.failure.clone(),
                decision: decision.clone(),
            };
            JsonMessage::of(&v1::Incident::from(&incident))
        };
        ExplanationJson {
            known: self.known,
            max_attempts: self.max_attempts,
            first: incident(1, &self.first),
            with_checkpoints: self.with_checkpoints.as_ref().map(|decision| incident(1, decision)),
            last: incident(self.max_attempts, &self.last),
        }
    }

    fn words(&self, now: Timestamp) -> String {
        let mut text = format!("kind      {}\nbecause   {}\n", self.failure.kind, self.failure.message);
        if !self.known {
            text += "          no rule knows these words: a program that ends with them has crashed;\n          \
                     rules of your own go into failures.toml beside config.toml\n";
        }
        // A failure that is given up at once has no other last decision.
        let last = self.first.action.next_attempt().map(|_| ("at last", &self.last));
        let amid = self.with_checkpoints.as_ref().map(|decision| ("amid work", decision));
        for (when, decision) in [("at first", &self.first)].into_iter().chain(amid).chain(last) {
            text += &format!(
                "{when:<9} {}: {} (confidence: {})\n",
                decision.action.words(now),
                decision.reason,
                decision.confidence
            );
        }
        text
    }
}

async fn of_task(invocation: &Invocation, asked: Option<String>) -> anyhow::Result<Exit> {
    let access = invocation.existing().await?;
    let task = tasks::find(&access, asked).await?;
    invocation.out.message("task", &task)?;
    invocation.out.text(&task_words(&task))?;
    Ok(Exit::Done)
}

fn task_words(task: &v1::Task) -> String {
    let mut text = format!(
        "task {}  {}\n",
        view::short_id(&task.id),
        view::task_state(task.state())
    );
    for session in &task.sessions {
        text += &format!("{} ({})\n", session.name, view::session_state(session.state()));
        let failed = session
            .incidents
            .iter()
            .map(|incident| (incident.at, &incident.summary));
        let said = session
            .messages
            .iter()
            .map(|message| (message.sent_at, &message.summary));
        let forked = session.fork.iter().map(|fork| (fork.forked_at, &fork.summary));
        let mut happened: Vec<_> = forked.chain(said).chain(failed).collect();
        happened.sort_by_key(|(at, _)| time(at.unwrap_or_default()));
        for (at, words) in happened {
            let at = time(at.unwrap_or_default());
            text += &format!("  {}  {}\n", at.to_minute(at), view::one_line(words, 600));
        }
        if !session.waiting.is_empty() {
            text += &format!("  now: {}\n", session.waiting);
        } else if session.incidents.is_empty() {
            text += match &session.failure {
                Some(failure) => format!("  failed: {}\n", failure.message),
                None => "  nothing failed\n".to_owned(),
            }
            .as_str();
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use kage_proto::convert::time::stamp;

    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(0);

    fn words(adapter: &str, text: &str) -> String {
        Answer::new(FailureTable::builtin(), adapter, text, LocalTime::utc(NOW)).words(NOW)
    }

    #[test]
    fn an_error_is_explained() {
        insta::assert_snapshot!(words("", "HTTP 429 too many requests, retry-after: 12"), @r#"
        kind      rate limited
        because   HTTP 429 too many requests, retry-after: 12
        at first  again after 12 s: the provider asked for 12 s (retry-after) (confidence: high)
        at last   given up: 2 attempts failed; run fewer sessions at once on this account, or raise its limit (confidence: medium)
        "#);
        insta::assert_snapshot!(words("aider", "litellm.AuthenticationError: no"), @r#"
        kind      not authorised
        because   litellm.AuthenticationError: no
        at first  given up: the provider rejected the key or login; fix it on the agent and run again, retrying will not help (confidence: high)
        "#);
        insta::assert_snapshot!(words("codex", "You've hit your usage limit. Try again in 2 hours."), @r#"
        kind      quota exhausted
        because   You've hit your usage limit. Try again in 2 hours.
        at first  held until 02:00 UTC: the plan's limit is used up until then; waiting costs nothing (confidence: high)
        at last   given up: the limit was still used up after 32 holds; raise it, or use another account (confidence: medium)
        "#);
        insta::assert_snapshot!(words("", "what\nthe hamster says\n"), @r#"
        kind      adapter crashed
        because   the hamster says
                  no rule knows these words: a program that ends with them has crashed;
                  rules of your own go into failures.toml beside config.toml
        at first  again after 2 s: most crashes do not repeat (confidence: medium)
        amid work back to the last checkpoint between two steps, again after 2 s: it crashed during edits, so the unfinished edits are undone (confidence: medium)
        at last   given up: 2 attempts failed; read the program's output: kage logs (confidence: medium)
        "#);
    }

    #[test]
    fn scripts_read_the_same() {
        let answer = Answer::new(
            FailureTable::builtin(),
            "",
            "git: No space left on device",
            LocalTime::utc(NOW),
        );
        insta::assert_snapshot!(serde_json::to_string_pretty(&answer.json(NOW)).unwrap(), @r#"
        {
          "known": true,
          "max_attempts": 2,
          "first": {
            "at": "1970-01-01T00:00:00Z",
            "job": "JOB_KIND_SESSION",
            "attempt": 1,
            "failure": {
              "kind": "FAILURE_KIND_DISK_FULL",
              "message": "git: No space left on device"
            },
            "action": "RECOVERY_ACTION_MOVE_AGENT",
            "next_attempt_at": "1970-01-01T00:00:02Z",
            "reason": "another machine may have free disk space, or this one may get some",
            "confidence": "CONFIDENCE_HIGH",
            "summary": "attempt 1: disk full: git: No space left on device; again after 2 s, on another agent if one fits: another machine may have free disk space, or this one may get some"
          },
          "last": {
            "at": "1970-01-01T00:00:00Z",
            "job": "JOB_KIND_SESSION",
            "attempt": 2,
            "failure": {
              "kind": "FAILURE_KIND_DISK_FULL",
              "message": "git: No space left on device"
            },
            "action": "RECOVERY_ACTION_ESCALATE",
            "reason": "2 attempts failed; free disk space on the agent's machine",
            "confidence": "CONFIDENCE_MEDIUM",
            "summary": "attempt 2: disk full: git: No space left on device; given up: 2 attempts failed; free disk space on the agent's machine"
          }
        }
        "#);
    }

    #[test]
    fn ids_are_told_from_words() {
        assert!(is_id("0a1b") && is_id(&"f".repeat(32)));
        for text in ["", "503", "rate limited", "dead beef", "overloaded"] {
            assert!(!is_id(text), "{text}");
        }
    }

    #[test]
    fn a_task_is_explained_by_its_sessions() {
        let session = |name: &str| v1::Session {
            name: name.to_owned(),
            ..Default::default()
        };
        let task = v1::Task {
            id: "0123456789abcdef".to_owned(),
            state: v1::TaskState::Running.into(),
            sessions: vec![
                v1::Session {
                    state: v1::SessionState::Queued.into(),
                    waiting: "held until 14:05 UTC: why (attempt 1: quota exhausted: x)".to_owned(),
                    incidents: vec![v1::Incident {
                        at: Some(stamp(Timestamp::from_millis(13 * 3_600_000))),
                        summary: "attempt 1: quota exhausted: x; held until 14:05 UTC: why".to_owned(),
                        ..Default::default()
                    }],
                    ..session("held")
                },
                v1::Session {
                    state: v1::SessionState::Running.into(),
                    ..session("fine")
                },
            ],
            ..Default::default()
        };
        insta::assert_snapshot!(task_words(&task), @r#"
        task 01234567  running
        held (queued)
          13:00 UTC  attempt 1: quota exhausted: x; held until 14:05 UTC: why
          now: held until 14:05 UTC: why (attempt 1: quota exhausted: x)
        fine (running)
          nothing failed
        "#);
    }
}

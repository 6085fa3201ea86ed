//! Makes the sessions of a task from `--with`, `--repeat` and labels.

use std::collections::BTreeMap;
use std::time::Duration;

use kage_core::fallback::Fallback;
use kage_core::id::{AdapterName, InvalidId, SessionName};
use kage_core::task::{Assignment, Labels};

use crate::settings::time;

/// One entry of `--with`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    pub adapter: AdapterName,
    pub model: Option<String>,
    /// The session's name; numbered when an adapter has several sessions.
    pub name: SessionName,
    /// The adapters that take over, in order, when the adapter cannot continue.
    pub fallbacks: Vec<Fallback>,
    /// Time limit of one attempt; `None`: the task's.
    pub timeout: Option<Duration>,
}

impl Worker {
    /// The session's part of the task.
    #[must_use]
    pub fn assignment(self, context_delta: Option<String>) -> Assignment {
        Assignment {
            name: self.name,
            adapter: self.adapter,
            model: self.model,
            context_delta,
            requirements: Labels::new(),
            fallbacks: self.fallbacks,
            timeout: self.timeout,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum InvalidWorker {
    /// The name is not valid for an adapter.
    #[error("{flag} {entry:?}")]
    Adapter {
        /// The flag with the entry.
        flag: &'static str,
        entry: String,
        #[source]
        source: InvalidId,
    },
    #[error("{flag} {entry:?} names no model after the colon; leave the colon out for the adapter's default")]
    EmptyModel {
        /// The flag with the entry.
        flag: &'static str,
        entry: String,
    },
    /// No attempt could have this limit.
    #[error("{flag} {entry:?}: {why}")]
    Limit {
        /// The flag with the entry.
        flag: &'static str,
        entry: String,
        why: String,
    },
}

/// Reads `ADAPTER[:MODEL][@TIME]` entries and names `repeat` sessions for each. Each session gets
/// `fallbacks`, without its own adapter and model.
///
/// A session is called after its adapter; where that would not be unique, a number follows.
///
/// # Errors
/// Names the wrong entry.
pub fn workers(with: &[String], repeat: u32, fallbacks: &[String]) -> Result<Vec<Worker>, InvalidWorker> {
    let mut entries = Vec::new();
    for entry in with {
        let (named, timeout) = limited("--with", entry)?;
        let (adapter, model) = who("--with", named)?;
        entries.extend(std::iter::repeat_n((adapter, model, timeout), repeat as usize));
    }
    let others = fallbacks.iter().map(|entry| who("--fallback", entry));
    let others: Vec<(AdapterName, Option<String>)> = others.collect::<Result<_, _>>()?;
    let mut totals: BTreeMap<&AdapterName, u32> = BTreeMap::new();
    for (adapter, _, _) in &entries {
        *totals.entry(adapter).or_default() += 1;
    }
    let mut seen: BTreeMap<&AdapterName, u32> = BTreeMap::new();
    entries
        .iter()
        .map(|(adapter, model, timeout)| {
            let number = seen.entry(adapter).or_default();
            *number += 1;
            let name = match totals.get(adapter) {
                Some(1) | None => adapter.to_string(),
                Some(_) => format!("{adapter}-{number}"),
            };
            let name = name.parse().map_err(|source| InvalidWorker::Adapter {
                flag: "--with",
                entry: adapter.to_string(),
                source,
            })?;
            Ok(Worker {
                adapter: adapter.clone(),
                model: model.clone(),
                name,
                // A session does not fall back to itself.
                fallbacks: others
                    .iter()
                    .filter(|other| (&other.0, &other.1) != (adapter, model))
                    .map(|(adapter, model)| Fallback {
                        adapter: adapter.clone(),
                        model: model.clone(),
                    })
                    .collect(),
                timeout: *timeout,
            })
        })
        .collect()
}

/// An entry without its time limit, and that. A time has a unit here, because names of models may end
/// with `@` and a date.
fn limited<'e>(flag: &'static str, entry: &'e str) -> Result<(&'e str, Option<Duration>), InvalidWorker> {
    let Some((named, limit)) = entry.rsplit_once('@') else {
        return Ok((entry, None));
    };
    let refused = |why: String| InvalidWorker::Limit {
        flag,
        entry: entry.to_owned(),
        why,
    };
    let has_unit = limit.parse::<f64>().is_err();
    match time::wait(limit) {
        Ok(Duration::ZERO) if has_unit => Err(refused("the time limit must be more than zero".to_owned())),
        Ok(limit) if has_unit => Ok((named, Some(limit))),
        // It belongs to the model.
        Ok(_) | Err(_) if named.contains(':') => Ok((entry, None)),
        Ok(_) => Err(refused(format!(
            "the time limit has no unit; write @{limit}s or @{limit}m"
        ))),
        Err(why) => Err(refused(why)),
    }
}

fn who(flag: &'static str, entry: &str) -> Result<(AdapterName, Option<String>), InvalidWorker> {
    let (adapter, model) = match entry.split_once(':') {
        Some((_, "")) => {
            return Err(InvalidWorker::EmptyModel {
                flag,
                entry: entry.to_owned(),
            });
        }
        Some((adapter, model)) => (adapter, Some(model.to_owned())),
        None => (entry, None),
    };
    let adapter = adapter.trim().parse().map_err(|source| InvalidWorker::Adapter {
        flag,
        entry: entry.to_owned(),
        source,
    })?;
    Ok((adapter, model))
}

/// A label without a key or a value.
#[derive(Debug, thiserror::Error)]
#[error("{flag} {entry:?} is not KEY=VALUE")]
pub struct InvalidLabel {
    /// The flag with the entry.
    pub flag: String,
    pub entry: String,
}

/// Reads `KEY=VALUE` entries.
///
/// # Errors
/// Names the wrong entry.
pub fn labels(flag: &str, entries: &[String]) -> Result<Labels, InvalidLabel> {
    entries
        .iter()
        .map(|entry| match entry.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            Some(_) | None => Err(InvalidLabel {
                flag: flag.to_owned(),
                entry: entry.clone(),
            }),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(with: &[&str], repeat: u32) -> Vec<String> {
        let with: Vec<String> = with.iter().map(|s| (*s).to_owned()).collect();
        workers(&with, repeat, &[])
            .unwrap()
            .into_iter()
            .map(|w| w.name.to_string())
            .collect()
    }

    #[test]
    fn names_sessions_after_their_adapters() {
        assert_eq!(names(&["claude-code", "codex"], 1), ["claude-code", "codex"]);
        assert_eq!(names(&["codex"], 2), ["codex-1", "codex-2"]);
        assert_eq!(
            names(
                &["claude-api:claude-opus-5-5", "codex", "claude-api:claude-sonnet-5-5"],
                1
            ),
            ["claude-api-1", "codex", "claude-api-2"]
        );
    }

    #[test]
    fn anybody_may_take_over_but_oneself() {
        let [with, fallbacks] = [vec!["codex", "claude-api:m"], vec!["claude-api:m", "claude-api"]]
            .map(|entries| entries.into_iter().map(str::to_owned).collect::<Vec<_>>());
        let workers = workers(&with, 1, &fallbacks).unwrap();
        let others = |worker: &Worker| -> Vec<Option<String>> {
            let fallbacks = worker.fallbacks.iter();
            fallbacks.map(|fallback| fallback.model.clone()).collect()
        };
        assert_eq!(others(&workers[0]), [Some("m".to_owned()), None]);
        assert_eq!(others(&workers[1]), [None]);
    }

    #[test]
    fn a_session_may_have_a_time_limit_of_its_own() {
        let read = |entry: &str| {
            let worker = workers(&[entry.to_owned()], 2, &[])
                .map_err(|wrong| wrong.to_string())?
                .remove(1);
            Ok::<_, String>((worker.adapter.to_string(), worker.model, worker.timeout))
        };
        let of = |adapter: &str, model: Option<&str>, minutes: Option<u64>| {
            let timeout = minutes.map(|minutes| Duration::from_secs(60 * minutes));
            Ok((adapter.to_owned(), model.map(str::to_owned), timeout))
        };
        for (entry, expected) in [
            ("codex@20m", of("codex", None, Some(20))),
            ("codex:m@1h 30m", of("codex", Some("m"), Some(90))),
            // Names of models may have dates.
            ("codex:m@20250101", of("codex", Some("m@20250101"), None)),
            ("codex:m@20250101@2h", of("codex", Some("m@20250101"), Some(120))),
            ("codex:m@latest", of("codex", Some("m@latest"), None)),
        ] {
            assert_eq!(read(entry), expected, "{entry}");
        }
        for (entry, why) in [
            ("codex@20", "write @20s or @20m"),
            ("codex@0m", "more than zero"),
            ("codex:m@0m", "more than zero"),
            ("codex@soon", "not a time"),
            ("codex@", "not a time"),
        ] {
            let said = read(entry).unwrap_err();
            assert!(said.contains(why), "{entry}: {said}");
        }
    }

    #[test]
    fn refuses_what_names_nobody() {
        for entry in ["", "Codex", "a b", "codex:"] {
            assert!(workers(&[entry.to_owned()], 1, &[]).is_err(), "{entry:?}");
        }
    }
}

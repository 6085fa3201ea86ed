//! What a run asks for: flags, the person's settings and the project's file together, in the types of a
//! task. Nothing is sent or read from a repository here.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::time::Duration;

use kage_core::budget::{Limit, TaskBudget};
use kage_core::priority::Priority;
use kage_core::session::{DEFAULT_WAIT, MAX_WAIT};
use kage_core::task::{Course, Permissions, Policy, ResultRules, TaskEnvironment};

use crate::assignments::{self, Worker};
use crate::exit::Refusal;
use crate::settings::{ContextSettings, PROJECT_FILE, RunOptions, Settings};
use crate::work_folder::WorkFolder;

/// How long to wait while all remaining sessions are held, unless it is said.
pub(crate) const MAX_HOLD: Duration = Duration::from_secs(5 * 60);

/// What a run asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunPlan {
    pub workers: Vec<Worker>,
    pub policy: Policy,
    pub environment: TaskEnvironment,
    /// Patterns of untracked files, from the repository's top.
    pub include: Vec<String>,
    /// Files of contexts: `[SESSION|ADAPTER[:MODEL]=]FILE`.
    pub contexts: Vec<String>,
    /// Which fields of contexts have a place of their own.
    pub context_settings: ContextSettings,
    pub fresh_baseline: bool,
    /// True to start without uncommitted work.
    pub committed: bool,
    pub wait_for_agent: bool,
    /// How long to wait while all remaining sessions are held.
    pub max_hold: Duration,
}

impl RunPlan {
    /// The names of all adapters that may work on it.
    #[must_use]
    pub(crate) fn adapters(&self) -> BTreeSet<String> {
        let own = self.workers.iter().map(|worker| worker.adapter.to_string());
        let others = self.workers.iter().flat_map(|worker| &worker.fallbacks);
        own.chain(others.map(|fallback| fallback.adapter.to_string())).collect()
    }

    /// The plan of a run at a place.
    ///
    /// # Errors
    /// When no adapter is named, or something that is named cannot be.
    pub fn of(flags: &RunOptions, settings: &Settings, place: &WorkFolder) -> anyhow::Result<Self> {
        let user = &settings.run;
        let all = place.options(flags, user);
        if !all.ladder.is_empty() && (!all.with.is_empty() || all.first_verified.is_some()) {
            let text = "a ladder names who works, one after the other: leave out --with and --first-verified";
            return Err(Refusal::usage(text).into());
        }
        if all.with.is_empty() && all.ladder.is_empty() {
            return Err(Refusal::usage(format!(
                "name who works on it: `--with ADAPTER[:MODEL]`, or `with` in [run] of {PROJECT_FILE}; `kage doctor` \
                 lists the adapters of this machine"
            ))
            .into());
        }
        let environment = settings.environment(place.project(), flags);
        let problems = environment.problems().into_iter();
        let problems: Vec<_> = problems.map(|(_, problem)| problem.to_string()).collect();
        if !problems.is_empty() {
            return Err(Refusal::usage(problems.join("; ")).into());
        }
        let (session_setup, session_setup_folder) = place.session_setup(flags, user);
        let usual = Policy::default();
        Ok(Self {
            workers: match all.ladder.is_empty() {
                true => assignments::workers(&all.with, all.repeat.unwrap_or(1), &all.fallback)?,
                false => assignments::workers(&all.ladder, 1, &all.fallback)?,
            },
            policy: Policy {
                session_setup,
                session_setup_folder,
                verify: place.checks(flags, user)?,
                timeout: all.timeout.unwrap_or(usual.timeout),
                idle_timeout: all.idle_timeout.unwrap_or(usual.idle_timeout),
                max_attempts: all.max_attempts.unwrap_or(usual.max_attempts),
                max_reworks: all.rework,
                requirements: assignments::labels("--agents", &all.agents)?,
                contain: all.contain.unwrap_or_default(),
                priority: all.priority.unwrap_or(Priority::NORMAL),
                results: results(&all),
                course: course(&all),
                budget: budget(&all),
                permissions: permissions(&all)?,
                mcp: None,
            },
            environment,
            include: place.patterns(flags, user, |run| &run.include)?,
            contexts: place.contexts(flags, user)?,
            context_settings: ContextSettings {
                files: place.context_files(&settings.context)?,
                ..match place.project() {
                    Some(project) => settings.context.or(&project.context),
                    None => settings.context.clone(),
                }
            },
            fresh_baseline: all.fresh_baseline.unwrap_or(false),
            committed: all.committed.unwrap_or(false),
            wait_for_agent: all.wait_for_agent.unwrap_or(false),
            max_hold: all.max_hold.unwrap_or(MAX_HOLD),
        })
    }
}

/// Which sessions work when.
fn course(all: &RunOptions) -> Course {
    let enough = all.first_verified.and_then(NonZeroU32::new);
    match (all.ladder.is_empty(), enough) {
        (false, _) => Course::Ladder,
        (true, Some(enough)) => Course::FirstVerified(enough),
        (true, None) => Course::Race,
    }
}

/// How much the calls of models may use.
fn budget(all: &RunOptions) -> TaskBudget {
    TaskBudget {
        task: Limit {
            money: all.budget,
            tokens: all.token_cap,
        },
        session: Limit {
            money: all.session_budget,
            tokens: None,
        },
    }
}

/// What programs are answered that ask for permission; `None`: as their adapter says.
fn permissions(all: &RunOptions) -> Result<Option<Permissions>, Refusal> {
    let wait = all.permission_wait.unwrap_or(DEFAULT_WAIT);
    if !(Duration::from_secs(1)..=MAX_WAIT).contains(&wait) {
        return Err(Refusal::usage(
            "--permission-wait is between 1s and 24h: nobody may be there to answer",
        ));
    }
    Ok(all.permissions.map(|policy| Permissions { policy, wait }))
}

/// What becomes a part of results, but for what the person's git ignores.
fn results(all: &RunOptions) -> ResultRules {
    let usual = ResultRules::default();
    let bytes = |mib: Option<u32>, usual: u64| mib.map_or(usual, |mib| u64::from(mib) << 20);
    ResultRules {
        max_file_bytes: bytes(all.max_file_mib, usual.max_file_bytes),
        max_new_bytes: bytes(all.max_new_mib, usual.max_new_bytes),
        max_new_files: all.max_new_files.map_or(usual.max_new_files, u64::from),
        ..usual
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::{CommandFactory as _, Parser as _};
    use proptest::prelude::*;

    use super::*;
    use crate::args::{Cli, Command};
    use crate::settings::{self, ProjectSettings};

    /// A flag of `kage run` that is a key too, as a property draws it: its values, and whether the key has
    /// a list, text or a bare value.
    #[derive(Debug, Clone)]
    struct DrawnFlag {
        name: &'static str,
        values: Vec<String>,
        kind: Kind,
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Kind {
        List,
        Text,
        Bare,
    }

    /// Every key, with values that it may have and values that are refused.
    const KEYS: &[(&str, Kind, &[&str], &[&str])] = &[
        (
            "with",
            Kind::List,
            &["codex", "claude-api:m@20m", "codex@1h", "a:m@2025"],
            &["codex@20", "No Name", "a:"],
        ),
        ("fallback", Kind::List, &["codex", "claude-api:n"], &["x:"]),
        ("repeat", Kind::Bare, &["1", "3", "64"], &["0", "65"]),
        ("first-verified", Kind::Bare, &["1", "64"], &["0", "65"]),
        ("ladder", Kind::List, &["codex", "claude-api:m@20m"], &["codex@20"]),
        ("verify", Kind::Text, &["make test", "echo 'it''s' \"x\"", ""], &[]),
        ("setup", Kind::Text, &["make", "cd a && b"], &[]),
        ("session-setup", Kind::Text, &["", "npm ci"], &[]),
        ("protect", Kind::List, &["tests", "/a/b"], &["../x"]),
        ("no-protect", Kind::Bare, &["true", "false"], &["7"]),
        ("check-verify", Kind::Bare, &["true", "false"], &["7"]),
        ("fresh-baseline", Kind::Bare, &["true", "false"], &["7"]),
        ("rework", Kind::Bare, &["0", "20"], &["21"]),
        ("committed", Kind::Bare, &["true", "false"], &["7"]),
        ("include", Kind::List, &[".env", "a/*.bin"], &["../x"]),
        (
            "env",
            Kind::List,
            &["A", "A=1", "B=x=y", "C="],
            &["PATH=x", "OPENAI_API_KEY", "1"],
        ),
        ("timeout", Kind::Text, &["20m", "90", "1h 30m"], &["0", "soon"]),
        ("idle-timeout", Kind::Text, &["5m", "0.5"], &["0s"]),
        ("verify-timeout", Kind::Text, &["90s"], &["-1"]),
        ("max-attempts", Kind::Bare, &["1", "20"], &["0"]),
        ("max-file-mib", Kind::Bare, &["1", "4096"], &["0", "4097"]),
        ("max-new-mib", Kind::Bare, &["1", "65536"], &["0", "65537"]),
        ("max-new-files", Kind::Bare, &["1"], &["0"]),
        ("budget", Kind::Text, &["2.50", "$3", "0"], &["-1", "1e3"]),
        ("session-budget", Kind::Bare, &["2", "0.5"], &["-1"]),
        ("token-cap", Kind::Bare, &["0", "500000"], &["-1"]),
        (
            "permissions",
            Kind::Text,
            &["allow", "deny", "ask"],
            &["Allow", "never"],
        ),
        ("permission-wait", Kind::Text, &["1s", "2h"], &["0", "25h"]),
        ("max-hold", Kind::Text, &["1s"], &["0"]),
        ("agents", Kind::List, &["os=linux", "a=b", "a="], &["=x", "none"]),
        ("contain", Kind::Text, &["T0", "T1", "T2", "T3"], &["t1", "T4"]),
        ("priority", Kind::Text, &["low", "high", "-3"], &["11", "soon"]),
        ("wait-for-agent", Kind::Bare, &["true", "false"], &["7"]),
    ];

    /// The keys that name files, which have a test of their own.
    const OF_FILES: &[&str] = &["context"];

    fn drawn(with_bad: bool) -> impl Strategy<Value = Vec<DrawnFlag>> {
        let flag = |(name, kind, good, bad): &(&'static str, Kind, &[&'static str], &[&'static str])| {
            let (name, kind) = (*name, *kind);
            let bad = if with_bad { *bad } else { &[] };
            let most = if kind == Kind::List { 3 } else { 1 };
            let one = prop::sample::select([*good, bad].concat()).prop_map(str::to_owned);
            let values = prop::collection::vec(one, 1..=most);
            let often = match name {
                "with" => 0.9,
                // It goes with few others.
                "ladder" => 0.1,
                _ => 0.3,
            };
            prop::option::weighted(often, values.prop_map(move |values| DrawnFlag { name, values, kind }))
        };
        let flags = KEYS.iter().map(flag).collect::<Vec<_>>();
        flags.prop_map(|flags| flags.into_iter().flatten().collect())
    }

    fn typed(flags: &[DrawnFlag]) -> Result<RunOptions, String> {
        let words = flags
            .iter()
            .flat_map(|flag| flag.values.iter().map(|value| format!("--{}={value}", flag.name)));
        let words = ["kage", "run", "x"].map(str::to_owned).into_iter().chain(words);
        let parsed = Cli::try_parse_from(words).map_err(|refused| refused.to_string())?;
        match parsed.command {
            Command::Run(run) => Ok(run.options),
            other => panic!("{other:?}"),
        }
    }

    fn written(flags: &[DrawnFlag]) -> String {
        let quoted = |value: &String| toml::Value::from(value.as_str()).to_string();
        let lines = flags.iter().map(|flag| {
            let values = flag.values.iter().map(quoted).collect::<Vec<_>>().join(", ");
            let value = match flag.kind {
                Kind::List => format!("[{values}]"),
                Kind::Text => values,
                Kind::Bare => flag.values.concat(),
            };
            format!("{} = {value}\n", flag.name.replace('-', "_"))
        });
        format!("[run]\n{}", lines.collect::<String>())
    }

    fn read(dir: &Path, text: &str) -> Result<ProjectSettings, String> {
        let file = dir.join(PROJECT_FILE);
        std::fs::write(&file, text).unwrap();
        settings::project(&file).map_err(|refused| refused.to_string())
    }

    fn plan(flags: &RunOptions, project: ProjectSettings) -> Result<RunPlan, String> {
        let place = WorkFolder::at_top(project);
        RunPlan::of(flags, &Settings::default(), &place).map_err(|refused| refused.to_string())
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(96) })]

        /// Whatever can be typed can be written, with the same result; what is refused here is refused
        /// there.
        #[test]
        fn a_file_asks_for_what_its_flags_ask_for(flags in prop_oneof![drawn(false), drawn(true)]) {
            let dir = tempfile::tempdir().unwrap();
            let by_flags = typed(&flags).and_then(|flags| plan(&flags, ProjectSettings::default()));
            let by_file = read(dir.path(), &written(&flags)).and_then(|file| plan(&RunOptions::default(), file));
            match (by_flags, by_file) {
                (Ok(by_flags), Ok(by_file)) => prop_assert_eq!(by_flags, by_file),
                (by_flags, by_file) => {
                    prop_assert!(by_flags.is_err() && by_file.is_err(), "{by_flags:?}\n{by_file:?}");
                }
            }
        }

        /// A flag wins over its key, and leaves the other keys as they are.
        #[test]
        fn a_flag_wins_over_the_file(flags in drawn(false), others in drawn(false)) {
            let dir = tempfile::tempdir().unwrap();
            let is_typed = |name| flags.iter().any(|flag| flag.name == name);
            // Variables add up.
            let left = others.iter().filter(|other| !is_typed(other.name) || other.name == "env");
            // Both say who works, and the flag is right about it.
            let contradicted = |name| match name {
                "ladder" => is_typed("with") || is_typed("first-verified"),
                "with" | "first-verified" => is_typed("ladder"),
                _ => false,
            };
            let left = left.filter(|other| !contradicted(other.name));
            let mut together: Vec<_> = left.chain(&flags).cloned().collect();
            // A tier of containment is only raised.
            let tiers = flags.iter().chain(&others).filter(|flag| flag.name == "contain");
            if let Some(highest) = tiers.map(|flag| flag.values.clone()).max() {
                let flag = together.iter_mut().find(|flag| flag.name == "contain");
                flag.unwrap().values = highest;
            }
            let file = read(dir.path(), &written(&others));
            let (options, all) = (typed(&flags).unwrap(), typed(&together).unwrap());
            prop_assert_eq!(plan(&options, file.unwrap()), plan(&all, ProjectSettings::default()));
        }
    }

    #[test]
    fn every_key_is_drawn() {
        let command = Cli::command();
        let run = command.find_subcommand("run").unwrap();
        let of_one_run = [
            "prompt-file",
            "again",
            "present",
            "repo",
            "root",
            "detach",
            "apply",
            "accept-risk",
            "request-id",
        ];
        let of_every_command = ["format", "state-dir", "verbose", "help", "version"];
        let mut keys: Vec<_> = run.get_arguments().filter_map(clap::Arg::get_long).collect();
        keys.retain(|key| !of_one_run.contains(key) && !of_every_command.contains(key));
        keys.sort_unstable();
        let mut drawn: Vec<_> = KEYS
            .iter()
            .map(|(name, ..)| *name)
            .chain(OF_FILES.iter().copied())
            .collect();
        drawn.sort_unstable();
        assert_eq!(keys, drawn);
    }

    #[test]
    fn a_key_that_there_is_not_is_refused_with_the_nearest_name() {
        let dir = tempfile::tempdir().unwrap();
        for (text, nearest) in [
            ("timeot = '5m'", "timeout"),
            ("wiht = ['codex']", "with"),
            ("max-attempts = 3", "max_attempts"),
            ("agent = ['os=linux']", "agents"),
        ] {
            let said = read(dir.path(), &format!("[run]\n{text}\n")).unwrap_err();
            assert!(said.ends_with(&format!("(did you mean `{nearest}`?)")), "{said}");
        }
        // What becomes of a result is decided anew by a person each time.
        for text in ["apply = true", "accept_risk = true"] {
            assert!(read(dir.path(), &format!("[run]\n{text}\n")).is_err(), "{text}");
        }
    }

    #[test]
    fn a_run_that_names_nobody_is_told_how_to() {
        let said = plan(&RunOptions::default(), ProjectSettings::default()).unwrap_err();
        assert!(
            said.contains("--with") && said.contains("`with` in [run] of kage.toml"),
            "{said}"
        );
    }
}

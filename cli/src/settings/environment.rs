//! `[env]` and `[home]`: what a project's file and the person's settings name for the programs of a
//! task.

use std::collections::BTreeMap;

use kage_core::task::TaskEnvironment;
use serde::Deserialize;

/// `[env]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EnvironmentSettings {
    /// Names of variables to hand on.
    pub pass: Vec<String>,
    /// Variables with their values.
    pub set: BTreeMap<String, String>,
}

/// `[home]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HomeSettings {
    /// Files of the home folder, as relative paths.
    pub copy: Vec<String>,
}

/// What a project's file and the person's settings name together, each with its `[run] env`; the
/// person's count where both name one variable.
#[must_use]
pub(super) fn together<'a>(
    sources: impl IntoIterator<Item = (&'a EnvironmentSettings, &'a HomeSettings, &'a [String])>,
) -> TaskEnvironment {
    let mut all = TaskEnvironment::default();
    for (env, home, arguments) in sources {
        for (name, value) in &env.set {
            all.pass.remove(name);
            all.set.insert(name.clone(), value.clone());
        }
        for name in &env.pass {
            // Both in one source is a mistake, which is told.
            if !env.set.contains_key(name) {
                all.set.remove(name);
            }
            all.pass.insert(name.clone());
        }
        all.home.extend(home.copy.iter().cloned());
        add(&mut all, arguments);
    }
    all
}

/// Adds what `--env` says: `NAME` passes, `NAME=VALUE` sets. The last one counts.
pub(super) fn add(environment: &mut TaskEnvironment, arguments: &[String]) {
    for argument in arguments {
        match argument.split_once('=') {
            Some((name, value)) => {
                environment.pass.remove(name);
                environment.set.insert(name.to_owned(), value.to_owned());
            }
            None => {
                environment.set.remove(argument);
                environment.pass.insert(argument.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pass: &[&str], set: &[(&str, &str)]) -> EnvironmentSettings {
        let set = set
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        EnvironmentSettings {
            pass: pass.iter().map(ToString::to_string).collect(),
            set: set.collect(),
        }
    }

    #[test]
    fn the_persons_word_about_a_variable_counts() {
        let home = |copy: &str| HomeSettings {
            copy: vec![copy.to_owned()],
        };
        let project = settings(&["DATABASE_URL", "TOKEN"], &[("RUST_LOG", "debug"), ("MODE", "ci")]);
        let person = settings(&["MODE"], &[("DATABASE_URL", "mine")]);
        let all = together([(&project, &home(".npmrc"), &[][..]), (&person, &home(".pypirc"), &[])]);
        assert_eq!(all.pass, ["MODE", "TOKEN"].map(str::to_owned).into());
        let set = |name: &str| all.set.get(name).map(String::as_str);
        assert_eq!(
            (set("DATABASE_URL"), set("RUST_LOG"), set("MODE")),
            (Some("mine"), Some("debug"), None)
        );
        assert_eq!(all.home.len(), 2);
    }

    #[test]
    fn one_source_that_says_both_is_refused() {
        let (both, home) = (settings(&["A"], &[("A", "1")]), HomeSettings::default());
        let all = together([(&both, &home, &[][..]), (&settings(&[], &[]), &home, &[])]);
        assert_eq!(all.problems().len(), 1);
    }

    #[test]
    fn the_last_word_about_a_variable_counts() {
        let mut all = TaskEnvironment {
            pass: ["MODE".to_owned()].into(),
            set: [("RUST_LOG".to_owned(), "debug".to_owned())].into(),
            ..TaskEnvironment::default()
        };
        add(&mut all, &["RUST_LOG", "MODE=a=b", "EMPTY="].map(str::to_owned));
        assert_eq!(all.pass, ["RUST_LOG".to_owned()].into());
        let set = |name: &str| all.set.get(name).map(String::as_str);
        assert_eq!(
            (set("MODE"), set("EMPTY"), set("RUST_LOG")),
            (Some("a=b"), Some(""), None)
        );
    }
}

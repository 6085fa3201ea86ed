//! What a check takes from the base instead of from the result that it checks: paths that match
//! `protect`, and the files of the base that the setup and verify commands name, so that a result
//! cannot pass by changing its own tests.
//!
//! | a path of the result | in the base | taken from the base |
//! |---|---|---|
//! | matches `protect` | yes | yes |
//! | matches `protect` | no | it is deleted |
//! | a command names it, the prompt does not | yes | yes, unless `leave_named` |
//! | a command names it, the prompt does not | no | no: there is nothing to take |
//! | a command names it, and so does the prompt | yes or no | no: the task is about it |
//!
//! `risk` judges the result's remaining risk.

use std::collections::BTreeSet;

use crate::command_files::CommandFiles;
use crate::mentions::{Mentions, is_file};
use crate::pattern::{InvalidPattern, Patterns};
use crate::task::{TaskSpec, VerifyPolicy};

/// The files that one check takes from the base.
#[derive(Debug, Clone)]
pub struct Protection {
    patterns: Patterns,
    /// `None`: files that the commands name stay as in the result.
    named: Option<CommandFiles>,
    /// Words for files that are not taken although a command names them.
    left: Vec<String>,
}

impl Protection {
    /// The protection of a policy. `left` is the result of [`left_alone`] for the task.
    ///
    /// # Errors
    /// When `protect` contains an invalid pattern.
    pub fn new(policy: &VerifyPolicy, left: Vec<String>) -> Result<Self, InvalidPattern> {
        let named = (!policy.leave_named).then(|| commands(policy));
        Ok(Self {
            patterns: Patterns::new(&policy.protect)?,
            named: named.filter(|files| !files.is_empty()),
            left,
        })
    }

    /// True when there is nothing to take.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty() && self.named.is_none()
    }

    /// The patterns of `protect`, for paths in the base or not.
    #[must_use]
    pub const fn patterns(&self) -> &Patterns {
        &self.patterns
    }

    /// Files that are taken from the base because a command names them; `base` lists all files of
    /// the base.
    #[must_use]
    pub fn named<'p>(&self, base: impl Iterator<Item = &'p str> + Clone) -> BTreeSet<&'p str> {
        let Some(files) = &self.named else {
            return BTreeSet::new();
        };
        let mut named = files.among(base);
        named.retain(|path| !self.left.iter().any(|word| is_file(path, word)));
        named
    }
}

/// The files that a policy's commands name.
#[must_use]
pub fn commands(policy: &VerifyPolicy) -> CommandFiles {
    let setup = policy.setup.iter().map(|text| (text, policy.setup_folder.as_ref()));
    let verify = policy.verify.iter().map(|text| (text, policy.verify_folder.as_ref()));
    CommandFiles::of(setup.chain(verify))
}

/// Words of the prompt for files that the setup or verify command may name as well: the task is
/// about these files, and a check that took them from the base would refuse every result.
#[must_use]
pub fn left_alone(spec: &TaskSpec) -> Vec<String> {
    let policy = &spec.policy.verify;
    if policy.leave_named || policy.verify.is_none() {
        return Vec::new();
    }
    let files = commands(policy);
    let mentions = Mentions::of(&spec.prompt);
    let left = mentions.all().filter(|word| files.may_name(word));
    left.map(str::to_owned).collect::<BTreeSet<_>>().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::ProjectId;
    use crate::task::Policy;

    fn spec(prompt: &str, verify: &str, leave_named: bool) -> TaskSpec {
        TaskSpec {
            project: ProjectId::default(),
            prompt: prompt.to_owned(),
            prompt_blob: None,
            repository: None,
            context_base: None,
            assignments: Vec::new(),
            policy: Policy {
                verify: VerifyPolicy {
                    setup: Some("sh prepare.sh".to_owned()),
                    verify: Some(verify.to_owned()),
                    leave_named,
                    ..VerifyPolicy::default()
                },
                ..Policy::default()
            },
            fresh_baseline: false,
            labels: Default::default(),
            environment: Default::default(),
        }
    }

    #[test]
    fn files_of_the_base_that_commands_name_are_taken_unless_the_task_is_about_them() {
        let cases: [(&str, &str, &[&str]); 9] = [
            ("fix the sum", "sh test.sh", &["prepare.sh", "test.sh"]),
            ("fix the sum in add.sh", "sh test.sh", &["prepare.sh", "test.sh"]),
            ("test.sh fails", "sh test.sh", &["prepare.sh"]),
            ("make add.sh print 3", "sh add.sh | grep -q 3", &["prepare.sh"]),
            ("print 3", "sh add.sh | grep -q 3", &["add.sh", "prepare.sh"]),
            ("fix checks/a.js", "node checks/*.js", &["checks/b.js", "prepare.sh"]),
            ("fix sub/check.sh", "cd sub && ./check.sh", &["prepare.sh"]),
            (
                "look into sub/",
                "cd sub && ./check.sh",
                &["prepare.sh", "sub/check.sh"],
            ),
            ("fix prepare.sh", "true", &[]),
        ];
        let base = [
            "add.sh",
            "checks/a.js",
            "checks/b.js",
            "prepare.sh",
            "sub/check.sh",
            "test.sh",
        ];
        for (prompt, verify, expected) in cases {
            let named = |leave_named| {
                let spec = spec(prompt, verify, leave_named);
                let protection = Protection::new(&spec.policy.verify, left_alone(&spec)).unwrap();
                let named = protection.named(base.into_iter());
                named.into_iter().map(str::to_owned).collect::<Vec<_>>()
            };
            assert_eq!(named(false), expected, "{prompt}: {verify}");
            assert_eq!(named(true), [] as [&str; 0], "{prompt}: {verify}");
        }
    }

    #[test]
    fn only_what_commands_may_name_is_told_to_agents() {
        let left = left_alone(&spec("fix `add.sh` and b/test.sh, see docs/x.md", "sh test.sh", false));
        assert_eq!(left, ["b/test.sh"]);
        assert_eq!(left_alone(&spec("fix test.sh", "sh test.sh", true)), [] as [&str; 0]);
    }
}

//! Obstacles of landing on a branch that is not checked out here, and of hooks; and what works instead.

use std::fs;

use kage_git::UserRepo;
use kage_git::landing::{Held, HeldBy};

use super::{Asked, LandingError, LandingMessage, MergeEnd, Onto, Steps, Strategy, Way, landing, quoted, shell, view};

/// Most names of branches that are named instead of one that is not there.
const NEAR: usize = 3;

impl Way<'_> {
    pub(super) async fn no_branch(&self, asked: Asked<'_>, branch: &str, others: &[String]) -> anyhow::Result<String> {
        let mut text = format!("there is no branch {}", view::printable(branch));
        let mut near: Vec<(f64, &String)> = others
            .iter()
            .map(|other| (strsim::jaro_winkler(branch, other), other))
            .filter(|(score, _)| *score > 0.8)
            .collect();
        near.sort_by(|one, other| other.0.total_cmp(&one.0));
        if !near.is_empty() {
            let names: Vec<_> = near.iter().take(NEAR).map(|(_, name)| view::printable(name)).collect();
            text += &format!("; near it: {}", names.join(", "));
        }
        let Asked::Into(strategy, onto) = asked else {
            return Ok(text);
        };
        let of_remote = others
            .iter()
            .find(|other| other.strip_suffix(branch).is_some_and(|it| it.ends_with('/')));
        let (start, how) = match of_remote {
            Some(other) => (
                landing::commit_of(self.repository, &format!("refs/remotes/{other}")).await?,
                format!("branch --track {} {}", shell(branch), shell(other)),
            ),
            None => (self.repository.head().await?, format!("branch {}", shell(branch))),
        };
        let onto = Onto { start, ..onto.clone() };
        if onto.start.is_some() && self.probe_into(strategy, &onto).await.is_ok() {
            text += &format!("; make it: {}", quoted(&[self.git(&how), self.kage(asked)]));
        } else {
            text += &format!("; {} lists those there are", quoted(&[self.git("branch --all")]));
        }
        Ok(text)
    }

    pub(super) async fn around_held(&self, asked: Asked<'_>, held: &Held) -> anyhow::Result<String> {
        let (Asked::Merge(strategy) | Asked::Into(strategy, _)) = asked else {
            return Ok("no file was changed".to_owned());
        };
        let at = shell(&held.at.to_string_lossy());
        if held.by == HeldBy::Gone || !held.at.exists() {
            let mut steps = vec![self.git("worktree prune"), self.kage(asked)];
            if held.by != HeldBy::Gone {
                steps.insert(0, self.git(&format!("worktree unlock {at}")));
            }
            return Ok(format!("if it is gone for good: {}", quoted(&steps)));
        }
        let there = UserRepo::discover(&held.at).await?;
        let way = Way {
            repository: &there,
            fetched: self.fetched,
            here: self.here.clone(),
        };
        let merge = way.kage(Asked::Merge(strategy));
        match held.by {
            HeldBy::Rebase => Ok(format!(
                "finish that, or drop it: {}",
                quoted(&[way.git("rebase --abort"), merge])
            )),
            HeldBy::Bisect => Ok(format!("finish that: {}", quoted(&[way.git("bisect reset"), merge]))),
            HeldBy::CheckedOut | HeldBy::Gone => match way.probe(strategy).await {
                Ok(_) => Ok(format!("merge it there: {}", quoted(&[merge]))),
                Err(error) => {
                    let refused = Box::pin(way.refusal(Asked::Merge(strategy), &error)).await?;
                    Ok(format!("there, {}", refused.unwrap_or_else(|| error.to_string())))
                }
            },
        }
    }

    /// The command without the flag that runs hooks.
    pub(super) fn without_hooks(&self, asked: Asked<'_>) -> String {
        quoted(&[self.kage(asked).replacen(" --hooks", "", 1)])
    }

    /// The steps that merge in a new working tree of the branch.
    pub(super) fn in_a_tree(&self, onto: &Onto, asked: Asked<'_>) -> Steps {
        let root = self.repository.root();
        let name = format!("{}-{}", self.repository.name(), onto.branch.as_str().replace('/', "-"));
        let mut folder = root.with_file_name(&name);
        let mut number = 1_u32;
        while fs::symlink_metadata(&folder).is_ok() {
            number = number.saturating_add(1);
            folder = root.with_file_name(format!("{name}-{number}"));
        }
        let (branch, place) = (shell(onto.branch.as_str()), shell(&folder.to_string_lossy()));
        let add = match &onto.start {
            Some(start) => format!("worktree add -b {branch} {place} {start}"),
            None => format!("worktree add {place} {branch}"),
        };
        let merge = self.kage(asked);
        let merge = merge.strip_suffix(&self.repo()).unwrap_or(&merge);
        vec![self.git(&add), format!("{merge} --repo {place}")]
    }

    pub(super) async fn probe_into(&self, strategy: Strategy, onto: &Onto) -> Result<MergeEnd, LandingError> {
        let (base, result) = (&self.fetched.base, &self.fetched.commit);
        let message = LandingMessage::default();
        let mirror = &self.fetched.mirror;
        let plan = landing::plan_merge_into(self.repository, mirror, base, result, strategy, &message, onto).await?;
        Ok(plan.end())
    }
}

//! The obstacles of a landing, and the commands that work instead. Every merge or apply that is
//! named here was planned first, so that no refusal leads to another one.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use kage_git::UserRepo;
use kage_git::landing::{self, LandingError, LandingMessage, MergeEnd, Obstacle, ObstacleKind, Onto, Strategy};

use crate::exit::{Detail, Refusal};
use crate::result::FetchedResult;
use crate::view;

mod elsewhere;

/// The command that the person typed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Asked<'a> {
    Apply,
    Merge(Strategy),
    /// Into a branch that is checked out nowhere.
    Into(Strategy, &'a Onto),
}

/// Turns a refusal into words, with the command that works instead.
///
/// # Errors
/// When landing failed.
pub(crate) async fn told<T>(
    repository: &UserRepo,
    fetched: &FetchedResult,
    asked: Asked<'_>,
    done: Result<T, LandingError>,
) -> anyhow::Result<T> {
    let error = match done {
        Ok(done) => return Ok(done),
        Err(error) => error,
    };
    match Way::new(repository, fetched).refusal(asked, &error).await? {
        Some(message) => Err(Refusal {
            details: details(&error),
            ..Refusal::usage(message)
        }
        .into()),
        None => Err(error.into()),
    }
}

/// The paths that stand in the way.
fn details(error: &LandingError) -> Vec<Detail> {
    let paths = match error {
        LandingError::Conflicts { conflicts } => conflicts,
        LandingError::Dirty { paths, .. }
        | LandingError::Unsupported { paths }
        | LandingError::HooksDiffer { paths } => paths,
        LandingError::ChangedMeanwhile { .. }
        | LandingError::NotOnABranch
        | LandingError::NoCommits
        | LandingError::NoCommit { .. }
        | LandingError::InProgress { .. }
        | LandingError::Locked { .. }
        | LandingError::NoBranch { .. }
        | LandingError::Held { .. }
        | LandingError::HooksNeedFiles { .. }
        | LandingError::HookFailed { .. }
        | LandingError::NoMessage
        | LandingError::LargeFile { .. }
        | LandingError::Git(_) => return Vec::new(),
    };
    let detail = |it: &Obstacle| Detail::Path {
        path: it.path.clone(),
        problem: it.reason,
    };
    paths.iter().map(detail).collect()
}

/// Looks for a command that works.
pub(crate) struct Way<'a> {
    repository: &'a UserRepo,
    fetched: &'a FetchedResult,
    /// The working folder.
    here: PathBuf,
}

/// Commands in order; each must succeed before the next.
type Steps = Vec<String>;

impl<'a> Way<'a> {
    pub(crate) fn new(repository: &'a UserRepo, fetched: &'a FetchedResult) -> Self {
        Self {
            repository,
            fetched,
            here: env::current_dir().and_then(fs::canonicalize).unwrap_or_default(),
        }
    }

    /// `None` for obstacles that the person cannot remove.
    async fn refusal(&self, asked: Asked<'_>, error: &LandingError) -> anyhow::Result<Option<String>> {
        let again = self.kage(asked);
        Ok(Some(match error {
            LandingError::Conflicts { conflicts } if self.fetched.is_undo => {
                let what = list("the way back conflicts with what you did since", conflicts);
                what + &format!("{} shows what to take out by hand", quoted(&[self.kage_diff()]))
            }
            LandingError::Conflicts { conflicts } => {
                let with = match asked {
                    Asked::Into(_, onto) => format!("the result conflicts with {}", onto.branch),
                    Asked::Apply | Asked::Merge(_) => "the result conflicts with your work".to_owned(),
                };
                list(&with, conflicts) + &self.around_conflicts(asked, conflicts).await?
            }
            LandingError::NoBranch { branch, others } => self.no_branch(asked, branch, others).await?,
            LandingError::Held { held, .. } => format!("{error}; {}", self.around_held(asked, held).await?),
            LandingError::HooksDiffer { paths } => {
                let what = list("your hooks are not as HEAD has them", paths);
                what + &format!(
                    "commit these files to run them, or leave the hooks out: {}",
                    self.without_hooks(asked)
                )
            }
            LandingError::HookFailed { .. } | LandingError::NoMessage => format!(
                "{error}, so nothing was changed; mend that and try again, or leave the hooks out: {}",
                self.without_hooks(asked)
            ),
            LandingError::HooksNeedFiles { .. } => {
                let Asked::Into(strategy, onto) = asked else {
                    return Ok(None);
                };
                format!(
                    "{error}; in a working tree of its own: {}",
                    quoted(&self.in_a_tree(onto, Asked::Merge(strategy)))
                )
            }
            LandingError::Dirty { paths, fits_back } => {
                let what = list("paths of the result have uncommitted changes", paths);
                what + &self.around_work(asked, paths, *fits_back, Steps::new()).await?
            }
            LandingError::Unsupported { paths } if paths.iter().all(|it| it.kind == ObstacleKind::Large) => {
                let what = list("Kage does not write some paths of the result", paths);
                what + &format!("with git-lfs installed, {}", quoted(&self.with_git_lfs(again)))
            }
            LandingError::LargeFile { .. } => format!(
                "{error}, so nothing was changed; with git-lfs installed, {}",
                quoted(&self.with_git_lfs(again))
            ),
            LandingError::Unsupported { paths } => {
                let command = format!("{} | {}", self.kage_diff(), self.git("apply --3way"));
                let what = list("Kage does not write some paths of the result", paths);
                what + &format!("git itself does, with your programs: {}", quoted(&[command]))
            }
            LandingError::NotOnABranch => {
                let what = format!("{error}, so there is nothing to put a commit on; ");
                what + &self.once_on_a_branch(asked).await?
            }
            LandingError::NoCommits => {
                let start = self.git("commit --allow-empty -m 'first commit'");
                format!("{error}; make one: {}", quoted(&[start, again]))
            }
            LandingError::NoCommit { .. } => {
                let (base, result) = (&self.fetched.base, &self.fetched.commit);
                let applied = landing::plan_apply(self.repository, &self.fetched.mirror, base, result).await;
                let apply = match applied {
                    Ok(_) => format!(";\n{} changes your files only", quoted(&[self.kage(Asked::Apply)])),
                    Err(_) => String::new(),
                };
                format!("{error}\nmend that, then {}{apply}", quoted(&[again]))
            }
            LandingError::InProgress { operation } => {
                let end = match *operation {
                    "bisect" => self.git("bisect reset"),
                    other => self.git(&format!("{other} --abort")),
                };
                format!("{error}; finish it, or drop it: {}", quoted(&[end, again]))
            }
            LandingError::Locked { lock } => {
                let unlock = format!("rm -- {}", shell(&lock.to_string_lossy()));
                format!("{error}; wait for it, or, if none runs: {}", quoted(&[unlock, again]))
            }
            LandingError::ChangedMeanwhile { .. } => format!("{error}; try again: {}", quoted(&[again])),
            LandingError::Git(_) => return Ok(None),
        }))
    }

    async fn around_conflicts(&self, asked: Asked<'_>, conflicts: &[Obstacle]) -> anyhow::Result<String> {
        match asked {
            Asked::Apply if conflicts.iter().all(is_untracked) => {
                let mut steps = self.moves(conflicts);
                steps.push(self.kage(asked));
                Ok(format!("move the files in the way: {}", quoted(&steps)))
            }
            Asked::Apply => self.by_merge(self.onto_a_branch().await?).await,
            Asked::Merge(_) => self.by_apply_or_merge(self.onto_a_branch().await?).await,
            Asked::Into(_, onto) => {
                let manual = quoted(&self.in_a_tree(onto, Asked::Merge(Strategy::Manual)));
                let mut text = format!("{manual} leaves the conflicts to you to resolve, in a working tree of its own");
                if self.probe_into(Strategy::Theirs, onto).await.is_ok() {
                    let theirs = quoted(&[self.kage(Asked::Into(Strategy::Theirs, onto))]);
                    text += &format!(";\n{theirs} takes the result's side of them");
                }
                Ok(text)
            }
        }
    }

    /// Around uncommitted work: the least invasive way first.
    async fn around_work(
        &self,
        asked: Asked<'_>,
        paths: &[Obstacle],
        fits_back: bool,
        mut steps: Steps,
    ) -> anyhow::Result<String> {
        if paths.iter().any(|it| it.kind == ObstacleKind::Unmerged) {
            steps.extend([self.git("reset --merge"), self.kage(asked)]);
            return Ok(format!("resolve and commit them, or drop them: {}", quoted(&steps)));
        }
        if fits_back {
            let put_aside = self.git(&format!("stash push -- {}", specs(paths)));
            steps.extend([put_aside, self.kage(asked), self.git("stash pop")]);
            return Ok(format!("put them aside meanwhile: {}", quoted(&steps)));
        }
        if paths.iter().all(is_untracked) {
            steps.extend(self.moves(paths));
            steps.push(self.kage(asked));
            return Ok(format!("move the files in the way: {}", quoted(&steps)));
        }
        self.by_apply_or_merge(steps).await
    }

    async fn once_on_a_branch(&self, asked: Asked<'_>) -> anyhow::Result<String> {
        let strategy = match asked {
            Asked::Apply => Strategy::Auto,
            Asked::Merge(strategy) | Asked::Into(strategy, _) => strategy,
        };
        let mut steps = self.onto_a_branch().await?;
        match self.probe(strategy).await {
            Err(LandingError::Dirty { paths, fits_back }) => self.around_work(asked, &paths, fits_back, steps).await,
            Err(LandingError::Conflicts { .. }) => self.by_apply_or_merge(steps).await,
            Ok(_) | Err(_) => {
                steps.push(self.kage(asked));
                Ok(format!("make a branch: {}", quoted(&steps)))
            }
        }
    }

    /// The steps to let git-lfs store files, and what is to be done then.
    fn with_git_lfs(&self, again: String) -> Steps {
        vec![self.git("lfs install"), again]
    }

    /// The steps to get onto a branch.
    async fn onto_a_branch(&self) -> anyhow::Result<Steps> {
        if self.repository.branch().await?.is_some() {
            return Ok(Steps::new());
        }
        let name = format!("kage-{}", view::short_id(&self.fetched.task));
        Ok(vec![self.git(&format!("switch -c {}", shell(&name)))])
    }

    async fn by_apply_or_merge(&self, steps: Steps) -> anyhow::Result<String> {
        let (base, result) = (&self.fetched.base, &self.fetched.commit);
        let applied = landing::plan_apply(self.repository, &self.fetched.mirror, base, result).await;
        let merge = self.by_merge(steps).await?;
        if applied.is_err() {
            return Ok(merge);
        }
        let apply = quoted(&[self.kage(Asked::Apply)]);
        Ok(format!("{apply} brings it into your files as they are;\n{merge}"))
    }

    /// By a commit, after the steps that make room for it.
    async fn by_merge(&self, mut steps: Steps) -> anyhow::Result<String> {
        let manual = self.kage(Asked::Merge(Strategy::Manual));
        if let Err(LandingError::Dirty { paths, .. }) = self.probe(Strategy::Manual).await {
            steps.extend(self.moves(&paths));
            let edited = paths.into_iter().filter(|it| it.kind == ObstacleKind::Edited);
            let edited = specs(&edited.collect::<Vec<_>>());
            if !edited.is_empty() {
                steps.push(self.git(&format!("add -f -- {edited}")));
                steps.push(self.git(&format!("commit -m 'work in progress' -- {edited}")));
            }
            steps.push(manual);
            let steps = quoted(&steps);
            return Ok(format!("{steps} commits your work first and leaves conflicts to you"));
        }
        let theirs = self.probe(Strategy::Theirs).await;
        let mut other = steps.clone();
        steps.push(manual);
        let mut text = format!("{} leaves the conflicts to you to resolve", quoted(&steps));
        if theirs.is_ok() {
            other.push(self.kage(Asked::Merge(Strategy::Theirs)));
            text += &format!(";\n{} takes the result's side of them", quoted(&other));
        }
        Ok(text)
    }

    async fn probe(&self, strategy: Strategy) -> Result<MergeEnd, LandingError> {
        let (base, result) = (&self.fetched.base, &self.fetched.commit);
        landing::probe_merge(self.repository, &self.fetched.mirror, base, result, strategy).await
    }

    /// The flag that picks the result.
    fn pick(&self) -> String {
        let task = view::short_id(&self.fetched.task);
        format!("{} --session {}", shell(task), shell(&self.fetched.session.name))
    }

    pub(crate) fn kage(&self, asked: Asked<'_>) -> String {
        let strategy = |strategy| match strategy {
            Strategy::Auto => "",
            Strategy::Theirs => " --strategy theirs",
            Strategy::Manual => " --strategy manual",
        };
        let pick = self.pick();
        let mut command = match asked {
            Asked::Apply => format!("kage apply {pick}"),
            Asked::Merge(how) => format!("kage merge {pick}{}", strategy(how)),
            Asked::Into(how, onto) => {
                let branch = shell(onto.branch.as_str());
                format!("kage merge {pick}{} --into {branch}", strategy(how))
            }
        };
        let of_merge = match asked {
            Asked::Apply => &[],
            Asked::Merge(_) | Asked::Into(..) => self.fetched.merge_flags.as_slice(),
        };
        for flag in self.fetched.flags.iter().chain(of_merge) {
            // A request is for a branch that is pushed by name.
            if *flag == "--pr" && matches!(asked, Asked::Merge(_)) {
                continue;
            }
            command += &format!(" {flag}");
        }
        if matches!(asked, Asked::Apply) {
            command += &self.paths(&self.fetched.only);
        }
        command + &self.repo()
    }

    /// The flag for paths of the repository.
    fn paths(&self, paths: &[PathBuf]) -> String {
        let root = self.repository.root();
        let shown = paths.iter().map(|path| {
            let full = root.join(path);
            let place = match self.here.starts_with(root) {
                true => full.strip_prefix(&self.here).unwrap_or(&full),
                false => path,
            };
            match place.as_os_str().is_empty() {
                true => " --path .".to_owned(),
                false => format!(" --path {}", shell(&place.to_string_lossy())),
            }
        });
        shown.collect()
    }

    /// The flag for the repository, where it is not the one of the working folder.
    fn repo(&self) -> String {
        let root = self.repository.root();
        match self.here.starts_with(root) {
            true => String::new(),
            false => format!(" --repo {}", shell(&root.to_string_lossy())),
        }
    }

    /// The command that takes what was applied out again.
    pub(super) fn undo(&self, only: &[PathBuf]) -> String {
        format!("kage apply {} --undo{}{}", self.pick(), self.paths(only), self.repo())
    }

    fn kage_diff(&self) -> String {
        format!("kage diff {}", self.pick())
    }

    /// git with paths that are relative to the top of the repository.
    pub(crate) fn git(&self, arguments: &str) -> String {
        let root = self.repository.root();
        if self.here == root {
            format!("git {arguments}")
        } else {
            format!("git -C {} {arguments}", shell(&root.to_string_lossy()))
        }
    }

    /// Commands that move untracked obstacles away.
    fn moves(&self, paths: &[Obstacle]) -> Steps {
        let way = |it: &Obstacle| match &it.kind {
            ObstacleKind::Untracked { at } => Some((at.clone(), at.clone())),
            ObstacleKind::Inside { folder } => Some((it.path.clone(), folder.clone())),
            ObstacleKind::Content | ObstacleKind::Edited | ObstacleKind::Unmerged | ObstacleKind::Large => None,
        };
        let ways: BTreeSet<(String, String)> = paths.iter().filter_map(way).collect();
        let root = self.repository.root();
        let place = |path: &str| {
            let full = root.join(path);
            let from_here = full.strip_prefix(&self.here).unwrap_or(&full);
            shell(&from_here.to_string_lossy())
        };
        let mut taken = BTreeSet::new();
        let mut steps = Steps::new();
        for (from, beside) in ways {
            let to = free_name(root, &beside, &taken);
            steps.push(format!("mv -- {} {}", place(&from), place(&to)));
            taken.insert(to);
        }
        steps
    }
}

fn is_untracked(obstacle: &Obstacle) -> bool {
    matches!(
        obstacle.kind,
        ObstacleKind::Untracked { .. } | ObstacleKind::Inside { .. }
    )
}

/// A name beside `path` that is free and will not be used.
fn free_name(root: &Path, path: &str, taken: &BTreeSet<String>) -> String {
    let mut name = format!("{path}.mine");
    let mut number = 1_u32;
    while taken.contains(&name) || fs::symlink_metadata(root.join(&name)).is_ok() {
        number = number.saturating_add(1);
        name = format!("{path}.mine{number}");
    }
    name
}

/// Paths in the form that git's commands accept.
fn specs(paths: &[Obstacle]) -> String {
    let spec = |it: &Obstacle| {
        if it.path.contains(['*', '?', '[', '\\']) || it.path.starts_with(':') {
            shell(&format!(":(literal){}", it.path))
        } else {
            shell(&it.path)
        }
    };
    let specs: Vec<String> = paths.iter().map(spec).collect();
    specs.join(" ")
}

fn list(what: &str, obstacles: &[Obstacle]) -> String {
    let mut text = format!("{what}, so nothing was changed:\n");
    for obstacle in obstacles {
        text += &format!("  {}: {}\n", view::printable(&obstacle.path), obstacle.reason);
    }
    text
}

pub(super) fn quoted(steps: &[String]) -> String {
    format!("`{}`", steps.join(" && "))
}

pub(crate) fn shell(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | '+' | '=' | ',' | '@' | '%');
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests;

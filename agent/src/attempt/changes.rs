//! Reports which files of a worktree changed while a session works on them: looks from time to
//! time, more rarely the longer a look takes, and reports only new changes.

use std::collections::BTreeMap;
use std::time::Duration;

use kage_core::event::{ChangeKind, EventBody, FileChange};
use kage_git::Secrets;
use tokio::time::Instant;

use crate::adapters::steps::{CheckpointRequest, Steps};
use crate::delivery::outbox::OutboxClosed;
use crate::delivery::recorder::Recording;
use crate::ground::port::Workspace;

/// The wait after a look that found a change.
const SHORTEST: Duration = Duration::from_millis(300);
/// The longest wait between two looks, unless a look itself takes long.
const LONGEST: Duration = Duration::from_secs(3);
/// Looking may take one part in this many of the time.
const SHARE: u32 = 20;
/// Files of one event, so that it stays a small message.
const FILES: usize = 200;

/// A burst of changes that does not end gets a checkpoint this often.
const LONGEST_BURST: Duration = Duration::from_secs(15);
/// Changes that no look shows, such as a line that replaced another, get a checkpoint this often.
const QUIET: Duration = Duration::from_secs(30);

/// When files that a program writes on its own are worth a checkpoint.
#[derive(Debug)]
pub(super) struct Burst {
    steps: Steps,
    /// Start of the changes for which no checkpoint was requested yet.
    since: Option<Instant>,
    asked: Instant,
}

impl Burst {
    pub(super) fn new(steps: Steps) -> Self {
        Self {
            steps,
            since: None,
            asked: Instant::now(),
        }
    }

    fn looked(&mut self, new: bool, now: Instant) {
        if new {
            self.since.get_or_insert(now);
        }
        let settled = !new && self.since.is_some();
        let long = self.since.is_some_and(|since| now - since >= LONGEST_BURST);
        if settled || long || now - self.asked >= QUIET {
            self.since = None;
            self.asked = now;
            self.steps.ask(CheckpointRequest::files_changed());
        }
    }
}

/// The reported changes of one worktree.
#[derive(Debug, Default)]
pub(super) struct Changes {
    reported: BTreeMap<String, FileChange>,
    /// What no path may tell.
    secrets: Secrets,
}

impl Changes {
    pub(super) fn new(secrets: Secrets) -> Self {
        Self {
            reported: BTreeMap::new(),
            secrets,
        }
    }

    /// Looks and reports until it is dropped; returns only when the agent ends. With `burst` it
    /// requests a checkpoint when changed files have come to rest.
    pub(super) async fn watch(
        &mut self,
        workspace: &dyn Workspace,
        recording: &Recording,
        mut burst: Option<&mut Burst>,
    ) -> OutboxClosed {
        let mut wait = SHORTEST;
        loop {
            tokio::time::sleep(wait).await;
            let began = Instant::now();
            let new = match self.look(workspace, recording).await {
                Ok(new) => new,
                Err(closed) => return closed,
            };
            if let Some(burst) = &mut burst {
                burst.looked(new, Instant::now());
            }
            wait = if new { SHORTEST } else { (wait * 2).min(LONGEST) };
            wait = wait.max(began.elapsed() * SHARE);
        }
    }

    /// Reports new changes. True when there were any.
    pub(super) async fn look(
        &mut self,
        workspace: &dyn Workspace,
        recording: &Recording,
    ) -> Result<bool, OutboxClosed> {
        let now = match workspace.changes().await {
            Ok(now) => now,
            Err(failure) => {
                // The program may be in the middle of a change; the next look tells more.
                tracing::debug!(error = failure.message, "the worktree cannot be inspected");
                return Ok(false);
            }
        };
        let news = self.news(now);
        for files in news.chunks(FILES) {
            recording.post(EventBody::FilesChanged(self.sayable(files))).await?;
            // Only now: this may be dropped while it waits, and the next look reports the rest.
            self.told(files);
        }
        Ok(!news.is_empty())
    }

    /// The same with paths that tell no secret, whatever an encoding made of it.
    fn sayable(&self, files: &[FileChange]) -> Vec<FileChange> {
        let sayable = files.iter().cloned().map(|file| FileChange {
            path: self.secrets.told(file.path),
            ..file
        });
        sayable.collect()
    }

    /// The differences from the last report, in the order of paths.
    fn news(&self, now: Vec<FileChange>) -> Vec<FileChange> {
        let now: BTreeMap<_, _> = now.into_iter().map(|change| (change.path.clone(), change)).collect();
        let gone = self.reported.keys().filter(|path| !now.contains_key(*path));
        let mut news: Vec<_> = gone
            .map(|path| FileChange {
                path: path.clone(),
                kind: ChangeKind::Reverted,
                added: 0,
                removed: 0,
            })
            .chain(
                now.values()
                    .filter(|change| self.reported.get(&change.path) != Some(change))
                    .cloned(),
            )
            .collect();
        news.sort_by(|a, b| a.path.cmp(&b.path));
        news
    }

    /// Records `news` as reported.
    fn told(&mut self, news: &[FileChange]) {
        for change in news {
            match change.kind {
                ChangeKind::Reverted => self.reported.remove(&change.path),
                ChangeKind::Added | ChangeKind::Modified | ChangeKind::Deleted => {
                    self.reported.insert(change.path.clone(), change.clone())
                }
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::delivery::forms::sought;
    use crate::process::Secret;

    fn change(path: &str, kind: ChangeKind, added: u64) -> FileChange {
        FileChange {
            path: path.to_owned(),
            kind,
            added,
            removed: 0,
        }
    }

    #[test]
    fn a_burst_is_kept_when_it_ends_and_a_long_one_in_parts() {
        let steps = Steps::from(0);
        let mut burst = Burst::new(steps.clone());
        let start = burst.asked;
        let mut asked = |new, second| {
            burst.looked(new, start + Duration::from_secs(second));
            steps.asked().now_or_never().is_some()
        };
        let looks = [
            (true, 1),
            (true, 2),
            (false, 3),
            (false, 4),
            (true, 5),
            (true, 19),
            (true, 20),
            (false, 21),
        ];
        let kept: Vec<bool> = looks.map(|(new, second)| asked(new, second)).into();
        assert_eq!(kept, [false, false, true, false, false, false, true, false]);
        assert!(!asked(false, 49) && asked(false, 50));
    }

    #[test]
    fn a_path_tells_no_encoding_of_a_secret() {
        let changes = Changes::new(sought(&[Secret::new("KEY", "sk-secret-value")]));
        let percent: String = "sk-secret-value".bytes().map(|byte| format!("%{byte:02X}")).collect();
        let hex: String = "sk-secret-value".bytes().map(|byte| format!("{byte:02x} ")).collect();
        for (path, told) in [
            ("plain.txt".to_owned(), "plain.txt"),
            ("a/sk-secret-value".to_owned(), "a/***"),
            (format!("a/{percent}.txt"), "a/***.txt"),
            (format!("a/{hex}"), "***"),
        ] {
            let files = changes.sayable(&[change(&path, ChangeKind::Added, 1)]);
            assert_eq!(files[0].path, told, "{path}");
        }
    }

    #[test]
    fn reports_each_difference_once() {
        let mut changes = Changes::default();
        let a1 = change("a", ChangeKind::Added, 1);
        let b1 = change("b", ChangeKind::Modified, 1);
        let a2 = change("a", ChangeKind::Added, 2);
        let both = vec![b1.clone(), a1.clone()];
        assert_eq!(changes.news(both.clone()), [a1.clone(), b1.clone()]);
        // Only the first was sent.
        changes.told(std::slice::from_ref(&a1));
        assert_eq!(changes.news(both), std::slice::from_ref(&b1));
        changes.told(std::slice::from_ref(&b1));
        let mut update = |now| {
            let news = changes.news(now);
            changes.told(&news);
            news
        };
        assert_eq!(update(vec![a1, b1.clone()]), []);
        assert_eq!(update(vec![a2.clone(), b1]), std::slice::from_ref(&a2));
        assert_eq!(update(vec![a2.clone()]), [change("b", ChangeKind::Reverted, 0)]);
        assert_eq!(update(vec![a2]), []);
    }
}

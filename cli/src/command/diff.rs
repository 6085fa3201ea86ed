//! `kage diff`: a session's change as a patch for `git apply`, or what the results of two sessions differ
//! in; or only how much, or where.

use std::ops::ControlFlow;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use kage_core::id::Oid;
use kage_git::diff::{self, DiffScope, FileDiff, FileLines, FileStatus};
use kage_proto::v1;
use serde::Serialize;

use crate::args::Diff;
use crate::exit::{Exit, Refusal};
use crate::invocation::Invocation;
use crate::result::{self, FetchedResult};
use crate::tasks;
use crate::terminal::{Ink, Painted};

mod stat;

#[derive(Debug, Serialize)]
struct DiffJson<'a> {
    task_id: &'a str,
    session: &'a str,
    /// The session whose result it is compared with; absent: with the base.
    #[serde(skip_serializing_if = "Option::is_none")]
    from_session: Option<&'a str>,
    base_commit: &'a str,
    commit: &'a str,
    /// What of it is not UTF-8 is U+FFFD.
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<&'a str>,
    /// Its bytes in base64, when they are not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<String>,
    /// In place of a patch.
    #[serde(skip_serializing_if = "Option::is_none")]
    files: Option<Vec<FileJson>>,
}

/// A changed file, its paths in the two forms that messages of the API have.
#[derive(Debug, Serialize)]
struct FileJson {
    path: String,
    display_path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    old_display_path: Option<String>,
    status: &'static str,
    /// Absent where lines are not counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    added: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    removed: Option<u64>,
}

impl FileJson {
    fn of(file: &FileDiff) -> Self {
        let shown = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
        let (added, removed) = match file.lines {
            FileLines::Counted { added, removed } => (Some(added), Some(removed)),
            FileLines::Binary | FileLines::TooLarge => (None, None),
        };
        Self {
            path: BASE64.encode(&file.path),
            display_path: shown(&file.path),
            old_display_path: file.old_path.as_deref().map(shown),
            status: match file.status {
                FileStatus::Added => "added",
                FileStatus::Modified => "modified",
                FileStatus::Deleted => "deleted",
                FileStatus::Renamed => "renamed",
            },
            added,
            removed,
        }
    }
}

/// What was typed: a task, and the sessions to compare.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Compared {
    task: Option<String>,
    /// The one whose result is shown; `None`: the winner.
    session: Option<String>,
    /// The one whose result it is compared with; `None`: the base.
    with: Option<String>,
}

impl Compared {
    fn read(what: &[String], session: Option<&str>) -> Result<Self, Refusal> {
        let is_id = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_hexdigit());
        let of = |task: Option<&String>, session: Option<&str>, with: Option<&String>| Self {
            task: task.cloned(),
            session: session.map(str::to_owned),
            with: with.cloned(),
        };
        match (what, session) {
            ([], session) => Ok(of(None, session, None)),
            // An id of a task has only such letters, and most names of sessions have others.
            ([one], None) if !is_id(one) => Ok(of(None, Some(one.as_str()), None)),
            ([task], session) => Ok(of(Some(task), session, None)),
            ([first, second], None) => Ok(of(None, Some(second.as_str()), Some(first))),
            ([task, first, second], None) => Ok(of(Some(task), Some(second.as_str()), Some(first))),
            _ => Err(Refusal::usage(
                "two sessions are compared by their names: `kage diff [TASK] SESSION SESSION`, without --session",
            )),
        }
    }
}

pub(super) async fn run(invocation: &Invocation, args: Diff) -> anyhow::Result<Exit> {
    let compared = Compared::read(&args.what, args.session.as_deref())?;
    let access = invocation.existing().await?;
    let task = tasks::find(&access, compared.task).await?;
    let report = tasks::report(&access, &task.id).await?.report.unwrap_or_default();
    let chosen = result::choose(&report, compared.session.as_deref(), false, "diff")?;
    result::tell_unfinished(&chosen);
    let fetch = async |session: v1::Session| result::fetch(&access, &invocation.state, &task, session).await;
    let with = match &compared.with {
        Some(name) => Some(fetch(result::named(&report, name)?).await?),
        None => None,
    };
    let fetched = fetch(chosen).await?;
    let from = with.as_ref().map_or(&fetched.base, |with| &with.commit).clone();
    let mut diff = DiffJson {
        task_id: &fetched.task,
        session: &fetched.session.name,
        from_session: compared.with.as_deref(),
        base_commit: from.as_str(),
        commit: fetched.commit.as_str(),
        patch: None,
        data: None,
        files: None,
    };
    if args.stat || args.name_only {
        let files = files(&fetched, &from).await?;
        diff.files = Some(files.iter().map(FileJson::of).collect());
        invocation.out.result("diff", &diff)?;
        let text = if args.stat {
            stat::stat(&files)
        } else {
            stat::names(&files)
        };
        match args.raw {
            true => invocation.out.unchanged(&text)?,
            false => invocation.out.raw(&text)?,
        }
        return Ok(Exit::Done);
    }
    let (mirror, base, commit) = (fetched.mirror.path().to_owned(), from.clone(), fetched.commit.clone());
    let patch = tokio::task::spawn_blocking(move || diff::patch(&mirror, &base, &commit)).await??;
    let text = String::from_utf8_lossy(&patch);
    diff.data = (text.as_bytes() != patch).then(|| BASE64.encode(&patch));
    diff.patch = Some(&text);
    invocation.out.result("diff", &diff)?;
    match invocation.out.screen().is_terminal && !args.raw {
        true => invocation.out.paged(&coloured(&text))?,
        false => invocation.out.unchanged(&patch)?,
    }
    Ok(Exit::Done)
}

/// A patch with the colours that git gives it.
fn coloured(patch: &str) -> Painted {
    let mut painted = Painted::default();
    // Lines of files begin with one character, those about files do not come after `@@`.
    let mut in_hunk = false;
    for line in patch.split_inclusive('\n') {
        let ink = match line.as_bytes().first() {
            _ if line.starts_with("diff ") => {
                in_hunk = false;
                Ink::Strong
            }
            Some(b'@') => {
                in_hunk = true;
                Ink::Notice
            }
            Some(b'+') if in_hunk => Ink::Good,
            Some(b'-') if in_hunk => Ink::Bad,
            Some(_) | None if in_hunk => Ink::Plain,
            Some(_) | None => Ink::Faint,
        };
        painted.push(ink, line);
    }
    painted
}

async fn files(fetched: &FetchedResult, from: &Oid) -> anyhow::Result<Vec<FileDiff>> {
    let (mirror, from, to) = (fetched.mirror.path().to_owned(), from.clone(), fetched.commit.clone());
    let scope = DiffScope {
        paths: Vec::new(),
        file_bytes: 0,
        total_bytes: 0,
    };
    let list = move || {
        let mut files = Vec::new();
        let listed = diff::by_file(&mirror, &from, &to, &scope, |file| {
            files.push(file);
            ControlFlow::Continue(())
        });
        listed.map(|_| files)
    };
    Ok(tokio::task::spawn_blocking(list).await??)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_is_coloured_by_its_lines_and_stays_the_same_text() {
        let patch = "diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1,2 +1,2 @@ f\n a\n-b\u{1b}[2J\n--- c\n+d\n";
        let painted = coloured(patch);
        assert_eq!(painted.text(), patch);
        insta::assert_snapshot!(painted.for_terminal(true).replace('\u{1b}', "^"), @r#"
        ^[1mdiff --git a/x b/x^[0m
        ^[2m--- a/x^[0m
        ^[2m+++ b/x^[0m
        ^[33m@@ -1,2 +1,2 @@ f^[0m
         a
        ^[31m-b�[2J^[0m
        ^[31m--- c^[0m
        ^[32m+d^[0m
        "#);
    }

    #[test]
    fn what_is_compared_is_told_by_its_place() {
        let read = |what: &[&str], session: Option<&str>| {
            let what: Vec<String> = what.iter().map(|it| (*it).to_owned()).collect();
            let read = Compared::read(&what, session).ok()?;
            Some(
                [read.task, read.with, read.session]
                    .map(|it| it.unwrap_or_else(|| "-".to_owned()))
                    .join(" "),
            )
        };
        assert_eq!(read(&[], None).as_deref(), Some("- - -"));
        assert_eq!(read(&["01ab"], None).as_deref(), Some("01ab - -"));
        assert_eq!(read(&["01ab"], Some("one")).as_deref(), Some("01ab - one"));
        assert_eq!(read(&["one-1"], None).as_deref(), Some("- - one-1"));
        assert_eq!(read(&["one-1", "one-2"], None).as_deref(), Some("- one-1 one-2"));
        assert_eq!(read(&["01ab", "one", "two"], None).as_deref(), Some("01ab one two"));
        assert_eq!(read(&["one", "two"], Some("three")), None);
    }
}

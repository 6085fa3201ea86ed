//! Untrusted repositories. Every trap first springs under plain git (a trap that cannot spring
//! proves nothing). Then a whole session avoids it: base, checkpoints, restores, result, apply and
//! merge, with the same trap in the session's own repository. This file defines what a trap is; the
//! modules below have the traps.

use std::error::Error;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kage_git::landing::{Strategy, plan_apply, plan_merge};
use kage_git::restore::RestoreOptions;
use kage_git::snapshot::{Receiver, Snapshot, SnapshotOptions};
use kage_git::{Auth, Mirror, UserRepo, Worktree};

use crate::sandbox::{Sandbox, copy_folder, copy_program, message, protecting, url, write};

mod environment;
mod hooks;
mod layouts;
mod names;
mod programs;
mod remotes;
mod trees;

/// A part of a repository that runs a program. In all texts `{marker}` is a program that leaves a
/// mark and passes on its input, `{stop}` one that leaves a mark and exits, `{repo}` the
/// repository, `{folder}` its folder, `{hooks}` another folder there.
struct Trap {
    name: &'static str,
    config: &'static [(&'static str, &'static str)],
    /// The kind of hook that the marker is, in the repository's own folder and in `{hooks}`.
    hook: Option<&'static str>,
    /// Files beside the repository, or in it.
    files: &'static [(&'static str, &'static str)],
    /// How a person springs it: arguments of git, or of `sh` if that is first.
    control: &'static [&'static [&'static str]],
    /// The refusal of a session that must not start.
    refused: Option<&'static str>,
}

const PLAIN: Trap = Trap {
    name: "",
    config: &[],
    hook: None,
    files: &[],
    control: &[],
    refused: None,
};

/// A repository with traps.
struct Field {
    sandbox: Sandbox,
}

/// A copy of the repository with one trap.
struct Ground<'a> {
    field: &'a Field,
    folder: PathBuf,
}

impl Field {
    /// With a repository that has uncommitted work, a branch `side` that changed the same
    /// file, and attributes that name drivers which are not configured.
    fn new() -> Self {
        let sandbox = Sandbox::new();
        let files = [
            ("text", "1\n2\n3\n"),
            ("other", "o\n"),
            ("third", "t\n"),
            ("fourth", "f\n"),
            (
                ".gitattributes",
                "text diff=evil merge=evil\nother filter=evil\nthird filter=evil=x\n",
            ),
        ];
        let template = sandbox.repository("template", &files);
        sandbox.git(&template, &["checkout", "-q", "-b", "side"]);
        write(&template.join("text"), "1\n2\nthree\n");
        sandbox.commit(&template, "side");
        sandbox.git(&template, &["checkout", "-q", "main"]);
        write(&template.join("text"), "one\n2\n3\n");
        sandbox.commit(&template, "main");
        fs::remove_dir_all(template.join(".git/hooks")).unwrap();
        Self { sandbox }
    }

    fn ground(&self, name: &str) -> Ground<'_> {
        let folder = self.sandbox.path(name);
        copy_folder(&self.sandbox.path("template"), &folder.join("repo"));
        let ground = Ground { field: self, folder };
        write(&ground.repo().join("text"), "one\nand two\n3\n");
        ground.make_programs();
        ground
    }

    /// Springs every trap under plain git, and avoids every one with ours.
    async fn pass_by(&self, traps: &[Trap]) {
        let mut wrong = Vec::new();
        for (number, trap) in traps.iter().enumerate() {
            let control = self.ground(&format!("{number}-control"));
            control.set(trap, &control.repo());
            write(&control.repo().join("other"), "changed\n");
            control.disarm();
            let said = control.walk(trap.control);
            if !control.has_sprung() {
                wrong.push(format!("{}: plain git did not walk into it: {said}", trap.name));
            }

            let ours = self.ground(&format!("{number}-ours"));
            ours.set(trap, &ours.repo());
            ours.disarm();
            let done = ours.session(trap).await;
            match (done, trap.refused) {
                (Ok(()), None) => {}
                (Err(error), Some(words)) if error.to_string().contains(words) => {}
                (done, _) => wrong.push(format!("{}: {done:?}", trap.name)),
            }
            if ours.has_sprung() {
                wrong.push(format!("{}: it ran", trap.name));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

impl Ground<'_> {
    fn repo(&self) -> PathBuf {
        self.folder.join("repo")
    }

    fn mark(&self) -> PathBuf {
        self.folder.join("mark")
    }

    fn has_sprung(&self) -> bool {
        self.mark().exists()
    }

    /// Setting a trap may spring it.
    fn disarm(&self) {
        fs::remove_file(self.mark()).ok();
    }

    fn make_programs(&self) {
        for (name, more) in [("marker", "cat"), ("stop", "exit 1")] {
            let program = self.folder.join(name);
            write(
                &program,
                format!("#!/bin/sh\ntouch '{}'\n{more}\n", self.mark().display()),
            );
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }

    fn fill(&self, text: &str) -> String {
        let folder = self.folder.to_str().unwrap();
        text.replace("{marker}", "{folder}/marker")
            .replace("{stop}", "{folder}/stop")
            .replace("{mark}", "{folder}/mark")
            .replace("{hooks}", "{folder}/hooks")
            .replace("{repo}", "{folder}/repo")
            .replace("{folder}", folder)
    }

    /// Sets a trap in a repository, the person's or a session's.
    fn set(&self, trap: &Trap, repository: &Path) {
        for (path, content) in trap.files {
            let path = match path.strip_prefix("{repo}/") {
                Some(inside) => repository.join(inside),
                None => PathBuf::from(self.fill(path)),
            };
            write(&path, self.fill(content));
        }
        if let Some(hook) = trap.hook {
            for folder in [self.folder.join("hooks"), repository.join(".git/hooks")] {
                fs::create_dir_all(&folder).unwrap();
                copy_program(&self.folder.join("marker"), &folder.join(hook));
            }
        }
        for (key, value) in trap.config {
            let (key, value) = (&self.fill(key), self.fill(value));
            self.field
                .sandbox
                .git(repository, &["config", "--local", "--add", key, &value]);
        }
    }

    /// Does what a person would do; returns all output. Steps may fail because of the program's
    /// output: it ran, which is the point.
    fn walk(&self, steps: &[&[&str]]) -> String {
        let mut said = String::new();
        for step in steps {
            let step: Vec<String> = step.iter().map(|word| self.fill(word)).collect();
            let mut command = match step.split_first() {
                Some((first, rest)) if first == "sh" => {
                    let mut command = self.field.sandbox.program("sh", &self.repo());
                    command.args(rest);
                    command
                }
                _ => {
                    let mut command = self.field.sandbox.program("git", &self.repo());
                    command.args(&step);
                    command
                }
            };
            said.push_str(&finish(&mut command));
        }
        said
    }

    async fn session(&self, trap: &Trap) -> Result<(), Box<dyn Error>> {
        let repository = UserRepo::discover(&self.repo()).await?;
        let snapshot = Snapshot::take(&repository, &SnapshotOptions::default()).await?;
        let mirror = Mirror::open_or_init(self.folder.join("m.git")).await?;
        snapshot.push(&url(mirror.path()), &Auth::None, Receiver::New).await?;
        let worktree = Worktree::create(&mirror, self.folder.join("w"), &snapshot.base).await?;
        self.set(trap, worktree.path());
        self.disarm();
        let first = worktree.checkpoint(&snapshot.base, "first").await?;
        write(&worktree.path().join("other"), "changed\n");
        write(&worktree.path().join("third"), "changed\n");
        write(&worktree.path().join("fourth"), "changed\n");
        worktree.checkpoint(&first.commit, "second").await?;
        worktree.restore(&first.commit, &RestoreOptions::default()).await?;
        write(&worktree.path().join("other"), "changed\n");
        worktree
            .restore_paths(&snapshot.base, &protecting(&["other", "third"]))
            .await?;
        // Not beside what is uncommitted, so that both come together on either.
        write(&worktree.path().join("text"), "one\nand two\n3\nand four\n");
        write(&worktree.path().join("new"), "n\n");
        worktree.changes().await?;
        let result = worktree.commit_result("r\n").await?.ok_or("no result")?.commit;
        plan_apply(&repository, &mirror, &snapshot.base, &result)
            .await?
            .execute()
            .await?;
        // For the merge the tree is clean again, without plain git's help.
        write(&self.repo().join("text"), "one\n2\n3\n");
        fs::remove_file(self.repo().join("new"))?;
        plan_merge(
            &repository,
            &mirror,
            &snapshot.base,
            &result,
            Strategy::Auto,
            &message(),
        )
        .await?
        .execute()
        .await?;
        Worktree::remove(&mirror, worktree.path()).await?;
        Ok(())
    }
}

/// Runs a program without input; returns its output, errors first.
fn finish(command: &mut Command) -> String {
    let done = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&done.stderr) + &text(&done.stdout)
}

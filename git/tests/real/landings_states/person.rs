//! Commits of a landing are the person's own: their name, their signature, and no commit where their
//! git makes none.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use kage_git::UserRepo;
use kage_git::landing::{LandingError, MergeEnd, Merged, Strategy, plan_merge};

use super::{Story, adds};
use crate::sandbox::{Sandbox, fingerprint, message, write};

/// Stands in for gpg: signs everything, and keeps a list of what it was asked.
const SIGNS: &str = "#!/bin/sh\ncat > /dev/null\necho \"$@\" >> \"$0.asked\"\n\
                     echo '[GNUPG:] SIG_CREATED ' >&2\nprintf '%s\\n' '-----BEGIN PGP SIGNATURE-----' \
                     'by hand' '-----END PGP SIGNATURE-----'\n";

#[tokio::test]
async fn commits_are_signed_by_the_program_of_the_persons_own_settings() {
    let sandbox = Sandbox::new();
    let source = sandbox.repository("source", &[("text", "t\n")]);
    let home = sandbox.path("home-of-ann");
    let gpg = home.join("gpg");
    write(&gpg, SIGNS);
    fs::set_permissions(&gpg, fs::Permissions::from_mode(0o755)).unwrap();
    let settings = format!("[gpg]\n\tprogram = {}\n[user]\n\tsigningKey = KEY\n", gpg.display());
    write(&home.join(".gitconfig"), settings);
    // That commits are signed may be said for one repository.
    sandbox.git(&source, &["config", "commit.gpgSign", "on"]);
    let done = sandbox
        .program(env!("CARGO_BIN_EXE_kage-git-step"), &source)
        .env("HOME", &home)
        .args(["session".as_ref(), source.as_os_str(), sandbox.path("").as_os_str()])
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    // The change on the base, and the merge.
    for commit in ["HEAD", "HEAD^2"] {
        let text = sandbox.git(&source, &["cat-file", "commit", commit]);
        assert!(
            text.contains("gpgsig -----BEGIN PGP SIGNATURE-----"),
            "{commit}: {text}"
        );
    }
    let asked = fs::read_to_string(home.join("gpg.asked")).unwrap();
    assert_eq!(asked, "--status-fd=2 -bsau KEY\n".repeat(2), "plans ask nobody");
    sandbox.git(&source, &["fsck", "--strict"]);
}

#[tokio::test]
async fn a_plan_makes_no_commit() {
    let story = Story::new(|_, _| {}, adds).await;
    story.git(&["config", "commit.gpgSign", "true"]);
    let repository = UserRepo::discover(&story.source).await.unwrap();
    let (base, result) = (&story.base, &story.result);
    let plan = plan_merge(&repository, &story.mirror, base, result, Strategy::Auto, &message()).await;
    assert!(matches!(plan.unwrap().end(), MergeEnd::Commit(_)));
}

#[tokio::test]
async fn a_merge_that_was_undone_comes_back_whoever_made_it() {
    let story = Story::new(|_, _| {}, adds).await;
    write(&story.source.join("ahead"), "a\n");
    story.sandbox.commit(&story.source, "ahead");
    assert!(matches!(story.merge(Strategy::Auto).await, Ok(Merged::Committed(_))));
    story.git(&["revert", "--no-edit", "-m", "1", "HEAD"]);
    story.git(&["config", "user.name", "Bea"]);
    let head = story.sandbox.head(&story.source);
    assert!(matches!(story.merge(Strategy::Auto).await, Ok(Merged::Committed(_))));
    assert_eq!(story.git(&["log", "-1", "--format=%P"]), head.as_str());
    assert_eq!(story.read("new"), "n\n");
}

#[tokio::test]
async fn without_a_signature_or_a_name_nothing_is_done_and_git_says_why() {
    for (name, settings, why) in [
        (
            "no key",
            [("commit.gpgSign", "true"), ("user.signingKey", "none")],
            "sign the data",
        ),
        (
            "no name",
            [("user.useConfigOnly", "true"), ("user.name", "")],
            "empty ident name",
        ),
    ] {
        let story = Story::new(|_, _| {}, adds).await;
        for (key, value) in settings {
            story.git(&["config", key, value]);
        }
        let before = fingerprint(&story.source);
        for strategy in [Strategy::Auto, Strategy::Theirs] {
            let Err(LandingError::NoCommit { said }) = story.merge(strategy).await else {
                panic!("{name}: it merged");
            };
            assert!(said.contains(why), "{name}: {said}");
        }
        assert_eq!(fingerprint(&story.source), before, "{name}");
        story.apply().await.unwrap();
        // Where no commit is needed nobody is asked for one.
        story.git(&["add", "-A"]);
        let unsigned = [
            "-c",
            "commit.gpgSign=false",
            "-c",
            "user.name=Ann",
            "commit",
            "-qm",
            "by hand",
        ];
        story.git(&unsigned);
        assert_eq!(
            story.merge(Strategy::Auto).await.unwrap(),
            Merged::AlreadyThere,
            "{name}"
        );
    }
}

#[tokio::test]
async fn author_and_committer_are_those_of_the_persons_settings() {
    let story = Story::new(|_, _| {}, adds).await;
    let included = story.sandbox.path("work.config");
    write(
        &included,
        "[author]\n\tname = Bea\n[committer]\n\temail = c@example.com\n",
    );
    let key = format!("includeIf.gitdir:{}/.path", real(&story.source).display());
    story.git(&["config", &key, included.to_str().unwrap()]);
    story.git(&["config", "i18n.commitEncoding", "ISO-8859-1"]);
    assert!(matches!(story.merge(Strategy::Auto).await, Ok(Merged::Committed(_))));
    let said = story.git(&["log", "-2", "--format=%an %ae %cn %ce|%e"]);
    let expected = "Bea ann@example.com Ann c@example.com|";
    assert_eq!(said.lines().next(), Some(expected));
    let log = story.git(&["reflog", "-1", "--format=%gn %ge %gs"]);
    assert_eq!(log, "Ann c@example.com kage merge");
}

fn real(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap()
}

/// As git's own merge has it: it looks at the index, and the index has the result's content already.
#[tokio::test]
async fn what_was_staged_as_the_result_has_it_lands_and_the_file_keeps_what_was_done_since() {
    let lines = super::LINES;
    let story = Story::new(|_, _| {}, |top| write(&top.join("text"), "the result\n")).await;
    write(&story.source.join("text"), "the result\n");
    story.git(&["add", "text"]);
    write(&story.source.join("text"), "more than the result\n");
    let merged = story.merge(Strategy::Auto).await;
    assert!(matches!(merged, Ok(Merged::Committed(_))), "{merged:?}");
    assert_eq!(story.git(&["show", "HEAD:text"]), "the result");
    assert_eq!(story.read("text"), "more than the result\n");
    assert_eq!(story.git(&["status", "--porcelain"]), " M text");
    // Something else staged is in the way.
    let story = Story::new(|_, _| {}, |top| write(&top.join("text"), "the result\n")).await;
    write(&story.source.join("text"), format!("{lines}mine\n"));
    story.git(&["add", "text"]);
    assert!(matches!(
        story.merge(Strategy::Auto).await,
        Err(LandingError::Dirty { .. })
    ));
}

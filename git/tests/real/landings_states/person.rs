//! Commits of a landing are the person's own: their name, their signature, and no commit where their
//! git makes none.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use kage_git::UserRepo;
use kage_git::landing::{LandingError, MergeEnd, Merged, Strategy, plan_merge};

use super::{Story, adds};
use crate::sandbox::{Sandbox, fingerprint, message, write};

/// Stands in for gpg: signs everything, and keeps a list of what it was asked.
const SIGNS: &str = "#!/bin/sh\ncat > /dev/null\necho \"$@\" >> \"$0.asked\"\n\
                     echo '[GNUPG:] SIG_CREATED ' >&2\nprintf '%s\\n' '-----BEGIN PGP SIGNATURE-----' \
                     'by hand' '-----END PGP SIGNATURE-----'\n";
const FAILS: &str = "#!/bin/sh\ncat > /dev/null\necho 'gpg: no secret key' >&2\nexit 2\n";

fn program(sandbox: &Sandbox, text: &str) -> String {
    let path = sandbox.path("gpg");
    write(&path, text);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

/// A story of a person whose commits are signed by this program.
async fn signing(text: &'static str) -> Story {
    let story = Story::new(|_, _| {}, adds).await;
    let program = program(&story.sandbox, text);
    for (key, value) in [
        ("commit.gpgSign", "on"),
        ("gpg.program", program.as_str()),
        ("user.signingKey", "KEY"),
    ] {
        story.git(&["config", key, value]);
    }
    story
}

fn asked(story: &Story) -> String {
    fs::read_to_string(story.sandbox.path("gpg.asked")).unwrap_or_default()
}

#[tokio::test]
async fn commits_are_signed_where_the_person_signs_them() {
    let story = signing(SIGNS).await;
    // Ahead, so that there is a commit on the base and a merge.
    write(&story.source.join("ahead"), "a\n");
    story.sandbox.commit(&story.source, "ahead");
    let before = asked(&story);
    let repository = UserRepo::discover(&story.source).await.unwrap();
    let (base, result) = (&story.base, &story.result);
    let plan = plan_merge(&repository, &story.mirror, base, result, Strategy::Auto, &message()).await;
    let plan = plan.unwrap();
    assert!(matches!(plan.end(), MergeEnd::Commit(_)));
    assert_eq!(asked(&story), before, "a plan asks nobody for a signature");
    assert!(matches!(plan.execute().await, Ok(Merged::Committed(_))));
    for commit in ["HEAD", "HEAD^2"] {
        let text = story.git(&["cat-file", "commit", commit]);
        assert!(
            text.contains("gpgsig -----BEGIN PGP SIGNATURE-----"),
            "{commit}: {text}"
        );
    }
    assert_eq!(asked(&story), before + &"--status-fd=2 -bsau KEY\n".repeat(2));
    story.git(&["fsck", "--strict"]);
    assert_eq!(story.merge(Strategy::Auto).await.unwrap(), Merged::AlreadyThere);
}

#[tokio::test]
async fn a_merge_that_was_undone_comes_back_though_signatures_differ() {
    let story = signing(SIGNS).await;
    write(&story.source.join("ahead"), "a\n");
    story.sandbox.commit(&story.source, "ahead");
    assert!(matches!(story.merge(Strategy::Auto).await, Ok(Merged::Committed(_))));
    story.git(&["-c", "commit.gpgSign=false", "revert", "--no-edit", "-m", "1", "HEAD"]);
    story.git(&["config", "commit.gpgSign", "false"]);
    let head = story.sandbox.head(&story.source);
    assert!(matches!(story.merge(Strategy::Auto).await, Ok(Merged::Committed(_))));
    assert_eq!(story.git(&["log", "-1", "--format=%P"]), head.as_str());
    assert_eq!(story.read("new"), "n\n");
}

#[tokio::test]
async fn without_a_signature_or_a_name_nothing_is_done_and_git_says_why() {
    let unnamed: fn(&Story) = |story| {
        for (key, value) in [("user.useConfigOnly", "true"), ("user.name", "")] {
            story.git(&["config", key, value]);
        }
    };
    for (name, text, set_up, why) in [
        ("no key", FAILS, (|_| {}) as fn(&Story), "no secret key"),
        ("no name", SIGNS, unnamed, "empty ident name"),
    ] {
        let story = signing(text).await;
        set_up(&story);
        let before = fingerprint(&story.source);
        for strategy in [Strategy::Auto, Strategy::Theirs] {
            let Err(LandingError::NoCommit { said }) = story.merge(strategy).await else {
                panic!("{name}: it merged");
            };
            assert!(said.contains(why), "{name}: {said}");
        }
        assert_eq!(fingerprint(&story.source), before, "{name}");
        story.apply().await.unwrap();
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

fn real(path: &Path) -> std::path::PathBuf {
    fs::canonicalize(path).unwrap()
}

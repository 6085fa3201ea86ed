//! Results that land elsewhere than in the files of the working tree, in part, and with a person's hooks.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use kage_tests::command::{Person, Said, said};
use kage_tests::repo::Repo;

const SMALL: &str = "cat >/dev/null; echo 'add() { echo $(($1 + $2)); }' > add.sh";

fn script(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// Runs `kage` with the person's own programs first in PATH.
async fn kage(person: &Person, repo: &Repo, arguments: &[&str]) -> Said {
    let path = std::env::var_os("PATH").unwrap();
    let folders = std::iter::once(person.path("bin")).chain(std::env::split_paths(&path));
    let mut command = person.command(repo.path(), arguments);
    command.env("PATH", std::env::join_paths(folders).unwrap());
    said(command.output().await.unwrap())
}

/// A person with two results, of `small` and `large`.
async fn two_results() -> (Person, Repo) {
    let person = Person::new();
    person.adapter("small", SMALL);
    person.adapter(
        "large",
        &format!("{SMALL}; echo 'how it adds' > notes.txt; echo more >> test.sh"),
    );
    let repo = Repo::sample(&person.path("repo"));
    let run = kage(&person, &repo, &["run", "Mend the sum!", "--with", "small,large"]).await;
    assert_eq!(run.code, 0, "{run:#?}");
    (person, repo)
}

#[tokio::test]
async fn a_result_becomes_a_pull_request_and_the_working_tree_is_left_alone() {
    let (person, repo) = two_results().await;
    let remote = person.path("remote.git");
    repo.git(&["init", "-q", "--bare", "-b", "main", remote.to_str().unwrap()]);
    // Stands in for ssh: whatever host it is asked for, the repository is that one.
    let ssh = person.path("bin/ssh-here");
    script(
        &ssh,
        &format!(
            "echo asked >>'{0}.asked'\nexec git receive-pack '{0}'",
            remote.display()
        ),
    );
    repo.git(&["remote", "add", "origin", "git@github.com:ann/tool.git"]);
    repo.git(&["config", "core.sshCommand", ssh.to_str().unwrap()]);
    repo.git(&["config", "ssh.variant", "simple"]);
    repo.git(&["update-ref", "refs/remotes/origin/main", "HEAD"]);
    // Unpushed commits and unsaved work do not go along.
    repo.write("ahead", "not pushed\n");
    repo.commit("ahead");
    repo.write("add.sh", "# mine\n");
    let before = repo.git(&["status", "--porcelain=v2", "--branch"]);

    let merge = ["merge", "--pr", "--session", "small", "--unverified"];
    let page = kage(&person, &repo, &merge).await;
    assert_eq!(page.code, 0, "{page:#?}");
    assert!(
        page.out
            .contains("open the pull request at https://github.com/ann/tool/compare/main...kage/"),
        "{page:#?}"
    );
    let branch = page
        .out
        .lines()
        .find_map(|line| line.strip_prefix("branch "))
        .unwrap()
        .to_owned();
    assert!(branch.ends_with("-mend-the-sum"), "{branch}");
    assert_eq!(repo.git(&["status", "--porcelain=v2", "--branch"]), before);
    let pushed = Repo::at(&remote);
    let changed = pushed.git(&["diff-tree", "-r", "--name-only", "--no-commit-id", &branch]);
    assert_eq!(changed, "add.sh\n", "one commit with the session's change");
    let parent = pushed.git(&["rev-parse", &format!("{branch}^")]);
    assert_eq!(parent, repo.git(&["rev-parse", "refs/remotes/origin/main"]));
    assert!(person.path("remote.git.asked").exists(), "by the person's own settings");

    // With the program that opens one, the same command goes on from there.
    let gh = person.path("gh");
    script(
        &person.path("bin/gh"),
        &format!(
            "printf '%s\\n' \"$@\" >'{0}.arguments'; cat >'{0}.input'; echo https://github.com/ann/tool/pull/7",
            gh.display()
        ),
    );
    let opened = kage(&person, &repo, &[&merge[..], &["--format", "json"]].concat()).await;
    assert_eq!(opened.code, 0, "{opened:#?}");
    assert_eq!(
        opened.json()["pull_request"],
        "https://github.com/ann/tool/pull/7",
        "{opened:#?}"
    );
    let read = |what: &str| std::fs::read_to_string(person.path(&format!("gh.{what}"))).unwrap();
    let expected = format!(
        "pr\ncreate\n--repo\nann/tool\n--head\n{branch}\n--title\nMend the sum!\n--body-file\n-\n--base\nmain\n"
    );
    assert_eq!(read("arguments"), expected);
    let table = kage(&person, &repo, &["compare", "--markdown"]).await;
    assert_eq!(read("input").trim(), table.out.trim());

    // One that says no is quoted, and a person goes on by hand.
    script(&person.path("bin/gh"), "echo 'gh: not logged in' >&2; exit 4");
    let refused = kage(&person, &repo, &merge).await;
    assert_eq!(refused.code, 2, "{refused:#?}");
    assert!(
        refused.err.contains("gh: not logged in") && refused.err.contains("open it at https://"),
        "{refused:#?}"
    );

    // A hook of the push runs when hooks are asked for.
    repo.git(&["branch", "-D", &branch]);
    script(
        &repo.path().join(".git/hooks/pre-push"),
        "echo 'no pushing today'; exit 1",
    );
    let refused = kage(&person, &repo, &[&merge[..], &["--hooks"]].concat()).await;
    assert_eq!(refused.code, 2, "{refused:#?}");
    assert!(
        refused.err.contains("no pushing today") && refused.err.contains("git push failed"),
        "{refused:#?}"
    );
    assert_eq!(repo.git(&["status", "--porcelain=v2", "--branch"]), before);
}

#[tokio::test]
async fn results_are_compared_tried_and_landed_in_part_and_every_step_is_undone() {
    let (person, repo) = two_results().await;
    let kage = async |arguments: &[&str]| {
        let done = kage(&person, &repo, arguments).await;
        assert_eq!(done.code, 0, "{arguments:?}: {done:#?}");
        done
    };
    let names = kage(&["diff", "small", "large", "--name-only"]).await;
    assert_eq!(names.out, "notes.txt\ntest.sh\n");
    let stat = kage(&["diff", "small", "large", "--stat"]).await;
    assert!(stat.out.ends_with(" 2 files changed, 2 insertions(+)\n"), "{stat:#?}");
    let patch = kage(&["diff", "small", "large"]).await;
    assert!(
        patch.out.contains("+how it adds") && !patch.out.contains("b/add.sh"),
        "{patch:#?}"
    );

    let status = || repo.git(&["status", "--porcelain"]);
    let undo = |done: &Said| {
        let command = done.json()["undo"].as_str().unwrap().to_owned();
        let bin = kage_tests::programs::kage();
        command.replacen("kage ", &format!("{} ", bin.display()), 1)
    };
    let shell = async |command: &str| {
        let mut shell = person.command(repo.path(), &[]);
        let mut other = tokio::process::Command::new("sh");
        other.args(["-c", command]).current_dir(repo.path()).env_clear();
        for (name, value) in shell.as_std_mut().get_envs() {
            other.env(name, value.unwrap());
        }
        let done = said(other.output().await.unwrap());
        assert_eq!(done.code, 0, "{command}: {done:#?}");
    };
    // The present folder counts, and a path that is not there is not landed.
    let part = [
        "apply",
        "--session",
        "large",
        "--unverified",
        "--path",
        "notes.txt",
        "--format",
        "json",
    ];
    let done = kage(&part).await;
    assert_eq!(status(), "?? notes.txt\n");
    shell(&undo(&done)).await;
    assert_eq!(status(), "");
    let missing = person
        .kage(
            repo.path(),
            &["apply", "--session", "large", "--path", "note.txt", "--unverified"],
        )
        .await;
    assert_eq!(missing.code, 4, "{missing:#?}");
    assert!(missing.err.contains("near it: notes.txt"), "{missing:#?}");

    let made = kage(&["checkout", "large", "--format", "json"]).await;
    let folder = made.json()["folder"].as_str().unwrap().to_owned();
    assert_eq!(
        std::fs::read_to_string(Path::new(&folder).join("notes.txt")).unwrap(),
        "how it adds\n"
    );
    let again = person.kage(repo.path(), &["checkout", "large", &folder]).await;
    assert_eq!(again.code, 2, "{again:#?}");
    let command = again.err.split('`').nth(1).unwrap().replacen("kage ", "", 1);
    let words: Vec<&str> = command.split(' ').collect();
    kage(&words).await;
    for folder in [&folder, words[2]] {
        repo.git(&["worktree", "remove", "--force", folder]);
    }
    shell(&format!("! [ -e '{folder}' ]")).await;

    // Hooks are named when they are left out.
    script(
        &repo.path().join(".git/hooks/pre-commit"),
        "echo the hook says no >&2; exit 1",
    );
    let head = repo.head();
    let merge = ["merge", "--session", "small", "--unverified", "--format", "json"];
    let refused = person.kage(repo.path(), &[&merge[..], &["--hooks"]].concat()).await;
    assert_eq!(
        (refused.code, repo.head(), status()),
        (2, head.clone(), String::new()),
        "{refused:#?}"
    );
    assert!(
        refused.err.contains("the hook says no") && refused.err.contains("pre-commit hook failed"),
        "{refused:#?}"
    );
    let done = kage(&merge).await;
    assert!(
        done.err
            .contains("your hooks were not run (pre-commit); --hooks runs them"),
        "{done:#?}"
    );
    assert_ne!(repo.head(), head);
    shell(&undo(&done)).await;
    assert_eq!((repo.head(), status()), (head.clone(), String::new()));

    repo.git(&["branch", "release"]);
    let done = kage(&[&merge[..], &["--into", "release"]].concat()).await;
    assert_ne!(repo.git(&["rev-parse", "release"]).trim(), head);
    assert_eq!((repo.head(), status()), (head.clone(), String::new()));
    shell(&undo(&done)).await;
    assert_eq!(repo.git(&["rev-parse", "release"]).trim(), head);

    // Without a remote a request has nowhere to go, and the commit still has.
    let refused = person
        .kage(repo.path(), &["merge", "--pr", "--session", "small", "--unverified"])
        .await;
    assert_eq!(refused.code, 2, "{refused:#?}");
    let command = refused.err.split('`').nth(3).unwrap();
    shell(&command.replace(
        "kage merge",
        &format!("{} merge", kage_tests::programs::kage().display()),
    ))
    .await;
    let made = repo.git(&["for-each-ref", "--format=%(contents:subject)", "refs/heads/kage"]);
    assert_eq!(made, "Merge result of small: Mend the sum!\n");
}

/// Stands in for git-lfs.
const GIT_LFS: &str = r#"
objects=$(git rev-parse --git-common-dir)/lfs/objects
case $1 in
install)
    git config --global filter.lfs.clean 'git-lfs clean -- %f'
    git config --global filter.lfs.smudge 'git-lfs smudge -- %f'
    git config --global filter.lfs.required true ;;
clean)
    part=$(mktemp) && cat >"$part"
    id=$(sha256sum <"$part" | cut -c1-64)
    place=$objects/$(echo "$id" | cut -c1-2)/$(echo "$id" | cut -c3-4)
    printf 'version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %s\n' "$id" $(wc -c <"$part")
    mkdir -p "$place" && mv "$part" "$place/$id" ;;
smudge) cat ;;
esac"#;

#[tokio::test]
async fn a_file_of_lfs_goes_to_a_session_and_comes_back_as_a_pointer() {
    let person = Person::new();
    person.adapter(
        "large",
        "cat >/dev/null; wc -c <a.bin | tr -d ' ' >size; echo 'a new content' >new.bin",
    );
    let repo = Repo::sample(&person.path("repo"));
    let content = "what is large\n".repeat(100);
    let digest = kage_core::id::Digest::of(content.as_bytes());
    repo.write(".gitattributes", "*.bin filter=lfs diff=lfs merge=lfs -text\n");
    let pointer =
        |digest: &str, size| format!("version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {size}\n");
    repo.write("a.bin", &pointer(digest.as_str(), content.len()));
    repo.commit("a large file");
    let place = format!(
        ".git/lfs/objects/{}/{}/{digest}",
        &digest.as_str()[..2],
        &digest.as_str()[2..4]
    );
    repo.write(&place, &content);
    let run = kage(&person, &repo, &["run", "x", "--with", "large"]).await;
    assert_eq!(run.code, 0, "{run:#?}");
    assert!(!run.err.contains("LFS"), "{run:#?}");
    let merge = ["merge", "--session", "large", "--unverified"];
    let refused = kage(&person, &repo, &merge).await;
    assert_eq!(refused.code, 2, "{refused:#?}");
    for words in ["new.bin: Git LFS stores it", "git lfs install && kage merge"] {
        assert!(refused.err.contains(words), "{words:?} is not in {refused:#?}");
    }
    script(&person.path("bin/git-lfs"), GIT_LFS);
    let named = refused
        .err
        .split('`')
        .find(|part| part.contains("lfs install &&"))
        .unwrap();
    let (install, again) = named.split_once(" && kage ").unwrap();
    let path = std::env::join_paths([person.path("bin"), "/usr/bin".into(), "/bin".into()]).unwrap();
    let install = install.strip_prefix("git ").unwrap().split(' ');
    let mut install_lfs = tokio::process::Command::new("git");
    install_lfs
        .args(install)
        .current_dir(repo.path())
        .env("HOME", person.path(""))
        .env("PATH", path);
    install_lfs.env("XDG_CONFIG_HOME", person.path("config"));
    assert!(install_lfs.status().await.unwrap().success());
    let again: Vec<&str> = again.split(' ').collect();
    let merged = kage(&person, &repo, &again).await;
    assert_eq!(merged.code, 0, "{merged:#?}");
    assert_eq!(repo.git(&["show", "HEAD:size"]), "1400\n");
    let new = kage_core::id::Digest::of(b"a new content\n");
    assert_eq!(repo.git(&["show", "HEAD:new.bin"]), pointer(new.as_str(), 14));
    assert_eq!(
        repo.git(&["show", "HEAD:a.bin"]),
        pointer(digest.as_str(), content.len())
    );
    assert_eq!(
        std::fs::read_to_string(repo.path().join("new.bin")).unwrap(),
        "a new content\n"
    );
    let kept = format!(".git/lfs/objects/{}/{}/{new}", &new.as_str()[..2], &new.as_str()[2..4]);
    assert!(repo.path().join(kept).is_file());
}

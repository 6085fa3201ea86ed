//! What git ignores is not listed and not searched, unless a call names it.

use super::*;

/// Files with the same word in each of them, and files of rules.
fn grown(place: &Place, files: &[&str], rules: &[(&str, &str)]) {
    for (name, content) in files
        .iter()
        .map(|name| (name, &"needle\n"))
        .chain(rules.iter().map(|(a, b)| (a, b)))
    {
        let path = place.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

/// The files that a search for the word finds.
async fn found(place: &Place, path: &str) -> Vec<String> {
    let answer = place.ok("search", json!({"pattern": "needle", "path": path})).await;
    let lines = answer.lines().filter(|line| !line.starts_with('['));
    lines.map(|line| line.split(':').next().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn rules_of_every_folder_hold_and_the_deepest_wins() {
    let place = Place::new();
    grown(
        &place,
        &[
            "a.log",
            "a.txt",
            "keep.log",
            "local",
            "built/a.txt",
            "sub/a.log",
            "sub/a.txt",
            "sub/deep/a.log",
            "sub/deep/b.log",
            "sub/built/a.txt",
            "top/only",
            "sub/top/only",
            "odd/[x",
            "odd/sp ace",
        ],
        &[
            (".git/info/exclude", "local\n*.txt\n"),
            (
                ".gitignore",
                "\u{feff}*.log\r\n!keep.log\n# *.txt\n/top/only\nbuilt/\n[x\nsp\\ ace\n!*.txt\n",
            ),
            ("sub/.gitignore", "!a.log\n/a.txt\n!built/\n"),
            ("sub/deep/.gitignore", "a.log\n"),
        ],
    );
    let shown = [
        "a.txt",
        "keep.log",
        "odd/[x",
        "sub/a.log",
        "sub/built/a.txt",
        "sub/top/only",
    ];
    assert_eq!(found(&place, ".").await, shown);
    // Rules of folders above the one that is named hold in it.
    assert_eq!(found(&place, "sub/deep").await, Vec::<String>::new());
    assert_eq!(
        found(&place, "sub").await,
        ["sub/a.log", "sub/built/a.txt", "sub/top/only"]
    );
    assert_eq!(
        place.ok("list", json!({"path": "sub", "depth": 9})).await,
        ".gitignore\na.log\nbuilt/\nbuilt/a.txt\ndeep/\ndeep/.gitignore\ntop/\ntop/only\n\
         [3 entries that git ignores are not listed; a path that names one shows it]"
    );
}

#[tokio::test]
async fn what_is_named_is_shown_although_it_is_ignored() {
    let place = Place::new();
    grown(
        &place,
        &["out/a", "out/in/b", "out/in/c.o", "src/d.o", "src/e"],
        &[(".gitignore", "/out/\n*.o\n"), ("out/in/.gitignore", "*\n")],
    );
    assert_eq!(found(&place, ".").await, ["src/e"]);
    assert_eq!(
        found(&place, "out").await,
        ["out/a", "out/in/b", "out/in/c.o"].map(str::to_owned)
    );
    assert_eq!(found(&place, "out/in").await, ["out/in/b", "out/in/c.o"]);
    assert_eq!(
        found(&place, "src/../out/in").await,
        ["src/../out/in/b", "src/../out/in/c.o"]
    );
    assert_eq!(found(&place, "src/d.o").await, ["src/d.o"]);
    assert_eq!(place.ok("list", json!({"path": "out"})).await, "a\nin/");
    assert_eq!(place.ok("read_file", json!({"path": "src/d.o"})).await, "needle\n");
    let none = place.ok("search", json!({"pattern": "needle", "glob": "out/**"})).await;
    assert_eq!(
        none,
        "[no match]\n[what git ignores was not searched; a path that names it searches it]"
    );
}

#[tokio::test]
async fn rules_are_not_read_through_links_and_count_from_the_top_of_the_worktree() {
    let place = Place::within("packages/web");
    grown(
        &place,
        &[
            "packages/web/a.log",
            "packages/web/b.tmp",
            "packages/web/linked/c.tmp",
            "other/d.log",
        ],
        &[(".gitignore", "/packages/*/a.log\n"), ("rules", "*.tmp\n")],
    );
    symlink("../../rules", place.path("packages/web/.gitignore")).unwrap();
    symlink("../../../other", place.path("packages/web/linked/other")).unwrap();
    assert_eq!(found(&place, ".").await, ["b.tmp", "linked/c.tmp"]);
    // A link to a folder is followed when it is named, and the rules are those of where it leads.
    fs::write(place.path("other/.gitignore"), "*.log\n").unwrap();
    assert_eq!(found(&place, "linked/other").await, Vec::<String>::new());
}

#[tokio::test]
async fn git_itself_ignores_the_same_files() {
    let place = Place::new();
    let names = ["a", "a.o", "b", "b.o", "x y", "ab"];
    let folders = ["", "a/", "b/", "a/b/", "b/a/", "b/a/b/"];
    let all: Vec<String> = folders
        .iter()
        .flat_map(|folder| names.iter().map(move |name| format!("{folder}{name}.f")))
        .collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let patterns = [
        "a", "a/", "/a", "/a/", "*.o.f", "!a.o.f", "a/b", "a/*", "a/**", "**/b", "**/b/", "b/**/b", "!b/", "*", "!*/",
        "[ab].f", "[!a]*.f", "x\\ y.f", "x y.f  ", "\\!a", "#a", "?.f", "!/b/a/", "/*/a.f", "!ab.f", "/",
    ];
    let git = |args: &[&str]| {
        let output = std::process::Command::new("git")
            .args(args)
            .current_dir(place.path(""))
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    git(&["init", "--quiet"]);
    grown(&place, &all, &[]);
    // Every pattern alone, and after each of some others.
    for first in ["", "*.f", "a/", "/b"] {
        for second in patterns {
            grown(
                &place,
                &[],
                &[(".gitignore", &format!("{first}\n{second}\n.gitignore\n"))],
            );
            let mut ours = found(&place, ".").await;
            ours.sort();
            let theirs = git(&["ls-files", "--others", "--exclude-standard", "-z"]);
            let mut theirs: Vec<&str> = theirs.split_terminator('\0').collect();
            theirs.sort_unstable();
            assert_eq!(ours, theirs, "{first:?} {second:?}");
        }
    }
}

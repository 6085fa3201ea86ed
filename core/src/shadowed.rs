//! Paths that commands do not name, and that are found instead of what they run: a folder of programs
//! with a program of that name, a module that `python -m` loads, a file or folder that `make` takes
//! for a target that is up to date. No shell is run, so a name that a script makes up is not found.

use std::collections::BTreeSet;

use crate::task::VerifyPolicy;

/// The names that commands look up by the rules of a tool, and from where.
#[derive(Debug, Default)]
pub struct Shadows {
    /// Names of programs.
    programs: BTreeSet<String>,
    /// Paths without extension that Python takes for modules.
    modules: BTreeSet<String>,
    /// Paths without extension that node takes for files.
    scripts: BTreeSet<String>,
    /// Paths of targets of make.
    targets: BTreeSet<String>,
}

impl Shadows {
    /// The names of a policy's commands.
    #[must_use]
    pub fn of(policy: &VerifyPolicy) -> Self {
        let setup = (policy.setup.as_deref(), policy.setup_folder.as_ref());
        let verify = (policy.verify.as_deref(), policy.verify_folder.as_ref());
        let mut found = Self::default();
        for (command, folder) in [setup, verify] {
            let mut inside = folder.map(ToString::to_string);
            for simple in command
                .unwrap_or_default()
                .split(['\n', ';', '|', '&', '(', ')', '{', '}', '`'])
            {
                // The commands after it work there.
                let mut words = simple.split_whitespace();
                if let (Some("cd"), Some(to), None) = (words.next(), words.next(), words.next()) {
                    let to = to
                        .trim_matches(['"', '\''])
                        .trim_start_matches("./")
                        .trim_end_matches('/');
                    inside = if to.starts_with(['/', '~', '-', '$']) || to.contains("..") {
                        folder.map(ToString::to_string)
                    } else {
                        Some(below(inside.as_deref(), to))
                    };
                }
                found.read(simple, inside.as_deref());
            }
        }
        found
    }

    /// True when something at this path may be taken for what a command runs.
    #[must_use]
    pub fn hide(&self, path: &str) -> bool {
        let name = path.rsplit('/').next().unwrap_or(path);
        let folder = path.strip_suffix(name).unwrap_or_default().trim_end_matches('/');
        let stem = |text: &'_ str| {
            text.rsplit_once('.')
                .map_or_else(|| text.to_owned(), |(stem, _)| stem.to_owned())
        };
        let of_programs = matches!(folder.rsplit('/').next(), Some("bin" | ".bin" | "sbin" | "Scripts"));
        if of_programs && (self.programs.contains(name) || self.programs.contains(&stem(name))) {
            return true;
        }
        let is_module = match name {
            "__init__.py" | "__main__.py" => self.modules.contains(folder),
            _ => is_code(name, &["py", "pyc", "so", "pyd"]) && self.modules.contains(&stem(path)),
        };
        let is_script = match name {
            "index.js" | "index.cjs" | "index.json" | "index.node" => self.scripts.contains(folder),
            _ => is_code(name, &["js", "cjs", "json", "node"]) && self.scripts.contains(&stem(path)),
        };
        is_module || is_script || is_at_or_below(path, &self.targets)
    }

    /// Reads one simple command.
    fn read(&mut self, command: &str, folder: Option<&str>) {
        let plain = |word: &'_ str| word.trim_matches(['"', '\'']).to_owned();
        let words = command.split_whitespace().map(plain);
        // Variables that are set for this command alone.
        let mut words = words.skip_while(|word| word.contains('='));
        let Some(program) = words.next() else { return };
        let program = program.rsplit('/').next().unwrap_or_default().to_owned();
        let rest: Vec<String> = words.collect();
        let at = |name: &str| below(folder, name);
        let arguments = || rest.iter().filter(|word| !word.starts_with('-'));
        match program.as_str() {
            "make" | "gmake" | "bmake" => {
                self.make(&rest, folder);
            }
            "node" => self.scripts.extend(arguments().take(1).map(|word| at(word))),
            // The program that these run is one of the packages that are installed.
            "npx" | "bunx" | "yarn" | "pnpm" | "bundle" | "poetry" | "uv" | "pipenv" | "exec" | "env" | "time"
            | "nice" | "timeout" | "xargs" => self.programs.extend(arguments().take(3).cloned()),
            _ if program.starts_with("python") || program == "py" => self.python(&rest, folder),
            _ => {}
        }
        self.programs.insert(program);
    }

    /// Targets lie in the folder that make works in.
    fn make(&mut self, rest: &[String], folder: Option<&str>) {
        let (mut inside, mut targets) = (folder.map(ToOwned::to_owned), Vec::new());
        let mut words = rest.iter();
        while let Some(word) = words.next() {
            let to = match word.as_str() {
                "-C" | "--directory" => words.next().map(String::as_str),
                "-f" | "-I" | "-o" | "-W" | "-l" | "--file" | "--makefile" | "--include-dir" => {
                    words.next();
                    None
                }
                // A number may follow it.
                "-j" => {
                    let mut after = words.clone();
                    if after.next().is_some_and(|next| next.parse::<u32>().is_ok()) {
                        words = after;
                    }
                    None
                }
                word => word.strip_prefix("--directory=").or_else(|| word.strip_prefix("-C")),
            };
            if let Some(to) = to {
                inside = Some(below(inside.as_deref(), to.trim_end_matches('/')));
            } else if !(word.is_empty() || word.starts_with('-') || word.contains('=')) {
                targets.push(word);
            }
        }
        self.targets
            .extend(targets.into_iter().map(|target| below(inside.as_deref(), target)));
    }

    /// Modules lie in the folder of the command, and below by the dots in their names.
    fn python(&mut self, rest: &[String], folder: Option<&str>) {
        let mut words = rest.iter();
        if words.any(|word| word == "-m")
            && let Some(module) = words.next()
        {
            let path = module.replace('.', "/");
            for root in ["", "src/", "lib/"] {
                self.modules.insert(match folder {
                    Some(folder) => format!("{folder}/{root}{path}"),
                    None => format!("{root}{path}"),
                });
            }
        }
    }
}

/// The path of a name in a folder.
fn below(folder: Option<&str>, name: &str) -> String {
    let name = name.trim_start_matches("./");
    match folder {
        Some(folder) => format!("{folder}/{name}"),
        None => name.to_owned(),
    }
}

fn is_code(name: &str, extensions: &[&str]) -> bool {
    let extension = name.rsplit_once('.').map(|(_, extension)| extension);
    extension.is_some_and(|extension| extensions.contains(&extension))
}

fn is_at_or_below(path: &str, places: &BTreeSet<String>) -> bool {
    places.contains(path) || path.match_indices('/').any(|(at, _)| places.contains(&path[..at]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hides(verify: &str, folder: Option<&str>, path: &str) -> bool {
        let policy = VerifyPolicy {
            verify: Some(verify.to_owned()),
            verify_folder: folder.map(|folder| folder.parse().unwrap()),
            ..VerifyPolicy::default()
        };
        Shadows::of(&policy).hide(path)
    }

    #[test]
    fn what_is_found_before_what_was_meant_hides_it() {
        let cases = [
            ("pytest -q", "bin/pytest", true),
            ("pytest -q", "tools/.bin/pytest", true),
            ("CI=1 cargo test", "bin/cargo.sh", true),
            ("make -C web test", "web/a.c", false),
            ("make -C web test", "web/test/a.c", true),
            ("make -j 4 -f build.mk --directory=web test", "web/test", true),
            ("cd web && make check", "web/check", true),
            ("cd web && make check", "check", false),
            ("cd web && python3 -m tools.check", "web/tools/check.py", true),
            ("npx jest", "web/bin/jest", true),
            ("/usr/bin/make", "sbin/make", true),
            ("cargo test", "src/bin/server.rs", false),
            ("cargo test", "src/cargo.rs", false),
            ("python -m unittest", "unittest.py", true),
            ("python3 -m unittest -v", "unittest/__init__.py", true),
            ("python3.12 -m tools.check", "tools/check.py", true),
            ("python3.12 -m tools.check", "src/tools/check/__main__.py", true),
            ("python3.12 -m tools.check", "tools/other.py", false),
            ("python -m pytest", "src/calc.py", false),
            ("python main.py -m x", "main.py", false),
            ("make check", "check", true),
            ("cd a && make -j4 check CFLAGS=-O2", "a/check/placeholder", true),
            ("make check", "checks/a", false),
            ("make", "check/a", false),
            ("node check", "check.js", true),
            ("node check", "check/index.js", true),
            ("node check.js", "src/check.js", false),
            ("sh test.sh", "src/sh.c", false),
            ("", "bin/", false),
            ("", "", false),
        ];
        for (verify, path, expected) in cases {
            assert_eq!(hides(verify, None, path), expected, "{verify}: {path}");
        }
    }

    #[test]
    fn names_are_looked_up_where_the_command_runs() {
        for (path, expected) in [("web/check/a", true), ("check/a", false)] {
            assert_eq!(hides("make check", Some("web"), path), expected, "{path}");
        }
        for (path, expected) in [("web/unittest.py", true), ("unittest.py", false)] {
            assert_eq!(hides("python -m unittest", Some("web"), path), expected, "{path}");
        }
    }
}

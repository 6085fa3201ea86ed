//! How a project is prepared and checked, by the files that its tools leave in its folder. It reads these
//! files and runs nothing.

use std::fs;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

/// The commands of one tool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Found {
    /// The tool, and the file that says so.
    pub(crate) tool: &'static str,
    pub(crate) file: &'static str,
    /// Installs what the project depends on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) setup: Option<String>,
    /// The folder that `setup` fills. Sessions need it too, and it must be ignored there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fills: Option<&'static str>,
    /// Passes when the project is well.
    pub(crate) verify: String,
}

impl Found {
    fn new(tool: &'static str, file: &'static str, setup: Option<&str>, verify: impl Into<String>) -> Self {
        Self {
            tool,
            file,
            setup: setup.map(str::to_owned),
            fills: None,
            verify: verify.into(),
        }
    }
}

/// The tools of the project in this folder, the one that says most first.
pub(crate) fn found(folder: &Path) -> Vec<Found> {
    let has = |name: &str| folder.join(name).is_file();
    let mut all = Vec::new();
    if has("Cargo.toml") {
        all.push(Found::new("cargo", "Cargo.toml", None, "cargo test"));
    }
    all.extend(node(folder));
    all.extend(python(folder));
    if has("go.mod") {
        all.push(Found::new("go", "go.mod", Some("go mod download"), "go test ./..."));
    }
    if has("pom.xml") {
        let mvn = if has("mvnw") { "./mvnw" } else { "mvn" };
        all.push(Found::new("maven", "pom.xml", None, format!("{mvn} -q -B test")));
    }
    if let Some(file) = ["build.gradle", "build.gradle.kts"].into_iter().find(|file| has(file)) {
        let gradle = if has("gradlew") { "./gradlew" } else { "gradle" };
        all.push(Found::new(
            "gradle",
            file,
            None,
            format!("{gradle} --console=plain test"),
        ));
    }
    all.extend(make(folder));
    all
}

/// npm, pnpm or yarn, by the lock file or the field in which a project says it.
fn node(folder: &Path) -> Option<Found> {
    let text = fs::read_to_string(folder.join("package.json")).ok()?;
    let package: Value = serde_json::from_str(&text).ok()?;
    let has = |name: &str| folder.join(name).is_file();
    let manager = package["packageManager"].as_str().unwrap_or_default();
    let (tool, setup) = if has("pnpm-lock.yaml") || manager.starts_with("pnpm@") {
        (
            "pnpm",
            if has("pnpm-lock.yaml") {
                "pnpm install --frozen-lockfile"
            } else {
                "pnpm install"
            },
        )
    } else if has("yarn.lock") || manager.starts_with("yarn@") {
        (
            "yarn",
            if has("yarn.lock") {
                "yarn install --frozen-lockfile"
            } else {
                "yarn install"
            },
        )
    } else if has("package-lock.json") || has("npm-shrinkwrap.json") {
        ("npm", "npm ci")
    } else {
        ("npm", "npm install --no-package-lock")
    };
    // `npm init` writes a test that only says that there is none.
    let script = |name: &str| {
        let script = package["scripts"][name].as_str();
        script.is_some_and(|script| !script.contains("no test specified"))
    };
    let verify = ["test", "check", "build", "lint"]
        .into_iter()
        .find(|name| script(name))?;
    let verify = match verify {
        "test" => format!("{tool} test"),
        other => format!("{tool} run {other}"),
    };
    let depends = ["dependencies", "devDependencies", "optionalDependencies", "workspaces"]
        .into_iter()
        .any(|field| !package[field].is_null());
    Some(Found {
        fills: depends.then_some("node_modules"),
        ..Found::new(tool, "package.json", depends.then_some(setup), verify)
    })
}

/// pytest, in the environment that the project's own tool makes.
fn python(folder: &Path) -> Option<Found> {
    let has = |name: &str| folder.join(name).is_file();
    let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
    let files = [
        "pytest.ini",
        "pyproject.toml",
        "setup.cfg",
        "tox.ini",
        "requirements-dev.txt",
        "requirements.txt",
    ];
    let named = files
        .into_iter()
        .find(|file| has(file) && (*file == "pytest.ini" || read(file).contains("pytest")));
    let file = named.or_else(|| {
        let of_python = ["pyproject.toml", "setup.py", "setup.cfg"]
            .into_iter()
            .find(|file| has(file));
        of_python.filter(|_| has_tests(folder))
    })?;
    if has("uv.lock") {
        return Some(Found {
            fills: Some(".venv"),
            ..Found::new("uv", file, Some("uv sync"), "uv run pytest")
        });
    }
    if has("poetry.lock") {
        return Some(Found::new("poetry", file, Some("poetry install"), "poetry run pytest"));
    }
    let mut install = String::new();
    for requirements in ["requirements.txt", "requirements-dev.txt"]
        .into_iter()
        .filter(|file| has(file))
    {
        install += &format!(" -r {requirements}");
    }
    let is_package = has("setup.py")
        || ["[build-system]", "[project]"]
            .iter()
            .any(|part| read("pyproject.toml").contains(part));
    if is_package {
        install += " -e .";
    }
    if install.is_empty() {
        return Some(Found::new("pytest", file, None, "python3 -m pytest"));
    }
    let setup = format!("python3 -m venv .venv && .venv/bin/pip install --quiet{install} pytest");
    Some(Found {
        fills: Some(".venv"),
        ..Found::new("pytest", file, Some(&setup), ".venv/bin/python -m pytest")
    })
}

/// True if there are files that pytest takes for tests.
fn has_tests(folder: &Path) -> bool {
    let folders = [folder.to_owned(), folder.join("tests"), folder.join("test")];
    let entries = folders
        .iter()
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flatten()
        .flatten();
    let mut names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.any(|name| (name.starts_with("test_") && name.ends_with(".py")) || name.ends_with("_test.py"))
}

fn make(folder: &Path) -> Option<Found> {
    let file = ["GNUmakefile", "makefile", "Makefile"]
        .into_iter()
        .find(|file| folder.join(file).is_file())?;
    let text = fs::read_to_string(folder.join(file)).ok()?;
    let has = |target: &str| {
        text.lines().any(|line| {
            let names = line.split_once(':').filter(|(_, rest)| !rest.starts_with('='));
            !line.starts_with(['\t', '#', '.'])
                && names.is_some_and(|(names, _)| names.split_whitespace().any(|name| name == target))
        })
    };
    let target = ["test", "check", "tests"].into_iter().find(|target| has(target))?;
    Some(Found::new("make", file, None, format!("make {target}")))
}

/// True if the project's git ignores a folder at its top.
pub(crate) fn is_ignored(folder: &Path, name: &str) -> bool {
    let text = fs::read_to_string(folder.join(".gitignore")).unwrap_or_default();
    text.lines().any(|line| line.trim().trim_matches('/') == name)
}

/// `kage.toml` for what was found; other tools than the first stand there as comments.
pub(crate) fn written(folder: &Path, found: &[Found]) -> String {
    let mut text =
        "# What `kage run` does in this project. Every flag of `kage run --help` may stand here, with `_` for `-`.\n\
                    [run]\n"
            .to_owned();
    for (at, found) in found.iter().enumerate() {
        let off = if at > 0 { "# " } else { "" };
        text += &format!("# {} ({})\n", found.tool, found.file);
        if let Some(setup) = &found.setup {
            let quoted = toml::Value::from(setup.as_str());
            text += &format!("{off}setup = {quoted}\n");
            match found.fills {
                Some(folder_name) if !is_ignored(folder, folder_name) => {
                    text +=
                        &format!("# session_setup = {quoted}  # for sessions too, once .gitignore has {folder_name}\n");
                }
                Some(_) | None => text += &format!("{off}session_setup = {quoted}\n"),
            }
        }
        text += &format!("{off}verify = {}\n", toml::Value::from(found.verify.as_str()));
    }
    if found.is_empty() {
        text += "# verify = \"make test\"  # the command that passes when the project is well\n";
    }
    text += "# with = [\"claude-code\", \"codex\"]  # who works on tasks; `kage doctor` lists the adapters of this machine\n\
             # protect = [\"tests/**\"]  # verify uses the base's version of these\n";
    text
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn project(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    fn told(files: &[(&str, &str)]) -> String {
        let folder = project(files);
        let lines = found(folder.path()).into_iter().map(|found| {
            let setup = found.setup.unwrap_or_else(|| "-".to_owned());
            format!("{}: {setup} / {}", found.tool, found.verify)
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn each_tool_is_found_by_its_files() {
        let scripts = r#"{"scripts":{"test":"node --test"},"devDependencies":{"x":"1"}}"#;
        assert_eq!(told(&[("Cargo.toml", "[package]")]), "cargo: - / cargo test");
        assert_eq!(
            told(&[("package.json", scripts), ("package-lock.json", "{}")]),
            "npm: npm ci / npm test"
        );
        assert_eq!(
            told(&[("package.json", scripts), ("pnpm-lock.yaml", "")]),
            "pnpm: pnpm install --frozen-lockfile / pnpm test"
        );
        assert_eq!(
            told(&[(
                "package.json",
                r#"{"packageManager":"pnpm@10.1.0","scripts":{"build":"x"}}"#
            )]),
            "pnpm: - / pnpm run build"
        );
        assert_eq!(
            told(&[("package.json", scripts), ("yarn.lock", "")]),
            "yarn: yarn install --frozen-lockfile / yarn test"
        );
        let nothing = r#"{"scripts":{"test":"echo \"Error: no test specified\" && exit 1"}}"#;
        assert_eq!(told(&[("package.json", nothing)]), "");
        assert_eq!(told(&[("package.json", "{ broken")]), "");
        assert_eq!(told(&[("go.mod", "module x")]), "go: go mod download / go test ./...");
        assert_eq!(told(&[("pom.xml", "")]), "maven: - / mvn -q -B test");
        assert_eq!(told(&[("pom.xml", ""), ("mvnw", "")]), "maven: - / ./mvnw -q -B test");
        assert_eq!(
            told(&[("build.gradle.kts", ""), ("gradlew", "")]),
            "gradle: - / ./gradlew --console=plain test"
        );
        assert_eq!(told(&[("build.gradle", "")]), "gradle: - / gradle --console=plain test");
        assert_eq!(
            told(&[("Makefile", "all: x\n\ntest: all\n\techo\n")]),
            "make: - / make test"
        );
        assert_eq!(
            told(&[("Makefile", ".PHONY: test\ncheck:\n\ttest: x\n")]),
            "make: - / make check"
        );
        assert_eq!(told(&[("Makefile", "test := x\n")]), "");
        assert_eq!(told(&[("README", "")]), "");
    }

    #[test]
    fn pytest_runs_in_the_environment_that_the_project_makes() {
        let pyproject = "[project]\nname = \"x\"\n[tool.pytest.ini_options]\n";
        assert_eq!(
            told(&[("pyproject.toml", pyproject)]),
            "pytest: python3 -m venv .venv && .venv/bin/pip install --quiet -e . pytest / .venv/bin/python -m pytest"
        );
        assert_eq!(
            told(&[("pyproject.toml", pyproject), ("uv.lock", "")]),
            "uv: uv sync / uv run pytest"
        );
        assert_eq!(
            told(&[("pyproject.toml", pyproject), ("poetry.lock", "")]),
            "poetry: poetry install / poetry run pytest"
        );
        assert_eq!(
            told(&[("requirements.txt", "pytest\n")]),
            "pytest: python3 -m venv .venv && .venv/bin/pip install --quiet -r requirements.txt pytest / \
             .venv/bin/python -m pytest"
        );
        assert_eq!(told(&[("pytest.ini", "")]), "pytest: - / python3 -m pytest");
        assert_eq!(told(&[("setup.py", "")]), "", "without tests");
        assert!(told(&[("setup.py", ""), ("tests/test_x.py", "")]).starts_with("pytest: python3 -m venv"));
    }

    #[test]
    fn the_file_is_read_as_it_is_meant() {
        let files = [
            ("package.json", r#"{"scripts":{"test":"x"},"dependencies":{}}"#),
            ("Makefile", "test:\n"),
        ];
        let folder = project(&files);
        insta::assert_snapshot!(written(folder.path(), &found(folder.path())), @r#"
        # What `kage run` does in this project. Every flag of `kage run --help` may stand here, with `_` for `-`.
        [run]
        # npm (package.json)
        setup = "npm install --no-package-lock"
        # session_setup = "npm install --no-package-lock"  # for sessions too, once .gitignore has node_modules
        verify = "npm test"
        # make (Makefile)
        # verify = "make test"
        # with = ["claude-code", "codex"]  # who works on tasks; `kage doctor` lists the adapters of this machine
        # protect = ["tests/**"]  # verify uses the base's version of these
        "#);
        fs::write(folder.path().join(".gitignore"), "/node_modules/\n").unwrap();
        let text = written(folder.path(), &found(folder.path()));
        let file = folder.path().join("kage.toml");
        fs::write(&file, text).unwrap();
        let run = crate::settings::project(&file).unwrap().run;
        assert_eq!(run.verify.as_deref(), Some("npm test"));
        assert_eq!(run.setup, run.session_setup);
        assert_eq!(run.setup.as_deref(), Some("npm install --no-package-lock"));
        assert!(written(folder.path(), &[]).parse::<toml::Table>().is_ok());
    }

    /// Runs what was found in a project that its tool can build without a network. `None`: there is no such
    /// tool here.
    fn passes(tool: &str, files: &[(&str, &str)]) -> Option<bool> {
        let there = Command::new(tool)
            .arg(if tool == "go" { "version" } else { "--version" })
            .output();
        if !there.is_ok_and(|output| output.status.success()) {
            eprintln!("SKIPPED: {tool} is not installed");
            return None;
        }
        let folder = project(files);
        let found = found(folder.path()).into_iter().next().unwrap();
        let all = found
            .setup
            .into_iter()
            .chain([found.verify])
            .collect::<Vec<_>>()
            .join(" && ");
        let ran = Command::new("sh")
            .args(["-c", &all])
            .current_dir(folder.path())
            .env("CARGO_TARGET_DIR", folder.path().join("target"))
            .env("GOFLAGS", "-mod=mod")
            .output()
            .unwrap();
        eprintln!("{all}: {}", String::from_utf8_lossy(&ran.stderr));
        Some(ran.status.success())
    }

    #[test]
    fn generated_projects_pass_and_fail_by_what_is_found_in_them() {
        let cargo = |result: &str| {
            let test = format!("#[test] fn t() {{ assert!({result}); }}");
            passes(
                "cargo",
                &[
                    (
                        "Cargo.toml",
                        "[package]\nname = \"x\"\nversion = \"0.0.1\"\nedition = \"2021\"\n[workspace]\n",
                    ),
                    ("src/lib.rs", &test),
                ],
            )
        };
        let npm = |code: &str| {
            let package =
                format!(r#"{{"name":"x","version":"1.0.0","scripts":{{"test":"exit {code}"}},"dependencies":{{}}}}"#);
            let lock = r#"{"name":"x","version":"1.0.0","lockfileVersion":3,"requires":true,"packages":{"":{"name":"x","version":"1.0.0"}}}"#;
            passes("npm", &[("package.json", &package), ("package-lock.json", lock)])
        };
        let make = |code: &str| passes("make", &[("Makefile", &format!("test:\n\texit {code}\n"))]);
        let go = |result: &str| {
            let test =
                format!("package x\nimport \"testing\"\nfunc TestX(t *testing.T) {{ if !{result} {{ t.Fail() }} }}\n");
            passes("go", &[("go.mod", "module x\n\ngo 1.18\n"), ("x_test.go", &test)])
        };
        let pytest = |result: &str| {
            passes(
                "pytest",
                &[
                    ("pytest.ini", "[pytest]\n"),
                    ("test_x.py", &format!("def test_x(): assert {result}\n")),
                ],
            )
        };
        let both = [
            (cargo("true"), cargo("false")),
            (npm("0"), npm("1")),
            (make("0"), make("1")),
            (go("true"), go("false")),
            (pytest("True"), pytest("False")),
        ];
        for (good, bad) in both {
            assert_eq!((good.unwrap_or(true), bad.unwrap_or(false)), (true, false));
        }
        assert!(both[0].0.is_some(), "cargo runs this test");
    }
}

//! Environment variables and files in the person's HOME that name programs, files to write, or
//! another repository. Our operation runs as a separate process, which inherits them.

use std::fs;
use std::process::Stdio;

use super::{Field, Ground, finish};
use crate::sandbox::write;

struct Variable {
    name: &'static str,
    variables: &'static [(&'static str, &'static str)],
    files: &'static [(&'static str, &'static str)],
    /// How plain git springs it, in the form of [`super::Trap`].
    control: &'static [&'static [&'static str]],
}

const PLAIN: Variable = Variable {
    name: "",
    variables: &[],
    files: &[],
    control: &[],
};

const FSMONITOR: &str = "[core]\n\tfsmonitor = {marker}\n";
const STATUS: &[&[&str]] = &[&["status"]];
const CLONE: &[&[&str]] = &[&["clone", "-q", "--no-local", "file://{repo}", "{folder}/c"]];

/// A variable whose value is one text.
const fn one(
    variables: &'static [(&'static str, &'static str)],
    control: &'static [&'static [&'static str]],
) -> Variable {
    Variable {
        name: variables[0].0,
        variables,
        control,
        ..PLAIN
    }
}

/// A trap in the person's own configuration: it may be there, but no program is run for it.
const fn at_home(
    name: &'static str,
    files: &'static [(&'static str, &'static str)],
    control: &'static [&'static [&'static str]],
) -> Variable {
    Variable {
        name,
        files,
        control,
        ..PLAIN
    }
}

const VARIABLES: &[Variable] = &[
    one(
        &[
            ("GIT_CONFIG_COUNT", "1"),
            ("GIT_CONFIG_KEY_0", "core.fsmonitor"),
            ("GIT_CONFIG_VALUE_0", "{marker}"),
        ],
        STATUS,
    ),
    one(&[("GIT_CONFIG_PARAMETERS", "'core.fsmonitor'='{marker}'")], STATUS),
    Variable {
        files: &[("{folder}/config", FSMONITOR)],
        ..one(&[("GIT_CONFIG_GLOBAL", "{folder}/config")], STATUS)
    },
    Variable {
        files: &[("{folder}/config", FSMONITOR)],
        ..one(
            &[("GIT_CONFIG_SYSTEM", "{folder}/config"), ("GIT_CONFIG_NOSYSTEM", "0")],
            STATUS,
        )
    },
    Variable {
        files: &[("{folder}/xdg/git/config", FSMONITOR)],
        ..one(&[("XDG_CONFIG_HOME", "{folder}/xdg")], STATUS)
    },
    Variable {
        files: &[
            (
                "{folder}/evil/config",
                "[core]\n\tbare = false\n\tfsmonitor = {marker}\n",
            ),
            ("{folder}/evil/HEAD", "ref: refs/heads/x\n"),
            ("{folder}/evil/objects/x", ""),
            ("{folder}/evil/refs/x", ""),
        ],
        ..one(&[("GIT_DIR", "{folder}/evil")], STATUS)
    },
    one(&[("GIT_INDEX_FILE", "{mark}")], &[&["add", "-A"]]),
    one(
        &[("GIT_OBJECT_DIRECTORY", "{mark}")],
        &[&["sh", "-c", "mkdir -p {mark}; git add -A"]],
    ),
    one(&[("GIT_TRACE", "{mark}")], STATUS),
    one(&[("GIT_TRACE2_EVENT", "{mark}")], STATUS),
    one(&[("GIT_TRACE_SETUP", "{mark}")], STATUS),
    one(&[("GIT_EXTERNAL_DIFF", "{marker}")], &[&["diff"]]),
    one(&[("GIT_SSH_COMMAND", "{stop}")], &[&["ls-remote", "ssh://x/y"]]),
    one(&[("GIT_SSH", "{stop}")], &[&["ls-remote", "ssh://x/y"]]),
    one(&[("GIT_PROXY_COMMAND", "{stop}")], &[&["ls-remote", "git://x/y"]]),
    one(
        &[("GIT_ASKPASS", "{marker}")],
        &[&[
            "sh",
            "-c",
            "printf 'protocol=https\\nhost=x\\n\\n' | git credential fill",
        ]],
    ),
    one(
        &[("SSH_ASKPASS", "{marker}")],
        &[&[
            "sh",
            "-c",
            "printf 'protocol=https\\nhost=x\\n\\n' | git credential fill",
        ]],
    ),
    one(&[("GIT_EDITOR", "{marker}")], &[&["commit", "--allow-empty"]]),
    one(&[("EDITOR", "{marker}")], &[&["commit", "--allow-empty"]]),
    one(
        &[("GIT_SEQUENCE_EDITOR", "{marker}")],
        &[&["stash", "-q"], &["rebase", "-i", "--root"]],
    ),
    one(
        &[("GIT_PAGER", "{marker}")],
        &[&["sh", "-c", "script -qec 'git --paginate log' /dev/null"]],
    ),
    Variable {
        files: &[("{folder}/exec/git-receive-pack", "#!/bin/sh\ntouch {mark}\n")],
        ..one(
            &[("GIT_EXEC_PATH", "{folder}/exec")],
            &[
                &["init", "-q", "--bare", "{folder}/o.git"],
                &["push", "-q", "{folder}/o.git", "HEAD:refs/heads/x"],
            ],
        )
    },
    Variable {
        files: &[("{folder}/template/hooks/post-checkout", "#!/bin/sh\ntouch {mark}\n")],
        ..one(&[("GIT_TEMPLATE_DIR", "{folder}/template")], CLONE)
    },
    at_home(
        "~/.gitconfig: fsmonitor",
        &[("{folder}/home/.gitconfig", FSMONITOR)],
        STATUS,
    ),
    at_home(
        "~/.gitconfig: hooksPath",
        &[
            ("{folder}/home/.gitconfig", "[core]\n\thooksPath = {folder}/hooks\n"),
            ("{folder}/hooks/reference-transaction", "#!/bin/sh\ntouch {mark}\n"),
        ],
        &[&["update-ref", "refs/heads/x", "HEAD"]],
    ),
    at_home(
        "~/.gitconfig: packObjectsHook",
        &[("{folder}/home/.gitconfig", "[uploadpack]\n\tpackObjectsHook = {stop}\n")],
        CLONE,
    ),
    at_home(
        "~/.gitconfig: templateDir",
        &[
            (
                "{folder}/home/.gitconfig",
                "[init]\n\ttemplateDir = {folder}/template\n",
            ),
            ("{folder}/template/hooks/post-checkout", "#!/bin/sh\ntouch {mark}\n"),
        ],
        CLONE,
    ),
];

impl Ground<'_> {
    /// Sets everything of a variable but the variable.
    fn prepare(&self, variable: &Variable) {
        use std::os::unix::fs::PermissionsExt as _;
        for (path, content) in variable.files {
            let path = std::path::PathBuf::from(self.fill(path));
            write(&path, self.fill(content));
            if content.starts_with("#!") {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            }
        }
        fs::create_dir_all(self.folder.join("home")).unwrap();
    }

    fn program(&self, variable: &Variable, name: &str) -> std::process::Command {
        let mut command = self.field.sandbox.program(name, &self.repo());
        command.env("HOME", self.folder.join("home"));
        for (name, value) in variable.variables {
            command.env(name, self.fill(value));
        }
        command
    }
}

#[test]
fn no_variable_reaches_git() {
    let field = Field::new();
    let mut wrong = Vec::new();
    for (number, variable) in VARIABLES.iter().enumerate() {
        let control = field.ground(&format!("{number}-control"));
        control.prepare(variable);
        let mut said = String::new();
        for step in variable.control {
            let step: Vec<String> = step.iter().map(|word| control.fill(word)).collect();
            let (program, arguments) = match step.split_first() {
                Some((first, rest)) if first == "sh" => ("sh", rest),
                _ => ("git", step.as_slice()),
            };
            said.push_str(&finish(control.program(variable, program).args(arguments)));
        }
        if !control.has_sprung() {
            wrong.push(format!("{}: plain git did not walk into it: {said}", variable.name));
        }

        let ours = field.ground(&format!("{number}-ours"));
        ours.prepare(variable);
        // A merge needs clean files.
        write(&ours.repo().join("text"), "one\n2\n3\n");
        let done = ours
            .program(variable, env!("CARGO_BIN_EXE_kage-git-step"))
            .args(["session".as_ref(), ours.repo().as_os_str(), ours.folder.as_os_str()])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        if !done.status.success() {
            wrong.push(format!("{}: {}", variable.name, String::from_utf8_lossy(&done.stderr)));
        }
        if ours.has_sprung() {
            wrong.push(format!("{}: it ran", variable.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

//! Programs that a repository's configuration and attributes name.

use super::{Field, PLAIN, Trap};

const FSMONITOR: &str = "[core]\n\tfsmonitor = {marker}\n";
const STATUS: &[&[&str]] = &[&["status"]];
const CREDENTIALS: &[&[&str]] = &[&[
    "sh",
    "-c",
    "printf 'protocol=https\\nhost=example.com\\n\\n' | git credential fill",
]];

/// Configuration that has a program run on files.
const ON_FILES: &[Trap] = &[
    Trap {
        name: "core.fsmonitor",
        config: &[("core.fsmonitor", "{marker}")],
        control: STATUS,
        ..PLAIN
    },
    Trap {
        name: "include.path",
        config: &[("include.path", "{folder}/included")],
        files: &[("{folder}/included", FSMONITOR)],
        control: STATUS,
        ..PLAIN
    },
    Trap {
        name: "includeIf.gitdir",
        config: &[("includeIf.gitdir:/.path", "{folder}/included")],
        files: &[("{folder}/included", FSMONITOR)],
        control: STATUS,
        ..PLAIN
    },
    Trap {
        name: "includeIf.onbranch",
        config: &[("includeIf.onbranch:**.path", "{folder}/included")],
        files: &[("{folder}/included", FSMONITOR)],
        control: STATUS,
        ..PLAIN
    },
    Trap {
        name: "config.worktree",
        config: &[("extensions.worktreeConfig", "true")],
        files: &[("{repo}/.git/config.worktree", FSMONITOR)],
        control: STATUS,
        ..PLAIN
    },
    Trap {
        name: "filter.clean",
        config: &[("filter.evil.clean", "{marker}")],
        control: &[&["add", "other"]],
        ..PLAIN
    },
    Trap {
        name: "filter.smudge",
        config: &[("filter.evil.smudge", "{marker}")],
        control: &[&["checkout", "-f", "HEAD", "--", "other"]],
        ..PLAIN
    },
    Trap {
        name: "filter.process of a name with an equals sign",
        config: &[
            ("filter.evil=x.process", "{marker}"),
            ("filter.evil=x.required", "true"),
        ],
        control: &[&["sh", "-c", "echo changed >third; git add third"]],
        ..PLAIN
    },
    Trap {
        name: "a filter by core.attributesFile",
        config: &[
            ("core.attributesFile", "{folder}/attributes"),
            ("filter.outer.clean", "{marker}"),
        ],
        files: &[("{folder}/attributes", "fourth filter=outer\n")],
        control: &[&["sh", "-c", "echo changed >fourth; git add fourth"]],
        ..PLAIN
    },
    Trap {
        name: "a filter by info/attributes",
        config: &[("filter.inner.clean", "{marker}")],
        files: &[("{repo}/.git/info/attributes", "other filter=inner\n")],
        control: &[&["add", "other"]],
        ..PLAIN
    },
    Trap {
        name: "diff.textconv",
        config: &[("diff.evil.textconv", "{marker}")],
        control: &[&["diff"]],
        ..PLAIN
    },
    Trap {
        name: "diff.external",
        config: &[("diff.external", "{marker}")],
        control: &[&["diff"]],
        ..PLAIN
    },
    Trap {
        name: "diff.command",
        config: &[("diff.evil.command", "{marker}")],
        control: &[&["diff"]],
        ..PLAIN
    },
    Trap {
        name: "merge.driver",
        config: &[("merge.evil.driver", "{marker}")],
        control: &[&["stash", "-q"], &["merge-tree", "--write-tree", "HEAD", "side"]],
        ..PLAIN
    },
    Trap {
        name: "merge.default",
        config: &[("merge.default", "any"), ("merge.any.driver", "{marker}")],
        control: &[
            &["sh", "-c", "rm .gitattributes; git commit -qam plain"],
            &["merge-tree", "--write-tree", "HEAD", "side"],
        ],
        ..PLAIN
    },
    Trap {
        name: "tar.command",
        config: &[("tar.evil.command", "{marker}")],
        control: &[&["archive", "--format=evil", "HEAD"]],
        ..PLAIN
    },
    Trap {
        name: "a submodule's own fsmonitor",
        files: &[
            ("{repo}/sub/.git/HEAD", "ref: refs/heads/main\n"),
            ("{repo}/sub/.git/config", FSMONITOR),
            (
                "{repo}/sub/.git/refs/heads/main",
                "4b825dc642cb6eb9a060e54bf8d69288fbee4904\n",
            ),
            ("{repo}/sub/.git/objects/x", ""),
        ],
        control: &[&[
            "sh",
            "-c",
            "git update-index --add --cacheinfo 160000,$(git rev-parse HEAD),sub; git status",
        ]],
        ..PLAIN
    },
];

/// Configuration that has a program run beside the files.
const BESIDE_FILES: &[Trap] = &[
    Trap {
        name: "gpg.program",
        config: &[("commit.gpgSign", "true"), ("gpg.program", "{marker}")],
        control: &[&["commit", "-q", "-m", "signed", "--allow-empty"]],
        refused: Some("git makes no commit here"),
        ..PLAIN
    },
    Trap {
        name: "gpg.ssh.program",
        config: &[
            ("commit.gpgSign", "true"),
            ("gpg.format", "ssh"),
            ("user.signingKey", "key::ssh-ed25519 AAAA"),
            ("gpg.ssh.program", "{marker}"),
        ],
        control: &[&["commit", "-q", "-m", "signed", "--allow-empty"]],
        refused: Some("git makes no commit here"),
        ..PLAIN
    },
    Trap {
        name: "gpg.ssh.defaultKeyCommand",
        config: &[
            ("commit.gpgSign", "true"),
            ("gpg.format", "ssh"),
            ("gpg.ssh.defaultKeyCommand", "{marker}"),
        ],
        control: &[&["commit", "-q", "-m", "signed", "--allow-empty"]],
        refused: Some("git makes no commit here"),
        ..PLAIN
    },
    Trap {
        name: "core.pager",
        config: &[("core.pager", "{marker}")],
        control: &[&["sh", "-c", "script -qec 'git --paginate log' /dev/null"]],
        ..PLAIN
    },
    Trap {
        name: "pager.status",
        config: &[("pager.status", "{marker}")],
        control: &[&["sh", "-c", "script -qec 'git status' /dev/null"]],
        ..PLAIN
    },
    Trap {
        name: "core.editor",
        config: &[("core.editor", "{marker}")],
        control: &[&["commit", "--allow-empty"]],
        ..PLAIN
    },
    Trap {
        name: "sequence.editor",
        config: &[("sequence.editor", "{marker}")],
        control: &[&["stash", "-q"], &["rebase", "-i", "--root"]],
        ..PLAIN
    },
    Trap {
        name: "alias",
        config: &[("alias.evil", "!{marker}")],
        control: &[&["evil"]],
        ..PLAIN
    },
    Trap {
        name: "trailer.cmd",
        config: &[("trailer.evil.cmd", "{marker}")],
        control: &[&["commit", "-q", "--allow-empty", "-m", "x", "--trailer", "evil=1"]],
        ..PLAIN
    },
    Trap {
        name: "gc.recentObjectsHook",
        config: &[("gc.recentObjectsHook", "{marker}")],
        control: &[
            &["sh", "-c", "echo loose | git hash-object -w --stdin"],
            &["sh", "-c", "find .git/objects -type f -exec touch -d '2 days ago' {} +"],
            &["prune", "--expire=1.hour.ago"],
        ],
        ..PLAIN
    },
    Trap {
        name: "core.alternateRefsCommand",
        config: &[("core.alternateRefsCommand", "{marker}")],
        control: &[
            &["clone", "-q", "--bare", "{repo}", "{folder}/o.git"],
            &["sh", "-c", "echo {folder}/o.git/objects >.git/objects/info/alternates"],
            &["rev-list", "--alternate-refs"],
        ],
        ..PLAIN
    },
    Trap {
        name: "credential.helper",
        config: &[("credential.helper", "!{marker}")],
        control: CREDENTIALS,
        ..PLAIN
    },
    Trap {
        name: "credential.URL.helper",
        config: &[("credential.https://example.com.helper", "!{marker}")],
        control: CREDENTIALS,
        ..PLAIN
    },
    Trap {
        name: "core.askPass",
        config: &[("core.askPass", "{marker}")],
        control: CREDENTIALS,
        ..PLAIN
    },
    Trap {
        name: "core.sshCommand",
        config: &[("core.sshCommand", "{stop}"), ("url.ssh://x/.insteadOf", "file://")],
        control: &[&["ls-remote", "file:///nowhere"]],
        ..PLAIN
    },
    Trap {
        name: "core.gitProxy",
        config: &[("core.gitProxy", "{stop}"), ("url.git://x/.insteadOf", "file://")],
        control: &[&["ls-remote", "file:///nowhere"]],
        ..PLAIN
    },
    Trap {
        name: "protocol.ext",
        config: &[
            ("protocol.ext.allow", "always"),
            ("url.ext::{stop} .insteadOf", "file://"),
        ],
        control: &[&["ls-remote", "file:///nowhere"]],
        ..PLAIN
    },
    Trap {
        name: "remote.uploadpack",
        config: &[("remote.origin.url", "{repo}"), ("remote.origin.uploadpack", "{stop}")],
        control: &[&["fetch"]],
        ..PLAIN
    },
    Trap {
        name: "remote.receivepack",
        config: &[("remote.origin.url", "{repo}"), ("remote.origin.receivepack", "{stop}")],
        control: &[&["push", "origin", "HEAD:refs/heads/x"]],
        ..PLAIN
    },
    Trap {
        name: "submodule.update",
        config: &[
            ("submodule.sub.url", "{repo}"),
            ("submodule.sub.active", "true"),
            ("submodule.sub.update", "!{marker}"),
        ],
        control: &[
            &[
                "sh",
                "-c",
                "printf '[submodule \"sub\"]\\n\\tpath = sub\\n\\turl = {repo}\\n' >.gitmodules",
            ],
            &[
                "sh",
                "-c",
                "git update-index --add --cacheinfo 160000,$(git rev-parse side),sub",
            ],
            &["-c", "protocol.file.allow=always", "submodule", "update"],
        ],
        ..PLAIN
    },
    Trap {
        name: "a promised object is fetched by a program",
        config: &[
            ("core.repositoryFormatVersion", "1"),
            ("extensions.partialClone", "origin"),
            ("remote.origin.url", "{repo}"),
            ("remote.origin.promisor", "true"),
            ("remote.origin.uploadpack", "{stop}"),
        ],
        control: &[&["cat-file", "-p", "1111111111111111111111111111111111111111"]],
        refused: Some("partial clone"),
        ..PLAIN
    },
];

#[tokio::test]
async fn no_program_that_looks_at_files_runs() {
    Field::new().pass_by(ON_FILES).await;
}

#[tokio::test]
async fn no_program_beside_the_files_runs() {
    Field::new().pass_by(BESIDE_FILES).await;
}

//! What every git process is given: the settings that override the programs in a repository's
//! configuration, and the few environment variables that it inherits.

/// Which configuration files git reads besides the repository's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConfigFiles {
    None,
    /// The user's files, for reading values. The overrides below still win.
    User,
    /// The same, and variables that say who the person is: for what is done in their name.
    Person,
}

/// Settings that win over anything a repository says.
pub(super) const NEUTRAL: &[(&str, &str)] = &[
    ("core.hooksPath", "/dev/null"),
    ("core.fsmonitor", "false"),
    ("core.untrackedCache", "false"),
    ("core.pager", "cat"),
    ("core.editor", "false"),
    ("core.askPass", ""),
    ("core.sshCommand", "false"),
    ("core.gitProxy", "none"),
    ("core.alternateRefsCommand", ":"),
    // Acknowledged means durable: every object, pack, index and ref is flushed.
    ("core.fsync", "all"),
    ("core.fsyncMethod", "batch"),
    ("credential.helper", ""),
    ("credential.interactive", "false"),
    ("commit.gpgSign", "false"),
    ("tag.gpgSign", "false"),
    ("push.gpgSign", "false"),
    ("log.showSignature", "false"),
    ("gpg.program", "false"),
    ("submodule.recurse", "false"),
    ("fetch.recurseSubmodules", "false"),
    ("push.recurseSubmodules", "no"),
    ("protocol.ext.allow", "never"),
    ("http.followRedirects", "false"),
    // A peer that is silent for two minutes is gone; git's own keep-alives come every 5 s.
    ("http.lowSpeedLimit", "1"),
    ("http.lowSpeedTime", "120"),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    ("transfer.fsckObjects", "true"),
    ("fetch.unpackLimit", "1"),
    ("receive.unpackLimit", "1"),
    ("fetch.writeCommitGraph", "false"),
    ("diff.external", ""),
    ("diff.renames", "false"),
    ("color.ui", "false"),
    ("advice.detachedHead", "false"),
    ("safe.directory", "*"),
    // Kage's own bare repositories are named by GIT_DIR; a bare repository among a stranger's files
    // must not be discovered by its folder.
    ("safe.bareRepository", "explicit"),
    ("advice.graftFileDeprecated", "false"),
];

/// Flaws of old but honest histories that would fail a check of every object. git reads all of them,
/// and none makes a checkout write elsewhere or run anything.
pub(super) const TOLERATED_FLAWS: &[&str] = &[
    // Who and when, as importers and old programs wrote it.
    "badDate",
    "badDateOverflow",
    "badEmail",
    "badName",
    "badTimezone",
    "missingEmail",
    "missingNameBeforeEmail",
    "missingSpaceBeforeDate",
    "missingSpaceBeforeEmail",
    "multipleAuthors",
    "nulInCommit",
    "zeroPaddedDate",
    // Trees: the same name twice checks out as one of the two.
    "duplicateEntries",
    "zeroPaddedFilemode",
    // Nobody here clones submodules, so an address is only text.
    "gitmodulesUrl",
];

/// The environment variables that git inherits. No proxies: the only peer is the coordinator, which
/// gRPC reaches directly too, and a proxy would see its token. PATH is built from the folders in
/// which git itself was searched.
pub(super) const INHERITED: &[&str] = &["TMPDIR", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR"];

/// The environment variables that tie git to a repository: whatever else is inherited, these are not.
pub(super) const OF_REPOSITORY: &[&str] = &[
    "GIT_DIR",
    "GIT_COMMON_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_NAMESPACE",
    "GIT_PREFIX",
    "GIT_GRAFT_FILE",
    "GIT_SHALLOW_FILE",
];

/// The environment variables that say where the user's files are.
pub(super) const OF_CONFIG: &[&str] = &["HOME", "XDG_CONFIG_HOME", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_NOSYSTEM"];

/// The environment variables besides by which git and the programs that sign for it know a person,
/// and can ask them.
pub(super) const OF_PERSON: &[&str] = &[
    "GIT_AUTHOR_NAME",
    "GIT_AUTHOR_EMAIL",
    "GIT_AUTHOR_DATE",
    "GIT_COMMITTER_NAME",
    "GIT_COMMITTER_EMAIL",
    "GIT_COMMITTER_DATE",
    "EMAIL",
    "USER",
    "LOGNAME",
    "GNUPGHOME",
    "GPG_TTY",
    "SSH_AUTH_SOCK",
    "TERM",
    "DISPLAY",
    "WAYLAND_DISPLAY",
    "XAUTHORITY",
    "XDG_RUNTIME_DIR",
    "DBUS_SESSION_BUS_ADDRESS",
];

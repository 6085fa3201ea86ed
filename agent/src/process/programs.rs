//! The programs in the folders of PATH when the agent started, for verify and set-up, which must
//! not run a program that a session put there since.
//!
//! A person's PATH stays valid: `cargo` of `~/.cargo/bin` or `node` of nvm still win over the
//! system's. But a name that appears later in a folder that sessions can write, and would hide an
//! earlier program, must not win: a folder of our own that comes first in PATH restores such names.
//! A new name that hides nothing can be used, for example one that set-up installs. A user's
//! program that a session overwrites in place is not detected here; that needs a sandbox.
//!
//! The record outlives the agent: it is a file of the state folder, with a line for each program
//! and, with a slash at its end, each folder. Otherwise a session's program would count as the
//! person's own after a restart of the agent. A person who put a program in front of another adds
//! its line, or removes the file, so that everything present counts.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use kage_core::id::Digest;
use kage_git::executable::{Changed, Executable, is_executable, is_ours, search_folders};

/// The shell of verify and setup.
const SHELL: &str = "/bin/sh";

/// The folders of PATH at one time.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    folders: Vec<Folder>,
    shell: Option<Executable>,
    /// False when no folder was read, and none is.
    surveyed: bool,
}

#[derive(Debug, Clone)]
struct Folder {
    path: PathBuf,
    /// The programs in it. `None`: only the system can write to the folder.
    had: Option<BTreeSet<OsString>>,
}

impl Folder {
    fn new(path: PathBuf) -> Self {
        Self {
            had: is_ours(&path).then(|| names(&path)),
            path,
        }
    }

    fn had(&self, name: &OsStr) -> bool {
        match &self.had {
            Some(had) => had.contains(name),
            None => is_executable(&self.path.join(name)),
        }
    }
}

/// A program that hides an earlier one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Planted {
    pub(crate) path: PathBuf,
    /// The program of the same name that it hides.
    pub(crate) hides: PathBuf,
}

impl Programs {
    /// The present content of the folders of a PATH. Blocking.
    pub(crate) fn survey(path: &OsStr, kept_out: &[PathBuf]) -> Self {
        let folders = search_folders(path, kept_out).into_iter();
        Self {
            folders: folders.map(Folder::new).collect(),
            shell: Executable::at(Path::new(SHELL)),
            surveyed: true,
        }
    }

    /// The same, without programs that an earlier survey did not find and that would hide one that
    /// it found. `record` is the earlier survey, and gets what is found now. Blocking.
    ///
    /// # Errors
    /// When the record cannot be read or written.
    pub(crate) fn survey_since(path: &OsStr, kept_out: &[PathBuf], record: &Path) -> io::Result<Self> {
        let mut now = Self::survey(path, kept_out);
        let known = match fs::read(record) {
            Ok(known) => known,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let mut known: BTreeSet<&[u8]> = known.split(|byte| *byte == b'\n').collect();
        known.remove(&b""[..]);
        let mut then = now.clone();
        for folder in &mut then.folders {
            // A folder that is new in PATH was put there by a person.
            if let Some(had) = &mut folder.had
                && known.contains(line_of_folder(&folder.path).as_slice())
            {
                had.retain(|name| known.contains(line_of(&folder.path, name).as_slice()));
            }
        }
        for (folder, before) in now.folders.iter_mut().zip(&then.folders) {
            if let Some(had) = &mut folder.had {
                had.retain(|name| before.had(name) || !then.folders.iter().any(|other| other.had(name)));
            }
        }
        let lines = now.lines();
        let mut all = known;
        all.extend(lines.iter().map(Vec::as_slice));
        let all = all.into_iter().collect::<Vec<_>>().join(&b'\n');
        // Renamed into place, so that a crash leaves no half record.
        let fresh = record.with_extension("new");
        fs::write(&fresh, [all.as_slice(), b"\n"].concat())?;
        fs::File::open(&fresh)?.sync_all()?;
        fs::rename(&fresh, record)?;
        Ok(now)
    }

    /// The record's lines about folders that sessions can write.
    fn lines(&self) -> Vec<Vec<u8>> {
        let mut lines = Vec::new();
        for folder in &self.folders {
            let Some(had) = &folder.had else {
                continue;
            };
            lines.push(line_of_folder(&folder.path));
            lines.extend(had.iter().map(|name| line_of(&folder.path, name)));
        }
        // A path with a line break does not fit into a line.
        lines.retain(|line| !line.contains(&b'\n'));
        lines
    }

    /// The system's folders, without reading any: for callers that start no program.
    pub(crate) fn of_the_system() -> Self {
        let folders = search_folders(OsStr::new(""), &[]).into_iter();
        Self {
            folders: folders.map(|path| Folder { path, had: None }).collect(),
            shell: None,
            surveyed: false,
        }
    }

    /// A digest of the programs that are in the folders now: their paths, sizes and times of change.
    /// Blocking.
    pub(crate) fn digest(&self) -> Digest {
        let mut bytes = Vec::new();
        for folder in self.folders.iter().filter(|_| self.surveyed) {
            for name in names(&folder.path) {
                let path = folder.path.join(name);
                // One that went meanwhile has no size; the next digest does not have it.
                let facts = fs::metadata(&path);
                let facts = facts.map(|facts| (facts.len(), facts.mtime(), facts.mtime_nsec()));
                let (size, seconds, nanos) = facts.unwrap_or_default();
                bytes.extend_from_slice(path.as_os_str().as_bytes());
                bytes.push(0);
                bytes.extend_from_slice(&size.to_be_bytes());
                bytes.extend_from_slice(&seconds.to_be_bytes());
                bytes.extend_from_slice(&nanos.to_be_bytes());
            }
        }
        Digest::of(&bytes)
    }

    /// The shell, unless it was changed.
    pub(crate) fn shell(&self) -> Result<&Path, Changed> {
        match &self.shell {
            Some(shell) => shell.to_run(),
            None => Ok(Path::new(SHELL)),
        }
    }

    /// The programs that were put in front of others since. Blocking.
    pub(crate) fn planted(&self) -> BTreeMap<OsString, Planted> {
        let mut planted = BTreeMap::new();
        for (at, folder) in self.folders.iter().enumerate() {
            let Some(had) = &folder.had else {
                continue;
            };
            for name in names(&folder.path) {
                if had.contains(&name) || planted.contains_key(&name) {
                    continue;
                }
                let (before, after) = self.folders.split_at(at);
                // An earlier folder wins anyway.
                if before.iter().any(|folder| folder.had(&name)) {
                    continue;
                }
                if let Some(hidden) = after.iter().find(|folder| folder.had(&name)) {
                    let found = Planted {
                        path: folder.path.join(&name),
                        hides: hidden.path.join(&name),
                    };
                    planted.insert(name, found);
                }
            }
        }
        planted
    }

    /// The PATH for verify and set-up; a new folder restores the hidden programs. Blocking.
    pub(crate) fn path(&self, planted: &BTreeMap<OsString, Planted>, right: &Path) -> io::Result<OsString> {
        let mut folders: Vec<_> = self.folders.iter().map(|folder| folder.path.clone()).collect();
        if !planted.is_empty() {
            // Whatever is there may come from a session.
            match fs::remove_dir_all(right) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
            fs::create_dir(right)?;
            for (name, planted) in planted {
                let path = right.join(name);
                fs::write(&path, calling(&planted.hides))?;
                fs::set_permissions(&path, fs::Permissions::from_mode(0o555))?;
            }
            folders.insert(0, right.to_owned());
        }
        if folders.is_empty() {
            // A shell would look for programs in the worktree.
            return Err(io::Error::other("no folder of PATH can be used"));
        }
        std::env::join_paths(folders).map_err(io::Error::other)
    }
}

/// A script that calls a program. Not a link: programs look for their files beside the path by
/// which they are called.
fn calling(program: &Path) -> Vec<u8> {
    let mut script = b"#!/bin/sh\nexec '".to_vec();
    for byte in program.as_os_str().as_bytes() {
        match byte {
            b'\'' => script.extend_from_slice(b"'\\''"),
            other => script.push(*other),
        }
    }
    script.extend_from_slice(b"' \"$@\"\n");
    script
}

fn line_of(folder: &Path, name: &OsStr) -> Vec<u8> {
    folder.join(name).into_os_string().into_vec()
}

fn line_of_folder(folder: &Path) -> Vec<u8> {
    line_of(folder, OsStr::new(""))
}

/// The names of the programs in a folder; a missing folder has none.
fn names(folder: &Path) -> BTreeSet<OsString> {
    let Ok(entries) = fs::read_dir(folder) else {
        return BTreeSet::new();
    };
    let programs = entries.flatten().filter(|entry| is_executable(&entry.path()));
    programs
        .map(|entry| OsString::from_vec(entry.file_name().into_vec()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(path: &Path, says: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("#!/bin/sh\necho {says} \"$@\"\n")).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn says(path: &OsStr, command: &str) -> String {
        let output = std::process::Command::new("/bin/sh")
            .args(["-c", command])
            .env("PATH", path)
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    #[test]
    fn what_was_put_in_the_way_does_not_hide_what_was_there() {
        let place = tempfile::tempdir().unwrap();
        let folder = |name: &str| place.path().join(name);
        // The person's own cargo wins over the system's; the first folder is not there yet.
        program(&folder("cargo/cargo"), "own");
        program(&folder("system/cargo"), "system");
        for name in ["sh", "make", "python3", "it's"] {
            program(&folder("system").join(name), "real");
        }
        let path = std::env::join_paths(["local", "cargo", "system"].map(folder)).unwrap();
        let programs = Programs::survey(&path, &[]);
        assert_eq!(programs.planted(), BTreeMap::new());
        assert_eq!(programs.path(&BTreeMap::new(), &folder("right")).unwrap(), path);

        for name in ["sh", "make", "python3", "it's", "cargo", "new"] {
            program(&folder("local").join(name), "planted");
        }
        // This one hides nothing: its folder comes after the one with the same name.
        program(&folder("cargo/make"), "planted");
        program(&folder("system/other"), "new");
        let planted = programs.planted();
        let hidden: Vec<_> = planted
            .iter()
            .map(|(name, it)| (name.to_str().unwrap(), &it.hides))
            .collect();
        assert_eq!(
            hidden,
            [
                ("cargo", &folder("cargo/cargo")),
                ("it's", &folder("system/it's")),
                ("make", &folder("system/make")),
                ("python3", &folder("system/python3")),
                ("sh", &folder("system/sh")),
            ]
        );
        let right = programs.path(&planted, &folder("right")).unwrap();
        for (command, said) in [
            ("cargo a 'b c'", "own a b c"),
            ("sh", "real"),
            ("make -j2", "real -j2"),
            ("python3", "real"),
            ("\"it's\" fine", "real fine"),
            ("new", "planted"),
            ("other", "new"),
        ] {
            assert_eq!(says(&right, command), said, "{command}");
        }
    }

    #[test]
    fn what_was_put_in_the_way_stays_that_until_a_person_says_otherwise() {
        let place = tempfile::tempdir().unwrap();
        let folder = |name: &str| place.path().join(name);
        let record = folder("programs");
        for name in ["cargo", "make", "sh"] {
            program(&folder("system").join(name), "real");
        }
        // A person's own, from before the first start.
        program(&folder("local/cargo"), "own");
        let path_of = |names: &[&str]| std::env::join_paths(names.iter().map(|name| folder(name))).unwrap();
        let path = path_of(&["absent", "local", "system"]);
        let start = |path: &OsStr| Programs::survey_since(path, &[], &record).unwrap();
        let planted = |programs: &Programs| -> Vec<PathBuf> {
            programs.planted().into_values().map(|planted| planted.path).collect()
        };
        assert_eq!(planted(&start(&path)), [] as [PathBuf; 0]);

        program(&folder("absent/make"), "planted");
        program(&folder("local/sh"), "planted");
        program(&folder("local/new"), "hides nothing");
        for _ in 0..3 {
            assert_eq!(planted(&start(&path)), [folder("absent/make"), folder("local/sh")]);
        }
        // Of two new programs, neither hides an earlier one.
        program(&folder("local/make"), "planted");
        let make = start(&path).planted().remove(OsStr::new("make")).unwrap();
        assert_eq!(make.hides, folder("system/make"));
        // A program that hid nothing when it was found must not hide another one later.
        program(&folder("system/new"), "real");
        assert_eq!(planted(&start(&path)), [folder("absent/make"), folder("local/sh")]);
        // A program that is missing for a while, for example during its update, is still the
        // person's.
        fs::remove_file(folder("local/cargo")).unwrap();
        start(&path);
        program(&folder("local/cargo"), "own");
        assert_eq!(planted(&start(&path)), [folder("absent/make"), folder("local/sh")]);
        // A person puts another folder into PATH.
        program(&folder("mine/sh"), "mine");
        let longer = path_of(&["mine", "absent", "local", "system"]);
        assert_eq!(planted(&start(&longer)), [folder("absent/make")]);

        let mut accepted = fs::read(&record).unwrap();
        accepted.extend_from_slice(folder("local/sh").as_os_str().as_bytes());
        fs::write(&record, accepted).unwrap();
        assert_eq!(planted(&start(&path)), [folder("absent/make")]);
        fs::remove_file(&record).unwrap();
        assert_eq!(planted(&start(&path)), [] as [PathBuf; 0]);
    }

    #[test]
    fn a_path_never_is_the_worktree() {
        let place = tempfile::tempdir().unwrap();
        let kept_out = [place.path().to_owned()];
        for path in ["", ":", "bin:.", place.path().to_str().unwrap()] {
            let programs = Programs::survey(OsStr::new(path), &kept_out);
            let path = programs.path(&BTreeMap::new(), &place.path().join("right")).unwrap();
            program(&place.path().join("sed"), "the worktree's");
            let found = std::process::Command::new("/bin/sh")
                .args(["-c", "command -v sed"])
                .env("PATH", path)
                .current_dir(place.path())
                .output()
                .unwrap();
            let found = String::from_utf8(found.stdout).unwrap();
            assert!(found.trim_end().ends_with("bin/sed"), "{found}");
        }
        let none = Programs {
            folders: Vec::new(),
            shell: None,
            surveyed: true,
        };
        assert!(none.path(&BTreeMap::new(), &place.path().join("right")).is_err());
    }

    #[test]
    fn a_file_that_becomes_a_program_later_is_one_that_was_not_there() {
        let place = tempfile::tempdir().unwrap();
        program(&place.path().join("b/tool"), "real");
        fs::create_dir(place.path().join("a")).unwrap();
        let notes = place.path().join("a/tool");
        fs::write(&notes, "notes").unwrap();
        let path = std::env::join_paths(["a", "b"].map(|name| place.path().join(name))).unwrap();
        let programs = Programs::survey(&path, &[]);
        fs::set_permissions(&notes, fs::Permissions::from_mode(0o755)).unwrap();
        let planted = programs.planted();
        assert_eq!(planted[OsStr::new("tool")].path, notes);
    }
}

//! What a repository brings that runs programs on this machine, and whether its person agreed to it: the
//! manifests in `.kage/adapters`, and the servers of `.mcp.json`. An agreement is about a clone and the digest
//! of the contents, so that a change asks again. Agreed manifests are copied to the person's own folder and used
//! from there: what anybody changes in the repository afterwards runs nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use kage_agent::adapters::cli::manifest::Manifest;
use kage_core::id::Digest;
use kage_git::UserRepo;
use serde::{Deserialize, Serialize};

use crate::exit::Refusal;
use crate::output::note;
use crate::settings;

/// Where a repository has its manifests, and what they name.
const FOLDER: &str = ".kage/adapters";
/// Where it names servers of the Model Context Protocol.
const MCP_FILE: &str = ".mcp.json";
/// The most files of the folder, and the most bytes of what is read of a repository.
const MOST_FILES: usize = 64;
const MOST_BYTES: u64 = 1 << 20;

/// What a repository brings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Brought {
    pub(crate) adapters: Option<BroughtAdapters>,
    pub(crate) mcp: Option<BroughtServers>,
}

/// The manifests of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BroughtAdapters {
    pub(crate) digest: Digest,
    /// The program of each adapter, by the adapter's name.
    pub(crate) programs: BTreeMap<String, String>,
    files: BTreeMap<String, BroughtFile>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct BroughtFile {
    bytes: Vec<u8>,
    executable: bool,
}

/// The servers that a repository names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BroughtServers {
    pub(crate) digest: Digest,
    /// What each server is, in a few words, by its name.
    pub(crate) servers: BTreeMap<String, String>,
}

impl Brought {
    /// Reads what the files of a working tree bring.
    ///
    /// # Errors
    /// When they cannot be read, or are not what they have to be.
    pub(crate) fn by(repository: &UserRepo) -> anyhow::Result<Self> {
        let root = repository.root();
        Ok(Self {
            adapters: adapters(&root.join(FOLDER))?,
            mcp: servers(&root.join(MCP_FILE))?,
        })
    }
}

fn adapters(folder: &Path) -> anyhow::Result<Option<BroughtAdapters>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", folder.display())),
    };
    let refused = |problem: &str| Refusal::usage(format!("{}: {problem}", folder.display()));
    let (mut files, mut total) = (BTreeMap::new(), 0);
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot read {}", folder.display()))?;
        let path = entry.path();
        let Ok(name) = entry.file_name().into_string() else {
            return Err(refused("a name in it is not UTF-8").into());
        };
        // Of the entry itself: a link names something that may change later.
        let about = entry
            .metadata()
            .with_context(|| format!("cannot read {}", path.display()))?;
        total += about.len();
        if !about.is_file() {
            return Err(refused(&format!(
                "{name} is no file: manifests, and files that they name, stand side by side"
            ))
            .into());
        }
        if files.len() >= MOST_FILES || total > MOST_BYTES {
            return Err(refused(&format!("has more than {MOST_FILES} files or {MOST_BYTES} bytes")).into());
        }
        let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let executable = about.permissions().mode() & 0o111 != 0;
        files.insert(name, BroughtFile { bytes, executable });
    }
    let mut programs = BTreeMap::new();
    for (name, file) in files.iter().filter(|(name, _)| name.ends_with(".toml")) {
        let path = folder.join(name);
        let text = std::str::from_utf8(&file.bytes).map_err(|_| refused(&format!("{name} is not UTF-8")))?;
        let manifest = Manifest::parse(text, &path)?;
        if programs
            .insert(manifest.name.to_string(), manifest.command.clone())
            .is_some()
        {
            return Err(refused(&format!("two manifests define {}", manifest.name)).into());
        }
    }
    if programs.is_empty() {
        return Ok(None);
    }
    Ok(Some(BroughtAdapters {
        digest: digest(&files),
        programs,
        files,
    }))
}

/// Of names, modes and contents, each with its length.
fn digest(files: &BTreeMap<String, BroughtFile>) -> Digest {
    let mut all = Vec::new();
    for (name, file) in files {
        let line = format!("{} {} {}\n", name.len(), file.bytes.len(), u8::from(file.executable));
        all.extend_from_slice(line.as_bytes());
        all.extend_from_slice(name.as_bytes());
        all.extend_from_slice(&file.bytes);
    }
    Digest::of(&all)
}

fn servers(file: &Path) -> anyhow::Result<Option<BroughtServers>> {
    let bytes = match std::fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
    };
    let refused = |problem: &str| Refusal::usage(format!("{}: {problem}", file.display()));
    if bytes.len() as u64 > MOST_BYTES {
        return Err(refused(&format!("has more than {MOST_BYTES} bytes")).into());
    }
    let read: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|error| refused(&format!("is no JSON: {error}")))?;
    let named = read.get("mcpServers").and_then(serde_json::Value::as_object);
    let named = named.ok_or_else(|| refused("has no object \"mcpServers\""))?;
    let words = |server: &serde_json::Value| {
        let text = |key: &str| server.get(key).and_then(serde_json::Value::as_str);
        let arguments = server
            .get("args")
            .and_then(serde_json::Value::as_array)
            .into_iter()
            .flatten();
        let words = text("command").or_else(|| text("url")).into_iter();
        let words = words.chain(arguments.filter_map(serde_json::Value::as_str));
        words.collect::<Vec<_>>().join(" ")
    };
    let servers: BTreeMap<_, _> = named
        .iter()
        .map(|(name, server)| (name.clone(), words(server)))
        .collect();
    Ok((!servers.is_empty()).then(|| BroughtServers {
        digest: Digest::of(&bytes),
        servers,
    }))
}

/// What a person agreed to for one clone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Agreement {
    adapters: Option<Digest>,
    mcp: Option<Digest>,
}

/// All that this person agreed to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Agreements {
    folder: PathBuf,
    /// By the path of the clone.
    clones: BTreeMap<PathBuf, Agreement>,
}

/// What an agreement says about what a repository brings now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    Agreed,
    /// To something else: it changed since.
    Changed,
    Never,
}

impl Standing {
    fn of(agreed: Option<&Digest>, brought: &Digest) -> Self {
        match agreed {
            Some(agreed) if agreed == brought => Self::Agreed,
            Some(_) => Self::Changed,
            None => Self::Never,
        }
    }
}

impl Agreements {
    /// Those of this person; none without a home folder.
    ///
    /// # Errors
    /// When they cannot be read.
    pub(crate) fn read() -> anyhow::Result<Self> {
        match settings::agreed_folder() {
            Some(folder) => Self::within(folder),
            None => Ok(Self::default()),
        }
    }

    fn within(folder: PathBuf) -> anyhow::Result<Self> {
        let file = folder.join("agreed.json");
        let clones = match std::fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .with_context(|| format!("{} is not what `kage adapter trust` writes", file.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
        };
        Ok(Self { folder, clones })
    }

    /// The folders of the manifests that were agreed to.
    pub(crate) fn manifest_folders(&self) -> Vec<PathBuf> {
        let digests: BTreeSet<_> = self.clones.values().filter_map(|of| of.adapters.clone()).collect();
        digests.iter().map(|digest| self.copy(digest)).collect()
    }

    /// Another clone that has an adapter of one of these names with other files.
    ///
    /// # Errors
    /// When a copy cannot be read.
    pub(crate) fn taken(&self, clone: &Path, own: &BroughtAdapters) -> anyhow::Result<Option<(PathBuf, String)>> {
        let others = self.clones.iter().filter(|(path, _)| *path != clone);
        for (path, digest) in others.filter_map(|(path, of)| Some((path, of.adapters.as_ref()?))) {
            if *digest == own.digest {
                continue;
            }
            let theirs = adapters(&self.copy(digest))?;
            let names = theirs.iter().flat_map(|theirs| theirs.programs.keys());
            if let Some(name) = names.into_iter().find(|name| own.programs.contains_key(*name)) {
                return Ok(Some((path.clone(), name.clone())));
            }
        }
        Ok(None)
    }

    fn copy(&self, digest: &Digest) -> PathBuf {
        self.folder.join(digest.to_string())
    }

    pub(crate) fn adapters(&self, clone: &Path, brought: &BroughtAdapters) -> Standing {
        let agreed = self.clones.get(clone).and_then(|of| of.adapters.as_ref());
        Standing::of(agreed, &brought.digest)
    }

    pub(crate) fn mcp(&self, clone: &Path, brought: &BroughtServers) -> Standing {
        let agreed = self.clones.get(clone).and_then(|of| of.mcp.as_ref());
        Standing::of(agreed, &brought.digest)
    }

    /// Agrees to what a clone brings now, in the place of what was agreed to before; to nothing, when it brings
    /// nothing.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn agree(&mut self, clone: &Path, brought: &Brought) -> anyhow::Result<()> {
        if let Some(adapters) = &brought.adapters {
            self.keep(adapters)?;
        }
        let agreement = Agreement {
            adapters: brought.adapters.as_ref().map(|of| of.digest.clone()),
            mcp: brought.mcp.as_ref().map(|of| of.digest.clone()),
        };
        let before = match agreement == Agreement::default() {
            true => self.clones.remove(clone),
            false => self.clones.insert(clone.to_owned(), agreement),
        };
        self.write()?;
        let dropped = before.and_then(|before| before.adapters);
        if let Some(dropped) =
            dropped.filter(|dropped| self.clones.values().all(|of| of.adapters.as_ref() != Some(dropped)))
        {
            let copy = self.copy(&dropped);
            std::fs::remove_dir_all(&copy).with_context(|| format!("cannot remove {}", copy.display()))?;
        }
        Ok(())
    }

    /// Copies the files to where they are used from. A copy that is there has the same contents.
    fn keep(&self, adapters: &BroughtAdapters) -> anyhow::Result<()> {
        let place = self.copy(&adapters.digest);
        if place.exists() {
            return Ok(());
        }
        let writing = || {
            std::fs::create_dir_all(&self.folder)?;
            let new = tempfile::tempdir_in(&self.folder)?;
            for (name, file) in &adapters.files {
                let mode = if file.executable { 0o700 } else { 0o600 };
                let mut options = std::fs::OpenOptions::new();
                let mut written = options
                    .write(true)
                    .create_new(true)
                    .mode(mode)
                    .open(new.path().join(name))?;
                written.write_all(&file.bytes)?;
            }
            std::fs::rename(new.keep(), &place)
        };
        writing().with_context(|| format!("cannot write {}", place.display()))
    }

    fn write(&self) -> anyhow::Result<()> {
        let file = self.folder.join("agreed.json");
        let writing = || {
            std::fs::create_dir_all(&self.folder)?;
            let mut new = tempfile::NamedTempFile::new_in(&self.folder)?;
            new.write_all(&serde_json::to_vec_pretty(&self.clones)?)?;
            new.persist(&file).map_err(|error| error.error)?;
            Ok::<_, std::io::Error>(())
        };
        writing().with_context(|| format!("cannot write {}", file.display()))
    }
}

/// Refuses a run with an adapter that the repository brings and its person did not agree to.
///
/// # Errors
/// Names what has to be agreed to, and how.
pub(crate) fn check(repository: &UserRepo, names: &BTreeSet<String>) -> anyhow::Result<()> {
    let Some(adapters) = adapters(&repository.root().join(FOLDER))? else {
        return Ok(());
    };
    let Some(name) = names.iter().find(|name| adapters.programs.contains_key(*name)) else {
        return Ok(());
    };
    let program = &adapters.programs[name];
    let why = match Agreements::read()?.adapters(repository.home(), &adapters) {
        Standing::Agreed => return Ok(()),
        Standing::Never => "you did not agree to that yet",
        Standing::Changed => "its files changed since you agreed to that",
    };
    Err(Refusal::usage(format!(
        "the adapter {name} is the repository's own ({FOLDER}) and runs {program:?} on this machine; {why}: look at the \
         files, then run `kage adapter trust`"
    ))
    .into())
}

/// The digest of the repository's `.mcp.json`, if its person agreed to it. Says so, when it is left out.
///
/// # Errors
/// When the file is no such file.
pub(crate) fn mcp(repository: &UserRepo) -> anyhow::Result<Option<Digest>> {
    let Some(brought) = servers(&repository.root().join(MCP_FILE))? else {
        return Ok(None);
    };
    let why = match Agreements::read()?.mcp(repository.home(), &brought) {
        Standing::Agreed => return Ok(Some(brought.digest)),
        Standing::Never => "you did not agree to them yet",
        Standing::Changed => "the file changed since you agreed to them",
    };
    note(&format!(
        "sessions do not get the servers of {MCP_FILE}: {why} (`kage adapter trust`)"
    ));
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Clone {
        place: tempfile::TempDir,
    }

    impl Clone {
        fn new() -> Self {
            let place = tempfile::tempdir().unwrap();
            std::fs::create_dir_all(place.path().join(FOLDER)).unwrap();
            Self { place }
        }

        fn write(&self, name: &str, text: &str) {
            std::fs::write(self.place.path().join(name), text).unwrap();
        }

        fn brought(&self) -> anyhow::Result<Brought> {
            Ok(Brought {
                adapters: adapters(&self.place.path().join(FOLDER))?,
                mcp: servers(&self.place.path().join(MCP_FILE))?,
            })
        }
    }

    const MANIFEST: &str = "name = 'own'\ncommand = 'sh'\nargs = ['{manifest_dir}/run.sh']\n";

    #[test]
    fn an_agreement_is_about_a_clone_and_the_contents() {
        let (home, one, other) = (tempfile::tempdir().unwrap(), Clone::new(), Clone::new());
        assert_eq!(
            one.brought().unwrap(),
            Brought::default(),
            "an empty folder brings nothing"
        );
        for clone in [&one, &other] {
            clone.write(".kage/adapters/own.toml", MANIFEST);
            clone.write(".kage/adapters/run.sh", "echo one");
            clone.write(
                MCP_FILE,
                r#"{"mcpServers": {"docs": {"command": "npx", "args": ["docs"]}}}"#,
            );
        }
        let brought = one.brought().unwrap();
        let (adapters, mcp) = (brought.adapters.clone().unwrap(), brought.mcp.clone().unwrap());
        assert_eq!(adapters.programs["own"], "sh");
        assert_eq!(mcp.servers["docs"], "npx docs");
        let read = || Agreements::within(home.path().join("agreed")).unwrap();
        let (here, there) = (Path::new("/one"), Path::new("/other"));
        assert_eq!(read().adapters(here, &adapters), Standing::Never);
        read().agree(here, &brought).unwrap();
        assert_eq!(read().adapters(here, &adapters), Standing::Agreed);
        assert_eq!(read().mcp(here, &mcp), Standing::Agreed);
        assert_eq!(read().adapters(there, &adapters), Standing::Never, "another clone");
        read().agree(there, &other.brought().unwrap()).unwrap();
        let folders = read().manifest_folders();
        assert_eq!(folders.len(), 1, "the same files are there once");
        assert_eq!(std::fs::read_to_string(folders[0].join("run.sh")).unwrap(), "echo one");

        // What changes afterwards is not what was agreed to, and does not run.
        one.write(".kage/adapters/run.sh", "rm -rf ~");
        let changed = one.brought().unwrap();
        assert_eq!(
            read().adapters(here, &changed.adapters.clone().unwrap()),
            Standing::Changed
        );
        assert_eq!(std::fs::read_to_string(folders[0].join("run.sh")).unwrap(), "echo one");
        read().agree(here, &changed).unwrap();
        assert_eq!(read().manifest_folders().len(), 2);
        // The last clone that leaves a copy removes it.
        read().agree(there, &Brought::default()).unwrap();
        assert!(!folders[0].exists());
        assert_eq!(read().manifest_folders().len(), 1);
    }

    #[test]
    fn only_plain_files_that_are_manifests_are_brought() {
        let clone = Clone::new();
        let said = |clone: &Clone| format!("{:#}", clone.brought().unwrap_err());
        clone.write(".kage/adapters/own.toml", "name = 'own'");
        assert!(said(&clone).contains("own.toml"), "{}", said(&clone));
        clone.write(".kage/adapters/own.toml", MANIFEST);
        clone.write(".kage/adapters/again.toml", MANIFEST);
        assert!(said(&clone).contains("two manifests define own"), "{}", said(&clone));
        std::fs::remove_file(clone.place.path().join(".kage/adapters/again.toml")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", clone.place.path().join(".kage/adapters/x.toml")).unwrap();
        assert!(said(&clone).contains("x.toml is no file"), "{}", said(&clone));
        std::fs::remove_file(clone.place.path().join(".kage/adapters/x.toml")).unwrap();
        for wrong in ["[]", "{", "{\"servers\": {}}"] {
            clone.write(MCP_FILE, wrong);
            assert!(said(&clone).contains(".mcp.json"), "{}", said(&clone));
        }
        clone.write(MCP_FILE, r#"{"mcpServers": {}}"#);
        assert_eq!(clone.brought().unwrap().mcp, None);
    }
}

//! Where a run works, and which checks count there: the folder in which a person stands, the nearest
//! `kage.toml` from there up to the repository's top, and whose word wins.
//!
//! | said by | its commands run, and its paths count from |
//! |---|---|
//! | flags, the user's settings | the working folder |
//! | a `kage.toml` | the folder of that file |

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use kage_core::folder::Folder;
use kage_core::pattern::within;
use kage_core::task::VerifyPolicy;
use kage_git::UserRepo;

use crate::exit::Refusal;
use crate::output::note;
use crate::settings::{self, ContextSettings, ProjectSettings, RunOptions};
use crate::view;

/// The place of a run in its repository.
#[derive(Debug, Default)]
pub struct WorkFolder {
    /// The folder in which sessions work; `None`: the repository's top.
    pub folder: Option<Folder>,
    project: Option<ProjectFile>,
}

/// The project's settings that count.
#[derive(Debug)]
struct ProjectFile {
    /// Its folder; `None`: the repository's top.
    folder: Option<Folder>,
    /// The repository's top, on this machine.
    top: PathBuf,
    settings: ProjectSettings,
}

impl WorkFolder {
    /// The place of `start`, a folder in the repository; `at_root`: of the repository's top.
    ///
    /// # Errors
    /// When the folder cannot be named, or its `kage.toml` is wrong.
    pub fn find(repository: &UserRepo, start: &Path, at_root: bool) -> anyhow::Result<Self> {
        let root = repository.root();
        let start = std::fs::canonicalize(start).with_context(|| format!("cannot resolve {}", start.display()))?;
        let start = if at_root { root } else { start.as_path() };
        let mut nearest = start.ancestors().take_while(|above| above.starts_with(root));
        let project = nearest.find(|above| above.join(settings::PROJECT_FILE).symlink_metadata().is_ok());
        let project = project.map(|above| {
            Ok::<_, anyhow::Error>(ProjectFile {
                folder: folder_of(root, above)?,
                top: root.to_owned(),
                settings: settings::project(&above.join(settings::PROJECT_FILE))?,
            })
        });
        Ok(Self {
            folder: folder_of(root, start)?,
            project: project.transpose()?,
        })
    }

    /// The top of a repository with this file.
    #[cfg(test)]
    pub(crate) fn at_top(settings: ProjectSettings) -> Self {
        let (folder, top) = (None, PathBuf::new());
        Self {
            folder: None,
            project: Some(ProjectFile { folder, top, settings }),
        }
    }

    /// Tells where the work is done, and what was read.
    pub fn tell(&self) {
        if let Some(folder) = &self.folder {
            note(&format!(
                "working in {} (--root works at the top of the repository)",
                view::printable(folder.as_str())
            ));
        }
        if let Some(project) = &self.project {
            note(&project.shown());
        }
    }

    /// The checks of a run, from flags, the user's settings and `kage.toml`.
    ///
    /// # Errors
    /// When a path leads out of the repository.
    pub fn checks(&self, flags: &RunOptions, user: &RunOptions) -> Result<VerifyPolicy, Refusal> {
        let (setup, setup_folder) = self.command(flags, user, |run| &run.setup);
        let (verify, verify_folder) = self.command(flags, user, |run| &run.verify);
        let all = self.options(flags, user);
        let usual = VerifyPolicy::default();
        Ok(VerifyPolicy {
            setup,
            setup_folder,
            verify,
            verify_folder,
            protect: self.patterns(flags, user, |run| &run.protect)?,
            leave_named: all.no_protect.unwrap_or(usual.leave_named),
            check_verify: all.check_verify.unwrap_or(usual.check_verify),
            timeout: all.verify_timeout.unwrap_or(usual.timeout),
        })
    }

    /// What flags, the user's settings and `kage.toml` say together, whatever the folders that it counts
    /// from.
    #[must_use]
    pub fn options(&self, flags: &RunOptions, user: &RunOptions) -> RunOptions {
        let project = self.project().map(|project| project.run.clone());
        flags.clone().or(user.clone()).or(project.unwrap_or_default())
    }

    /// The command that prepares a session's worktree, and its folder: what is said for sessions,
    /// which may be nothing, or else the set-up command of verify.
    #[must_use]
    pub fn session_setup(&self, flags: &RunOptions, user: &RunOptions) -> (Option<String>, Option<Folder>) {
        let (said, folder) = self.command(flags, user, |run| &run.session_setup);
        let (command, folder) = match said {
            Some(said) => (Some(said), folder),
            None => self.command(flags, user, |run| &run.setup),
        };
        let command = command.filter(|command| !command.trim().is_empty());
        let folder = folder.filter(|_| command.is_some());
        (command, folder)
    }

    /// The command that counts, and the folder in which it runs.
    fn command(
        &self,
        flags: &RunOptions,
        user: &RunOptions,
        of: impl Fn(&RunOptions) -> &Option<String>,
    ) -> (Option<String>, Option<Folder>) {
        if let Some(typed) = of(flags).as_ref().or(of(user).as_ref()) {
            return (Some(typed.clone()), self.folder.clone());
        }
        let said = self.project.as_ref();
        let said = said.and_then(|file| Some((of(&file.settings.run).clone()?, file.folder.clone())));
        said.map_or((None, None), |(command, folder)| (Some(command), folder))
    }

    /// The patterns that count, as patterns from the repository's top.
    ///
    /// # Errors
    /// When one leads out of the repository.
    pub fn patterns(
        &self,
        flags: &RunOptions,
        user: &RunOptions,
        of: impl Fn(&RunOptions) -> &Vec<String>,
    ) -> Result<Vec<String>, Refusal> {
        let here = self.folder.as_ref();
        let typed = [of(flags), of(user)].into_iter().find(|paths| !paths.is_empty());
        match (typed, &self.project) {
            (Some(typed), _) => from_top(here, typed),
            (None, Some(file)) => from_top(file.folder.as_ref(), of(&file.settings.run)),
            (None, None) => Ok(Vec::new()),
        }
    }

    /// The files of contexts that count. Those of `kage.toml` are files of the repository: it comes with
    /// them, and does not say what else of this machine is sent.
    ///
    /// # Errors
    /// When a file of `kage.toml` is outside of the repository.
    pub fn contexts(&self, flags: &RunOptions, user: &RunOptions) -> Result<Vec<String>, Refusal> {
        let typed = [flags, user].into_iter().find(|run| !run.context.is_empty());
        match (typed, &self.project) {
            (Some(run), _) => Ok(run.context.clone()),
            (None, Some(file)) => file
                .settings
                .run
                .context
                .iter()
                .map(|entry| file.context(entry))
                .collect(),
            (None, None) => Ok(Vec::new()),
        }
    }

    /// The patterns of files that all sessions are told, from the repository's top: a person's own are written
    /// from there.
    ///
    /// # Errors
    /// When one of `kage.toml` leads out of the repository.
    pub fn context_files(&self, user: &ContextSettings) -> Result<Vec<String>, Refusal> {
        match &self.project {
            Some(file) if user.files.is_empty() => from_top(file.folder.as_ref(), &file.settings.context.files),
            Some(_) | None => from_top(None, &user.files),
        }
    }

    /// The path of the `kage.toml` that counts here, from the repository's top, and where it is.
    #[must_use]
    pub fn file(&self) -> Option<(PathBuf, PathBuf)> {
        let file = self.project.as_ref()?;
        let path = file.path();
        let place = file.top.join(&path);
        Some((path, place))
    }

    /// The project's settings that count here.
    #[must_use]
    pub fn project(&self) -> Option<&ProjectSettings> {
        self.project.as_ref().map(|file| &file.settings)
    }
}

impl ProjectFile {
    /// The entry of a context, `[ADAPTER=]FILE`, with the file's whole path.
    fn context(&self, entry: &str) -> Result<String, Refusal> {
        let (adapter, file) = entry.split_once('=').unwrap_or(("", entry));
        let folder = self.folder.as_ref().map_or("", Folder::as_str);
        let path = self.top.join(folder).join(file);
        let unusable = |why: &str| {
            Refusal::usage(format!(
                "the context {} of {} {why}",
                path.display(),
                settings::PROJECT_FILE
            ))
        };
        let found = std::fs::canonicalize(&path).map_err(|error| unusable(&format!("cannot be read: {error}")))?;
        if !found.starts_with(&self.top) {
            return Err(unusable("is not in the repository; name it with --context"));
        }
        let found = found.to_str().ok_or_else(|| unusable("has a path that is not UTF-8"))?;
        Ok(if adapter.is_empty() {
            found.to_owned()
        } else {
            format!("{adapter}={found}")
        })
    }

    fn shown(&self) -> String {
        // Checks first: they decide what a result is worth.
        const FIRST: [&str; 4] = ["setup", "session_setup", "verify", "protect"];
        let place = |key: &str| FIRST.iter().position(|first| *first == key).unwrap_or(FIRST.len());
        let mut said: Vec<_> = self.settings.said.iter().collect();
        said.sort_by_key(|(key, _)| place(key));
        let said = said
            .into_iter()
            .map(|(key, value)| format!("{key} {}", view::printable(value)));
        let mut said = said.collect::<Vec<_>>().join(", ");
        if said.is_empty() {
            said = "nothing".to_owned();
        }
        format!("{} says: {said}", view::printable(&self.path().to_string_lossy()))
    }

    /// From the repository's top.
    fn path(&self) -> PathBuf {
        let folder = self.folder.iter().map(Folder::as_str);
        folder.chain([settings::PROJECT_FILE]).collect()
    }
}

fn folder_of(root: &Path, path: &Path) -> anyhow::Result<Option<Folder>> {
    let unusable = || Refusal::usage(format!("sessions cannot work in {}; use --root", path.display()));
    let relative = path.strip_prefix(root).map_err(|_| unusable())?;
    if relative.as_os_str().is_empty() {
        return Ok(None);
    }
    let text = relative.to_str().ok_or_else(unusable)?;
    Ok(Some(text.parse().map_err(|_| unusable())?))
}

fn from_top(folder: Option<&Folder>, patterns: &[String]) -> Result<Vec<String>, Refusal> {
    let whole = |pattern: &String| {
        let refused = || Refusal::usage(format!("the path {pattern:?} leads out of the repository"));
        within(folder, pattern).ok_or_else(refused)
    };
    patterns.iter().map(whole).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    fn run(flags: &[&str]) -> RunOptions {
        let words = ["kage", "run", "x"];
        let parsed = Cli::try_parse_from(words.iter().chain(flags)).unwrap();
        match parsed.command {
            Command::Run(run) => run.options,
            other => panic!("{other:?}"),
        }
    }

    /// A repository in which somebody stands in `packages/web`, and `packages/kage.toml` has this.
    fn place(top: &Path, file: &str) -> WorkFolder {
        let packages = top.join("packages");
        std::fs::create_dir_all(packages.join("web")).unwrap();
        std::fs::write(packages.join("kage.toml"), file).unwrap();
        WorkFolder {
            folder: Some("packages/web".parse().unwrap()),
            project: Some(ProjectFile {
                folder: Some("packages".parse().unwrap()),
                top: top.to_owned(),
                settings: settings::project(&packages.join("kage.toml")).unwrap(),
            }),
        }
    }

    #[test]
    fn every_command_runs_where_it_was_written() {
        let top = tempfile::tempdir().unwrap();
        let file = "[run]\nverify = 'file'\nsetup = 'prepare'\nprotect = ['tests', '../ci']\ntimeout = 90\n";
        let place = place(top.path(), file);
        let (web, none) = (place.folder.clone(), RunOptions::default());
        let packages: Option<Folder> = Some("packages".parse().unwrap());
        let checks = place.checks(&run(&[]), &none).unwrap();
        assert_eq!(
            (checks.setup.as_deref(), &checks.setup_folder),
            (Some("prepare"), &packages)
        );
        assert_eq!(
            (checks.verify.as_deref(), &checks.verify_folder),
            (Some("file"), &packages)
        );
        assert_eq!(checks.protect, ["/packages/**/tests", "/ci"]);
        let prepares = |flags: &[&str]| place.session_setup(&run(flags), &none);
        assert_eq!(prepares(&[]), (Some("prepare".to_owned()), packages));
        assert_eq!(
            prepares(&["--session-setup", "own"]),
            (Some("own".to_owned()), web.clone())
        );
        assert_eq!(prepares(&["--session-setup", ""]), (None, None));

        let user = RunOptions {
            setup: Some("mine".to_owned()),
            ..RunOptions::default()
        };
        let flags = ["--verify", "typed", "--protect", "a/b"];
        let checks = place.checks(&run(&flags), &user).unwrap();
        assert_eq!((checks.setup.as_deref(), &checks.setup_folder), (Some("mine"), &web));
        assert_eq!((checks.verify.as_deref(), &checks.verify_folder), (Some("typed"), &web));
        assert_eq!(checks.protect, ["/packages/web/a/b"]);

        let out = place.checks(&run(&["--protect", "../../../x"]), &user).unwrap_err();
        assert!(out.message.contains("leads out of the repository"), "{}", out.message);
        let said = place.project.as_ref().unwrap().shown();
        assert_eq!(
            said,
            "packages/kage.toml says: setup `prepare`, verify `file`, protect tests, ../ci, timeout 90"
        );
    }

    #[test]
    fn a_project_sends_files_of_its_own_and_no_others() {
        let top = tempfile::tempdir().unwrap();
        let (repository, outside) = (top.path().join("repository"), top.path().join("secret.json"));
        std::fs::write(&outside, "{}").unwrap();
        let file = "[run]\ncontext = ['../all.json', 'codex=own.json']\n";
        let here = place(&repository, file);
        let path = |name: &str| repository.join(name).to_str().unwrap().to_owned();
        for name in ["all.json", "packages/own.json"] {
            std::fs::write(path(name), "{}").unwrap();
        }
        let none = RunOptions::default();
        let expected = [path("all.json"), format!("codex={}", path("packages/own.json"))];
        assert_eq!(here.contexts(&run(&[]), &none).unwrap(), expected);
        let typed = run(&["--context", "x.json"]);
        assert_eq!(here.contexts(&typed, &none).unwrap(), ["x.json"]);

        std::os::unix::fs::symlink(&outside, path("packages/link.json")).unwrap();
        for file in ["../../secret.json", "link.json", outside.to_str().unwrap()] {
            let here = place(&repository, &format!("[run]\ncontext = ['{file}']\n"));
            let refused = here.contexts(&run(&[]), &none).unwrap_err();
            assert!(refused.message.contains("not in the repository"), "{}", refused.message);
        }
    }
}

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
use kage_core::task::{ResultRules, VerifyPolicy};
use kage_git::UserRepo;

use crate::args::Run;
use crate::exit::Refusal;
use crate::output::note;
use crate::settings::{self, ProjectSettings, RunSettings};
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
                settings: settings::project(&above.join(settings::PROJECT_FILE))?,
            })
        });
        Ok(Self {
            folder: folder_of(root, start)?,
            project: project.transpose()?,
        })
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
    pub fn checks(&self, args: &Run, user: &RunSettings) -> Result<VerifyPolicy, Refusal> {
        let (setup, setup_folder) = self.command(&args.setup, &user.setup, |run| &run.setup);
        let (verify, verify_folder) = self.command(&args.verify, &user.verify, |run| &run.verify);
        let here = self.folder.as_ref();
        let of_project = self
            .project
            .as_ref()
            .map(|file| (&file.settings.run.protect, file.folder.as_ref()));
        let mut paths = [(&args.protect, here), (&user.protect, here)]
            .into_iter()
            .chain(of_project);
        let (protect, counted) = paths
            .find(|(paths, _)| !paths.is_empty())
            .unwrap_or((&args.protect, here));
        Ok(VerifyPolicy {
            setup,
            setup_folder,
            verify,
            verify_folder,
            protect: from_top(counted, protect)?,
            leave_named: args.no_protect,
            timeout: args.verify_timeout,
        })
    }

    /// The command that prepares a session's worktree, and its folder: what is said for sessions,
    /// which may be nothing, or else the set-up command of verify.
    #[must_use]
    pub fn session_setup(&self, args: &Run, user: &RunSettings) -> (Option<String>, Option<Folder>) {
        let (said, folder) = self.command(&args.session_setup, &user.session_setup, |run| &run.session_setup);
        let (command, folder) = match said {
            Some(said) => (Some(said), folder),
            None => self.command(&args.setup, &user.setup, |run| &run.setup),
        };
        let command = command.filter(|command| !command.trim().is_empty());
        let folder = folder.filter(|_| command.is_some());
        (command, folder)
    }

    /// The command that counts, and the folder in which it runs.
    fn command(
        &self,
        flag: &Option<String>,
        user: &Option<String>,
        of_project: impl Fn(&RunSettings) -> &Option<String>,
    ) -> (Option<String>, Option<Folder>) {
        if let Some(typed) = flag.as_ref().or(user.as_ref()) {
            return (Some(typed.clone()), self.folder.clone());
        }
        let Some(file) = &self.project else {
            return (None, None);
        };
        match of_project(&file.settings.run) {
            Some(command) => (Some(command.clone()), file.folder.clone()),
            None => (None, None),
        }
    }

    /// Patterns that were typed here, as patterns from the repository's top.
    ///
    /// # Errors
    /// When one leads out of the repository.
    pub fn patterns(&self, typed: &[String]) -> Result<Vec<String>, Refusal> {
        from_top(self.folder.as_ref(), typed)
    }

    /// The project's settings that count here.
    #[must_use]
    pub fn project(&self) -> Option<&ProjectSettings> {
        self.project.as_ref().map(|file| &file.settings)
    }

    /// What becomes a part of results: limits from flags, the user's settings and `kage.toml`, and what
    /// the person's git ignores.
    #[must_use]
    pub fn results(&self, args: &Run, user: &RunSettings, excludes: String) -> ResultRules {
        let usual = ResultRules::default();
        let nothing = RunSettings::default();
        let project = self.project().map_or(&nothing, |project| &project.run);
        let chosen = |flag: Option<u64>, of: fn(&RunSettings) -> Option<u64>| flag.or(of(user)).or(of(project));
        let bytes = |mib: Option<u64>, usual: u64| mib.map_or(usual, |mib| mib.saturating_mul(1 << 20));
        ResultRules {
            excludes,
            max_file_bytes: bytes(chosen(args.max_file, |run| run.max_file_mib), usual.max_file_bytes),
            max_new_bytes: bytes(chosen(args.max_new, |run| run.max_new_mib), usual.max_new_bytes),
            max_new_files: chosen(args.max_new_files, |run| run.max_new_files).unwrap_or(usual.max_new_files),
        }
    }

    /// How often a session is sent back, as far as the project says it.
    #[must_use]
    pub fn rework(&self) -> Option<u32> {
        self.project()?.run.rework
    }
}

impl ProjectFile {
    fn shown(&self) -> String {
        let run = &self.settings.run;
        let mut said = Vec::new();
        let commands = [
            ("setup", &run.setup),
            ("session_setup", &run.session_setup),
            ("verify", &run.verify),
        ];
        for (key, text) in commands {
            said.extend(text.as_ref().map(|text| format!("{key} `{}`", view::printable(text))));
        }
        said.extend((!run.protect.is_empty()).then(|| format!("protect {}", view::printable(&run.protect.join(", ")))));
        said.extend(run.rework.map(|times| format!("rework {times}")));
        let limits = [
            ("max_file_mib", run.max_file_mib),
            ("max_new_mib", run.max_new_mib),
            ("max_new_files", run.max_new_files),
        ];
        said.extend(
            limits
                .iter()
                .filter_map(|(key, limit)| Some(format!("{key} {}", (*limit)?))),
        );
        let said = if said.is_empty() {
            "nothing".to_owned()
        } else {
            said.join(", ")
        };
        let path: PathBuf = self
            .folder
            .iter()
            .map(Folder::as_str)
            .chain([settings::PROJECT_FILE])
            .collect();
        format!("{} says: {said}", view::printable(&path.to_string_lossy()))
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

    fn run(flags: &[&str]) -> Run {
        let words = ["kage", "run", "x", "--with", "a"];
        let parsed = Cli::try_parse_from(words.iter().chain(flags)).unwrap();
        match parsed.command {
            Command::Run(run) => run,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_command_runs_where_it_was_written() {
        let web: Option<Folder> = Some("packages/web".parse().unwrap());
        let place = WorkFolder {
            folder: web.clone(),
            project: Some(ProjectFile {
                folder: Some("packages".parse().unwrap()),
                settings: ProjectSettings {
                    run: RunSettings {
                        verify: Some("file".to_owned()),
                        setup: Some("prepare".to_owned()),
                        session_setup: None,
                        protect: vec!["tests".to_owned(), "../ci".to_owned()],
                        ..RunSettings::default()
                    },
                    ..ProjectSettings::default()
                },
            }),
        };
        let packages: Option<Folder> = Some("packages".parse().unwrap());
        let checks = place.checks(&run(&[]), &RunSettings::default()).unwrap();
        assert_eq!(
            (checks.setup.as_deref(), &checks.setup_folder),
            (Some("prepare"), &packages)
        );
        assert_eq!(
            (checks.verify.as_deref(), &checks.verify_folder),
            (Some("file"), &packages)
        );
        assert_eq!(checks.protect, ["/packages/**/tests", "/ci"]);
        let prepares = |flags: &[&str]| place.session_setup(&run(flags), &RunSettings::default());
        assert_eq!(prepares(&[]), (Some("prepare".to_owned()), packages));
        assert_eq!(
            prepares(&["--session-setup", "own"]),
            (Some("own".to_owned()), web.clone())
        );
        assert_eq!(prepares(&["--session-setup", ""]), (None, None));

        let user = RunSettings {
            setup: Some("mine".to_owned()),
            ..RunSettings::default()
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
            "packages/kage.toml says: setup `prepare`, verify `file`, protect tests, ../ci"
        );
    }
}

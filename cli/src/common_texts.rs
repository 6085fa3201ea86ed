//! What all sessions of a task are told besides its prompt, unless their contexts say otherwise: how results are
//! checked, and files of the repository that `[context] files` names. So sessions share a base without any file
//! of contexts. What only sessions of APIs are told is the business of `instructions`.

use std::path::Path;

use anyhow::Context as _;
use kage_core::context::Context;
use kage_core::pattern::Patterns;
use kage_core::task::VerifyPolicy;
use kage_git::UserRepo;

use crate::exit::Refusal;
use crate::output::note;

/// The name of the field that says how results are checked.
pub(crate) const VERIFY: &str = "verify";

/// Texts, by the names of their fields.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct CommonTexts(Vec<(String, String)>);

impl CommonTexts {
    /// Tells how a result is checked, if it is.
    pub(crate) fn tell_checks(&mut self, checks: &VerifyPolicy) {
        let Some(command) = &checks.verify else { return };
        let place = match &checks.verify_folder {
            None => String::new(),
            Some(folder) => format!(" in its folder {folder}"),
        };
        let text = format!("A result counts when this command passes in a clean checkout of it{place}:\n\n{command}");
        self.0.push((VERIFY.to_owned(), text));
    }

    /// Tells what files of a repository say that these patterns, from its top, match: those that git knows and
    /// new ones that it does not ignore.
    ///
    /// # Errors
    /// When a pattern is none, or a file is larger than `most` bytes, no text, or leads out of the repository.
    pub(crate) async fn tell_files(
        &mut self,
        repository: &UserRepo,
        patterns: &[String],
        most: u64,
    ) -> anyhow::Result<()> {
        if patterns.is_empty() {
            return Ok(());
        }
        for pattern in patterns {
            let matching = Patterns::new(std::slice::from_ref(pattern))
                .map_err(|wrong| Refusal::usage(format!("files in [context]: {:#}", anyhow::Error::from(wrong))))?;
            let mut found = false;
            for path in repository.files().await?.iter().filter(|path| matching.matches(path)) {
                found = true;
                self.tell_file(repository.root(), path, most)?;
            }
            if !found {
                note(&format!("no file here is named by {pattern:?} of files in [context]"));
            }
        }
        Ok(())
    }

    fn tell_file(&mut self, root: &Path, path: &Path, most: u64) -> anyhow::Result<()> {
        let refused = |why: &str| Refusal::usage(format!("{} of files in [context] {why}", path.display()));
        let name = path.to_str().ok_or_else(|| refused("has a name that is no text"))?;
        if self.0.iter().any(|(known, _)| known == name) {
            return Ok(());
        }
        let file = root.join(path);
        // One that git knows may have been deleted.
        if !file.try_exists().unwrap_or(false) {
            return Ok(());
        }
        let real = std::fs::canonicalize(&file).with_context(|| format!("cannot read {}", file.display()))?;
        if !real.starts_with(std::fs::canonicalize(root)?) || !real.is_file() {
            return Err(refused("is no file of this repository").into());
        }
        let bytes = std::fs::metadata(&real)?.len();
        if bytes > most {
            let why = format!("has {bytes} bytes; the limit is {most} (`file_max_kib` in [context])");
            return Err(refused(&why).into());
        }
        let text = std::fs::read_to_string(&real).map_err(|error| refused(&format!("cannot be read: {error}")))?;
        self.0.push((name.to_owned(), text));
        Ok(())
    }

    /// A context with these texts. One that has a field of such a name keeps it.
    #[must_use]
    pub(crate) fn within(&self, context: &Context) -> Context {
        context.with_texts(self.0.iter().map(|(name, text)| (name.as_str(), text.as_str())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_how_a_result_is_checked_once_and_a_context_has_its_own_words() {
        let mut texts = CommonTexts::default();
        texts.tell_checks(&VerifyPolicy::default());
        assert_eq!(texts, CommonTexts::default());
        texts.tell_checks(&VerifyPolicy {
            verify: Some("make test".to_owned()),
            verify_folder: Some("app".parse().unwrap()),
            ..VerifyPolicy::default()
        });
        let told = texts.within(&Context::default()).canonical();
        assert!(
            told.contains("clean checkout of it in its folder app:\\n\\nmake test"),
            "{told}"
        );
        let own = Context::parse(br#"{"verify":"never"}"#).unwrap();
        assert_eq!(texts.within(&own), own);
    }

    async fn repository(root: &Path) -> UserRepo {
        std::fs::create_dir_all(root.join("docs/deep")).unwrap();
        for (path, text) in [
            ("docs/a.md", "a"),
            ("gone.md", "e"),
            (".gitignore", "docs/ignored.md\n"),
        ] {
            std::fs::write(root.join(path), text).unwrap();
        }
        kage_git::creation::create(root, "base").await.unwrap();
        std::fs::remove_file(root.join("gone.md")).unwrap();
        for (path, text) in [("docs/deep/b.md", "b"), ("docs/ignored.md", "c"), ("other.md", "d")] {
            std::fs::write(root.join(path), text).unwrap();
        }
        UserRepo::discover(root).await.unwrap()
    }

    #[tokio::test]
    async fn files_are_named_by_patterns_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let repository = repository(dir.path()).await;
        let told = async |patterns: &[&str], most| {
            let patterns: Vec<String> = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
            let mut texts = CommonTexts::default();
            texts.tell_files(&repository, &patterns, most).await.map(|()| texts)
        };
        let names = |texts: &CommonTexts| texts.0.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        let docs = told(&["docs/*.md", "docs", "gone.md", "none"], 10).await.unwrap();
        assert_eq!(names(&docs), ["docs/a.md", "docs/deep/b.md"]);
        assert_eq!(docs.0[0].1, "a");
        let small = told(&["other.md"], 0).await.unwrap_err().to_string();
        assert!(small.contains("file_max_kib"), "{small}");
        std::fs::write(dir.path().join("binary.md"), [0xff, 0xfe]).unwrap();
        assert!(told(&["binary.md"], 10).await.is_err());
        std::os::unix::fs::symlink("/etc/hostname", dir.path().join("away.md")).unwrap();
        let away = told(&["away.md"], 1 << 20).await.unwrap_err().to_string();
        assert!(away.contains("no file of this repository"), "{away}");
        assert!(told(&["[a"], 10).await.is_err());
    }
}

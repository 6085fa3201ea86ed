//! Tells what of a worktree is not taken into checkpoints and the result: each file once, in words
//! that say what to do about it.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::{Discriminant, discriminant};
use std::sync::{Mutex, PoisonError};

use kage_core::left_out::{LeftOut, LeftOutReason, in_units};
use kage_core::task::ResultRules;
use kage_git::FileWithSecret;

/// How many files one warning names.
const NAMED: usize = 10;

/// What was told so far.
#[derive(Debug, Default)]
pub(crate) struct ToldFiles {
    left_out: Mutex<BTreeMap<String, Discriminant<LeftOutReason>>>,
    with_secrets: Mutex<BTreeSet<FileWithSecret>>,
}

impl ToldFiles {
    /// Warnings about the files that were not told before, one for each reason.
    pub(crate) fn news(&self, left_out: Vec<LeftOut>, rules: &ResultRules) -> Vec<String> {
        let mut told = self.left_out.lock().unwrap_or_else(PoisonError::into_inner);
        let mut news: Vec<(LeftOutReason, BTreeSet<String>)> = Vec::new();
        for LeftOut { path, reason } in left_out {
            // A file that only grew is the same news.
            let kind = discriminant(&reason);
            if told.insert(path.clone(), kind) == Some(kind) {
                continue;
            }
            let name = if let LeftOutReason::Large { size } = reason {
                format!("{path} ({})", in_units(size))
            } else {
                path
            };
            match news.iter_mut().find(|(other, _)| discriminant(other) == kind) {
                Some((_, names)) => drop(names.insert(name)),
                None => news.push((reason, BTreeSet::from([name]))),
            }
        }
        let told = news.iter().map(|(reason, names)| warning(*reason, names, rules));
        told.collect()
    }

    /// A warning about the files with secrets that were not told before, if there are any.
    pub(crate) fn with_secrets(&self, held: &[FileWithSecret]) -> Option<String> {
        let mut told = self.with_secrets.lock().unwrap_or_else(PoisonError::into_inner);
        let news: Vec<_> = held
            .iter()
            .filter(|file| told.insert((*file).clone()))
            .cloned()
            .collect();
        (!news.is_empty()).then(|| {
            format!(
                "not in checkpoints, and a result with it is not sent, because it has a secret: {}; read it from the \
                 environment instead, or ignore the file (.gitignore)",
                listed(&news)
            )
        })
    }
}

/// Files with secrets, as people are told of them: "secret of KEY in config/.env".
pub(super) fn listed(files: &[FileWithSecret]) -> String {
    let files: BTreeSet<&FileWithSecret> = files.iter().collect();
    let named: Vec<String> = files
        .iter()
        .take(NAMED)
        .map(|file| format!("secret of {} in {}", file.secrets.join(" and "), file.path))
        .collect();
    let mut list = named.join(", ");
    if files.len() > NAMED {
        list += &format!(" and {} more", files.len() - NAMED);
    }
    list
}

fn warning(reason: LeftOutReason, names: &BTreeSet<String>, rules: &ResultRules) -> String {
    let named: Vec<&str> = names.iter().take(NAMED).map(String::as_str).collect();
    let mut list = named.join(", ");
    if names.len() > NAMED {
        list += &format!(" and {} more", names.len() - NAMED);
    }
    let most = in_units(rules.max_file_bytes);
    match reason {
        LeftOutReason::Large { .. } => format!(
            "not in checkpoints nor in the result, because a file may have {most} at most: {list}; --max-file-mib N, or \
             max_file_mib in kage.toml, raises the limit"
        ),
        LeftOutReason::Unreadable => format!(
            "not in checkpoints nor in the result as it is now, because its permissions do not allow to read it: {list}"
        ),
        LeftOutReason::Name => {
            format!("not in checkpoints nor in the result, because git stores no file of that name: {list}")
        }
        LeftOutReason::LongPath => {
            format!("not in checkpoints nor in the result, because the path is too long or too deep: {list}")
        }
        LeftOutReason::NotAFile => {
            format!("not in checkpoints nor in the result, because pipes, sockets and devices cannot be: {list}")
        }
        LeftOutReason::NestedHistory => {
            format!("a repository of its own, whose files are taken and whose history is not: {list}")
        }
        LeftOutReason::SecretName | LeftOutReason::NestedRepository | LeftOutReason::Link => {
            format!(
                "not in checkpoints nor in the result, because {}: {list}",
                reason.words()
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_file_is_told_once_and_those_of_a_kind_together() {
        let told = ToldFiles::default();
        let rules = ResultRules::default();
        let left_out = |path: &str, reason| LeftOut {
            path: path.to_owned(),
            reason,
        };
        let core = |size| left_out("core", LeftOutReason::Large { size });
        let news = |files| told.news(files, &rules);
        assert_eq!(
            news(vec![core(50_000_000), left_out("a\\nb", LeftOutReason::Unreadable)]),
            [
                "not in checkpoints nor in the result, because a file may have 26.2 MB at most: core (50.0 MB); \
                 --max-file-mib N, or max_file_mib in kage.toml, raises the limit",
                "not in checkpoints nor in the result as it is now, because its permissions do not allow to read it: \
                 a\\nb",
            ]
        );
        assert_eq!(news(vec![core(60_000_000)]), Vec::<String>::new(), "it only grew");
        assert_eq!(news(vec![left_out("core", LeftOutReason::Unreadable)]).len(), 1);
        let many: Vec<_> = (10..25)
            .map(|n| left_out(&format!("p{n}"), LeftOutReason::NotAFile))
            .collect();
        let many = news(many);
        assert!(
            many[0].ends_with("p10, p11, p12, p13, p14, p15, p16, p17, p18, p19 and 5 more"),
            "{many:?}"
        );
    }

    #[test]
    fn a_file_with_a_secret_is_told_once_by_the_names_of_its_secrets() {
        let told = ToldFiles::default();
        let file = |path: &str, secrets: &[&str]| FileWithSecret {
            path: path.to_owned(),
            secrets: secrets.iter().map(|name| (*name).to_owned()).collect(),
        };
        let first = [file("config/.env", &["A_KEY"]), file("log", &["A_KEY", "B_KEY"])];
        assert_eq!(
            told.with_secrets(&first).unwrap(),
            "not in checkpoints, and a result with it is not sent, because it has a secret: secret of A_KEY in \
             config/.env, secret of A_KEY and B_KEY in log; read it from the environment instead, or ignore the file \
             (.gitignore)"
        );
        assert_eq!(told.with_secrets(&first), None);
        assert!(told.with_secrets(&[file("log", &["A_KEY"])]).is_some());
    }
}

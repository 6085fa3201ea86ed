//! The paths that `kage apply --path` is limited to: from where they were typed, held against what the
//! result changes. No input and output.

use std::path::{Component, Path, PathBuf};

use crate::exit::Refusal;
use crate::view;

/// Most paths that are named instead of one that is not in the result.
const NEAR: usize = 3;

/// A file that a result changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ChangedPath {
    pub(crate) path: PathBuf,
    /// Of a renamed one: where it was.
    pub(crate) old_path: Option<PathBuf>,
}

/// A path as it was typed in the folder `here`, from the top of the repository. Outside of the repository
/// paths count from its top.
pub(crate) fn from_top(root: &Path, here: &Path, typed: &Path) -> Result<PathBuf, Refusal> {
    let start = if here.starts_with(root) { here } else { root };
    let mut full = PathBuf::new();
    for part in start.join(typed).components() {
        match part {
            Component::ParentDir => {
                full.pop();
            }
            Component::CurDir => {}
            Component::Prefix(_) | Component::RootDir | Component::Normal(_) => full.push(part),
        }
    }
    let outside = || {
        let (typed, root) = (view::printable(&typed.to_string_lossy()), root.display());
        Refusal::usage(format!("--path {typed} is outside of the repository {root}"))
    };
    full.strip_prefix(root).map(Path::to_owned).map_err(|_| outside())
}

/// Whether a path is one of the wanted, or in one of them.
fn is_in(path: &Path, wanted: &[PathBuf]) -> bool {
    wanted.iter().any(|it| path.starts_with(it))
}

/// The wanted paths that no changed file is or is in.
pub(crate) fn missing<'a>(wanted: &'a [PathBuf], changed: &[ChangedPath]) -> Vec<&'a PathBuf> {
    let all = || {
        changed
            .iter()
            .flat_map(|it| [Some(&it.path), it.old_path.as_ref()])
            .flatten()
    };
    wanted
        .iter()
        .filter(|it| !all().any(|path| path.starts_with(it)))
        .collect()
}

/// Changed paths that somebody may have meant, the likeliest first.
pub(crate) fn near<'a>(wanted: &Path, changed: &'a [ChangedPath]) -> Vec<&'a Path> {
    let typed = wanted.to_string_lossy();
    let score = |path: &Path| {
        let same_name = path.file_name().is_some() && path.file_name() == wanted.file_name();
        let part = path.to_string_lossy().contains(typed.as_ref());
        match same_name || part {
            true => 2.0,
            false => strsim::jaro_winkler(&typed, &path.to_string_lossy()),
        }
    };
    let mut scored: Vec<(f64, &Path)> = changed
        .iter()
        .map(|it| (score(&it.path), it.path.as_path()))
        .filter(|(score, _)| *score > 0.7)
        .collect();
    scored.sort_by(|one, other| other.0.total_cmp(&one.0).then(one.1.cmp(other.1)));
    scored.into_iter().take(NEAR).map(|(_, path)| path).collect()
}

/// Renamed files of which only one of the two names is wanted, in a sentence each.
pub(crate) fn half_renames(wanted: &[PathBuf], changed: &[ChangedPath]) -> Vec<String> {
    let sentence = |it: &ChangedPath| {
        let old = it.old_path.as_ref()?;
        let shown = |path: &Path| view::printable(&path.to_string_lossy());
        let (from, to) = (shown(old), shown(&it.path));
        match (is_in(old, wanted), is_in(&it.path, wanted)) {
            (true, false) => Some(format!(
                "the result renamed {from} to {to}, which is not in --path: {from} goes, and {to} does not come"
            )),
            (false, true) => Some(format!(
                "the result renamed {from}, which is not in --path, to {to}: {to} comes, and {from} stays"
            )),
            (true, true) | (false, false) => None,
        }
    };
    changed.iter().filter_map(sentence).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(path: &str, old: Option<&str>) -> ChangedPath {
        ChangedPath {
            path: path.into(),
            old_path: old.map(PathBuf::from),
        }
    }

    #[test]
    fn a_path_counts_from_where_it_was_typed() {
        let of = |here: &str, typed: &str| from_top(Path::new("/r"), Path::new(here), Path::new(typed)).ok();
        assert_eq!(of("/r/src", "a"), Some("src/a".into()));
        assert_eq!(of("/r/src", "../doc/./b/"), Some("doc/b".into()));
        assert_eq!(of("/r/src", "."), Some("src".into()));
        assert_eq!(of("/r", "."), Some("".into()));
        assert_eq!(of("/elsewhere", "src"), Some("src".into()));
        assert_eq!(of("/r", "/r/x"), Some("x".into()));
        assert_eq!(of("/r", ".."), None);
        assert_eq!(of("/r", "/other"), None);
    }

    #[test]
    fn what_is_not_in_the_result_is_named_with_what_is() {
        let all = [
            changed("src/parser.rs", None),
            changed("src/lexer.rs", None),
            changed("README.md", Some("docs/README.md")),
        ];
        let wanted: Vec<PathBuf> = ["src", "src/parse.rs", "docs", "lexer.rs", "zzz"]
            .map(PathBuf::from)
            .into();
        let gone: Vec<_> = missing(&wanted, &all)
            .into_iter()
            .map(|it| it.to_str().unwrap())
            .collect();
        assert_eq!(gone, ["src/parse.rs", "lexer.rs", "zzz"]);
        let first = |typed: &str| near(Path::new(typed), &all).first().map(|it| it.to_str().unwrap());
        assert_eq!(first("src/parse.rs"), Some("src/parser.rs"));
        assert_eq!(first("lexer.rs"), Some("src/lexer.rs"));
        assert_eq!(first("zzz"), None);
    }

    #[test]
    fn half_a_rename_is_explained() {
        let all = [changed("new/a", Some("old/a")), changed("b", None)];
        let of = |wanted: &str| half_renames(&[wanted.into()], &all);
        assert!(of("new")[0].ends_with("new/a comes, and old/a stays"));
        assert!(of("old/a")[0].ends_with("old/a goes, and new/a does not come"));
        assert_eq!(of("b"), Vec::<String>::new());
        assert_eq!(half_renames(&["new".into(), "old".into()], &all), Vec::<String>::new());
    }
}

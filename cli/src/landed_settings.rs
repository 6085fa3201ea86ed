//! Which `kage.toml` are the work of a session: the ids of those that results have changed, kept in a file
//! as long as the state folder. A run takes its checks from such a file, so it says whose words they are.
//! By content and not by path: a landed file may be committed, merged and moved before the next run.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use kage_core::id::Oid;
use kage_git::diff;

use crate::output::note;
use crate::settings::PROJECT_FILE;
use crate::state::StateDir;
use crate::view;
use crate::work_folder::WorkFolder;

/// Whose result it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SettingsOf<'a> {
    pub(crate) task: &'a str,
    pub(crate) session: &'a str,
}

/// Remembers the project's settings that this result adds or changes. Results that are only looked at
/// are remembered too: nothing tells whether a person lands them by other means.
///
/// # Errors
/// When the difference cannot be read, or the file cannot be written.
pub(crate) async fn remember(
    state: &StateDir,
    mirror: &Path,
    base: &Oid,
    commit: &Oid,
    of: SettingsOf<'_>,
) -> anyhow::Result<()> {
    let (mirror, base, commit) = (mirror.to_owned(), base.clone(), commit.clone());
    let changes = tokio::task::spawn_blocking(move || diff::paths(&mirror, &base, &commit)).await??;
    let is_settings = |path: &[u8]| path.rsplit(|byte| *byte == b'/').next() == Some(PROJECT_FILE.as_bytes());
    let changed = changes.into_iter().filter(|change| is_settings(&change.path));
    let ids: Vec<Oid> = changed.filter_map(|change| Some(change.after?.id)).collect();
    if ids.is_empty() {
        return Ok(());
    }
    let path = state.settings_of_results();
    let known = read(&path);
    let lines: BTreeSet<String> = ids
        .iter()
        .filter(|id| whose(&known, id).is_none())
        .map(|id| format!("{id}\t{}\t{}\n", of.task, of.session))
        .collect();
    let write = || {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(&path)?;
        file.write_all(lines.into_iter().collect::<String>().as_bytes())
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Says whose words the project's settings are, when a result has made them.
pub(crate) fn tell(state: &StateDir, place: &WorkFolder) {
    let Some((path, file)) = place.file() else { return };
    // It was read a moment ago.
    let Ok(content) = std::fs::read(file) else { return };
    let known = read(&state.settings_of_results());
    let id = diff::file_id(&content);
    if let Some((task, session)) = id.ok().as_ref().and_then(|id| whose(&known, id)) {
        note(&format!(
            "{path} is as the session {session} of task {task} made it, so these are its words: look at setup and \
             verify before you trust a verdict, or say --setup and --verify yourself",
            path = view::printable(&path.to_string_lossy()),
            session = view::printable(session),
            task = view::short_id(task),
        ));
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Task and session of the first result with this file.
fn whose<'a>(known: &'a str, id: &Oid) -> Option<(&'a str, &'a str)> {
    known.lines().find_map(|line| {
        let (task, session) = line.strip_prefix(id.as_str())?.strip_prefix('\t')?.split_once('\t')?;
        Some((task, session))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_result_with_a_file_is_named() {
        let oid = |digit: &str| digit.repeat(40).parse::<Oid>().unwrap();
        let known = format!("{}\tt1\tcheat\ndamaged\n{}\tt2\tother\n", oid("a"), oid("b"));
        assert_eq!(whose(&known, &oid("a")), Some(("t1", "cheat")));
        assert_eq!(whose(&known, &oid("b")), Some(("t2", "other")));
        assert_eq!(whose(&known, &oid("c")), None);
        assert_eq!(whose("", &oid("a")), None);
    }
}

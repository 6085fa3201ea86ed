//! Tells this machine from all others, so that a folder of the same path on another machine is a
//! different one. The id is only used inside a digest.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use kage_git::private::make_private;

use crate::state::StateDir;

/// The files in which systemd and D-Bus keep an id. Many containers and some systems have none.
const SYSTEM_IDS: [&str; 2] = ["/etc/machine-id", "/var/lib/dbus/machine-id"];

/// The id of this machine: the system's, or else one in the state folder. The host name, which may
/// change, only when no state can be stored.
pub(crate) fn id(state: &StateDir) -> String {
    id_of(&SYSTEM_IDS.map(Path::new), state)
}

fn id_of(kept: &[&Path], state: &StateDir) -> String {
    let mut ids = kept.iter().filter_map(|path| read(path));
    ids.next().unwrap_or_else(|| {
        own(state).unwrap_or_else(|_| rustix::system::uname().nodename().to_string_lossy().into_owned())
    })
}

/// Atomic: two commands that create an id at once both use the same one.
fn own(state: &StateDir) -> io::Result<String> {
    let path = state.machine_id();
    if let Some(id) = read(&path) {
        return Ok(id);
    }
    make_private(state.path())?;
    let mut drawn = tempfile::NamedTempFile::new_in(state.path())?;
    writeln!(drawn, "{:032x}", rand::random::<u128>())?;
    drawn.as_file().sync_all()?;
    match drawn.persist_noclobber(&path) {
        Err(error) if error.error.kind() != io::ErrorKind::AlreadyExists => return Err(error.error),
        Ok(_) | Err(_) => {}
    }
    read(&path).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn read(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|id| !id.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_an_id_of_the_system_keeps_one_of_its_own() {
        let place = tempfile::tempdir().unwrap();
        let state = |name: &str| StateDir::resolve(Some(&place.path().join(name))).unwrap();
        let (empty, kept) = (place.path().join("empty"), place.path().join("kept"));
        fs::write(&empty, "\n").unwrap();
        fs::write(&kept, "the system's\n").unwrap();
        let none = [Path::new("/nonexistent"), empty.as_path()];
        let drawn = id_of(&none, &state("one"));
        assert_eq!(drawn.len(), 32);
        assert_eq!(id_of(&none, &state("one")), drawn);
        assert_ne!(id_of(&none, &state("two")), drawn);
        assert_eq!(id_of(&[none[0], kept.as_path()], &state("one")), "the system's");
        // Where nothing can be kept there is still an answer.
        let nowhere = StateDir::resolve(Some(&empty.join("state"))).unwrap();
        assert_eq!(id_of(&none, &nowhere), id_of(&none, &nowhere));
    }
}

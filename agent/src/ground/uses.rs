//! Who works with what is kept for several: a mirror, a base context. Whoever does holds a
//! lock for reading, and only what nobody holds is collected or removed.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::RwLock;

/// The locks, by what they are of. Cloning shares them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Uses(Arc<Mutex<HashMap<PathBuf, Arc<RwLock<()>>>>>);

impl Uses {
    /// The lock of what is at `path`: to work with it is to read, to collect to write.
    pub(crate) fn of(&self, path: &Path) -> Arc<RwLock<()>> {
        // A panic while holding it cannot leave the map half-changed.
        let mut uses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Guards share their lock; one that nobody else shares is held by nobody.
        uses.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(uses.entry(path.to_owned()).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_used_stays_locked_and_the_rest_is_forgotten() {
        let uses = Uses::default();
        let (a, b) = (Path::new("a"), Path::new("b"));
        let in_use = uses.of(a).read_owned().await;
        drop(uses.of(b).write_owned().await);
        assert!(uses.of(a).try_write_owned().is_err());
        drop(in_use);
        assert!(uses.of(a).try_write_owned().is_ok());
        drop(uses.of(b));
        assert_eq!(uses.0.lock().unwrap().len(), 1);
    }
}

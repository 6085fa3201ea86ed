//! Who uses a shared mirror or base context. A user holds its lock for reading; only what nobody
//! holds is collected or removed.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::RwLock;

/// The locks, by path. Cloning shares them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Uses(Arc<Mutex<HashMap<PathBuf, Arc<RwLock<()>>>>>);

impl Uses {
    /// The lock for `path`: readers work with it, a writer collects or removes it.
    pub(crate) fn of(&self, path: &Path) -> Arc<RwLock<()>> {
        // A panic while the lock is held cannot leave the map half-changed.
        let mut uses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Guards share their lock; a lock without another owner is not held.
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

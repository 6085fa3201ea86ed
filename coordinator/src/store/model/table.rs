//! Rows by key, with an undo log: the writes of a command are kept or undone together.

use std::collections::BTreeMap;

use crate::store::error::StoreError;
use crate::store::rows::Failed;

/// Rows by key, and the undo log of the present command.
#[derive(Debug)]
pub(super) struct Table<K, V> {
    pub(super) rows: BTreeMap<K, V>,
    undo: Vec<(K, Option<V>)>,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self {
            rows: BTreeMap::new(),
            undo: Vec::new(),
        }
    }
}

impl<K: Ord + Clone, V> Table<K, V> {
    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.rows.get(key)
    }

    pub(super) fn put(&mut self, key: K, value: V) {
        let old = self.rows.insert(key.clone(), value);
        self.undo.push((key, old));
    }

    pub(super) fn insert(&mut self, key: K, value: V, what: &'static str) -> Result<(), Failed> {
        if self.rows.contains_key(&key) {
            return Err(Failed::Refused(StoreError::IdTaken { what }));
        }
        self.put(key, value);
        Ok(())
    }

    pub(super) fn remove(&mut self, key: &K) {
        if let Some(old) = self.rows.remove(key) {
            self.undo.push((key.clone(), Some(old)));
        }
    }

    pub(super) fn remove_where(&mut self, fits: impl Fn(&K, &V) -> bool) {
        let found = self.rows.iter().filter(|(key, value)| fits(key, value));
        let keys: Vec<K> = found.map(|(key, _)| key.clone()).collect();
        for key in keys {
            self.remove(&key);
        }
    }

    pub(super) fn keep(&mut self) {
        self.undo.clear();
    }

    pub(super) fn take_back(&mut self) {
        for (key, old) in self.undo.drain(..).rev() {
            match old {
                Some(value) => {
                    self.rows.insert(key, value);
                }
                None => {
                    self.rows.remove(&key);
                }
            }
        }
    }
}

//! Which files a scan holds back because they have a secret, and what the base has in their place.

use std::path::Path;

use super::Scan;
use crate::error::GitError;
use crate::known::KnownEntry;
use crate::left_out::entry_in;
use crate::objects::mode;
use crate::secrets::{FoundSecrets, bytes_of};

impl Scan<'_> {
    /// Whether the path itself has a secret and is not the base's.
    pub(super) fn has_secret_name(&mut self, path: &Path) -> bool {
        let mut found = self.secrets.in_bytes(bytes_of(path));
        if !found.is_empty() {
            found = found.without(&self.objects.secrets_in(self.base, self.secrets));
        }
        if found.is_empty() || entry_in(self.objects.repository(), self.base, path).is_some() {
            return false;
        }
        let file = self.secrets.file(bytes_of(path), &found);
        self.not_taken.hold(path, file);
        true
    }

    /// Whether a file with these secrets is held back. What the base has, at its path or elsewhere, is the
    /// person's own, and may stay.
    pub(super) fn holds(&mut self, path: &Path, found: &FoundSecrets) -> Result<Held, GitError> {
        if found.is_empty() {
            return Ok(Held::No);
        }
        let before = entry_in(self.objects.repository(), self.base, path);
        let before = before.filter(|(mode, _)| *mode != mode::SUBMODULE && *mode != mode::FOLDER);
        let new = match before {
            Some((_, id)) => found.without(&self.objects.search(id, self.secrets)?),
            None => found.clone(),
        };
        let new = match new.is_empty() {
            true => new,
            false => new.without(&self.objects.secrets_in(self.base, self.secrets)),
        };
        if new.is_empty() {
            return Ok(Held::No);
        }
        let file = self.secrets.file(bytes_of(path), &new);
        self.not_taken.hold(path, file);
        Ok(Held::Yes(before.map(|(mode, id)| KnownEntry::new(mode, id))))
    }
}

/// Whether a file is held back because of a secret.
pub(super) enum Held {
    No,
    /// And what the base has at its path.
    Yes(Option<KnownEntry>),
}

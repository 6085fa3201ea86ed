//! Base contexts whose bytes are gone: who waits for them, and who is asked for a copy. Agents keep the bases
//! that they used, and clients those that they sent. How bytes come in is the business of `services`.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kage_core::id::{Digest, ProjectId};
use kage_proto::v1;
use tokio::sync::watch;

use super::Coordinator;
use crate::data::blobs::BlobError;

/// How long a session waits for somebody to bring its context: shorter than the silence after which an agent
/// gives its request up.
pub(crate) const PATIENCE_OF_SESSIONS: Duration = Duration::from_secs(20);
/// How long a new task waits for an agent to bring its context. The client sends it when none does.
pub(crate) const PATIENCE_OF_TASKS: Duration = Duration::from_secs(3);

/// Who brings a context that no agent brings.
pub(crate) const A_CLIENT: &str = "the client that sent it first";

type Key = (ProjectId, Digest);

/// The contexts that somebody waits for, each with who brought it.
#[derive(Debug, Default)]
pub(crate) struct LostContexts(Mutex<HashMap<Key, watch::Sender<Option<String>>>>);

impl LostContexts {
    fn wait_for(&self, key: Key) -> watch::Receiver<Option<String>> {
        let mut waited = self.lock();
        // Those that nobody brought and nobody waits for any more.
        waited.retain(|_, sender| sender.receiver_count() > 0);
        waited.entry(key).or_insert_with(|| watch::channel(None).0).subscribe()
    }

    /// Tells those who wait that the bytes are here.
    pub(crate) fn brought(&self, project: &ProjectId, digest: &Digest, by: &str) {
        if let Some(sender) = self.lock().remove(&(project.clone(), digest.clone())) {
            tracing::warn!(%project, %digest, by, "a lost context was brought back");
            sender.send_replace(Some(by.to_owned()));
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, watch::Sender<Option<String>>>> {
        // No entry is ever half written.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Coordinator {
    /// Asks the agents for the bytes of a context, and waits so long until one of them or a client has brought
    /// them: who that was. `None`: nobody did.
    ///
    /// # Errors
    /// When the blobs cannot be read.
    pub(crate) async fn bring_back(
        &self,
        project: &ProjectId,
        digest: &Digest,
        patience: Duration,
    ) -> Result<Option<String>, BlobError> {
        let mut brought = self.lost.wait_for((project.clone(), digest.clone()));
        // They may have come since they were missed.
        if self.blobs.size(project, digest).await?.is_some() {
            return Ok(Some("another one".to_owned()));
        }
        tracing::warn!(%project, %digest, "the file of a context was lost; the agents are asked for it");
        let asked = v1::connect_response::Message::SendContext(v1::SendContext {
            project: project.to_string(),
            digest: digest.to_string(),
        });
        self.board()
            .ask_all(project, &v1::ConnectResponse { message: Some(asked) });
        let waiting = tokio::time::timeout(patience, brought.wait_for(Option::is_some));
        let by = tokio::select! {
            by = waiting => by.ok().and_then(Result::ok).and_then(|by| by.clone()),
            () = self.closing.cancelled() => None,
        };
        Ok(by)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_who_wait_are_told_who_brought_it() {
        let (project, digest) = (ProjectId::default(), Digest::of(b"{}"));
        let lost = LostContexts::default();
        // Nobody waits: nothing is kept.
        lost.brought(&project, &digest, "nobody");
        let mut first = lost.wait_for((project.clone(), digest.clone()));
        let mut second = lost.wait_for((project.clone(), digest.clone()));
        lost.brought(&project, &Digest::of(b"other"), "other");
        assert_eq!(*first.borrow(), None);
        lost.brought(&project, &digest, "agent-2");
        for waiting in [&mut first, &mut second] {
            let by = waiting.wait_for(Option::is_some).await.unwrap().clone();
            assert_eq!(by.as_deref(), Some("agent-2"));
        }
        // Whoever misses it later waits anew.
        let third = lost.wait_for((project, digest));
        assert_eq!(*third.borrow(), None);
    }

    #[test]
    fn what_nobody_waits_for_is_forgotten() {
        let lost = LostContexts::default();
        drop(lost.wait_for((ProjectId::default(), Digest::of(b"a"))));
        let _waiting = lost.wait_for((ProjectId::default(), Digest::of(b"b")));
        assert_eq!(lost.lock().len(), 1);
    }
}

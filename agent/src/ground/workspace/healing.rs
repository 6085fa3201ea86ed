//! Repair of a mirror that an attempt found damaged: it is healed and reported, and the operation
//! is repeated. `kage_git` owns how a mirror is healed; this file owns when, and who is told.

use std::path::{Path, PathBuf};

use kage_core::cause::chain;
use kage_git::{FetchProblem, GitError, Incident, Mirror, Origin, Wanted};

use crate::backoff::Backoff;
use crate::ground::port::Warnings;
use crate::ports::Random;

/// Heals one mirror for users of the commits `wanted`. Clones share no changing state.
#[derive(Clone)]
pub(crate) struct Healer {
    mirror: PathBuf,
    origin: Origin,
    wanted: Vec<Wanted>,
    random: Random,
}

impl Healer {
    pub(crate) const fn new(mirror: PathBuf, origin: Origin, wanted: Vec<Wanted>, random: Random) -> Self {
        Self {
            mirror,
            origin,
            wanted,
            random,
        }
    }

    /// Runs a git operation, and repeats it once if it failed because of damage that is healed now.
    pub(super) async fn steady<T, F: Future<Output = Result<T, GitError>>>(
        &self,
        warnings: &Warnings,
        mut work: impl FnMut() -> F,
    ) -> Result<T, GitError> {
        match work().await {
            Err(error) if self.heal(warnings, &error).await => work().await,
            done => done,
        }
    }

    /// Heals the mirror when `error` may come from its damage. True when it is sound now, so that a
    /// retry is worth while.
    pub(super) async fn heal(&self, warnings: &Warnings, error: &GitError) -> bool {
        if !error.suggests_damage(&self.mirror) {
            return false;
        }
        let mirror = self.mirror.display();
        tracing::warn!(%mirror, error = chain(error), "a mirror may be damaged");
        // Large, and hardly ever needed.
        match Box::pin(self.fetch_anew()).await {
            // Another attempt healed it, or the error has another cause.
            Ok(None) => true,
            Ok(Some(incident)) => {
                let text = told(&self.mirror, &incident);
                tracing::warn!(%mirror, what = incident.what, "a damaged mirror was healed");
                warnings.tell(text).await;
                true
            }
            Err(error) => {
                tracing::error!(%mirror, error = chain(&error), "a damaged mirror could not be healed");
                false
            }
        }
    }

    /// An unreachable coordinator is waited for; the caller ends the wait.
    async fn fetch_anew(&self) -> Result<Option<Incident>, GitError> {
        let mut backoff = Backoff::default();
        loop {
            let error = match Mirror::heal(&self.mirror, &self.origin, &self.wanted).await {
                Ok(healed) => return Ok(healed),
                Err(error) => error,
            };
            match error.fetch_problem() {
                FetchProblem::Away => {}
                FetchProblem::BrokenOff | FetchProblem::NoReference | FetchProblem::Other => return Err(error),
            }
            tokio::time::sleep(backoff.next(&self.random)).await;
        }
    }
}

impl std::fmt::Debug for Healer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Healer")
            .field("mirror", &self.mirror)
            .finish_non_exhaustive()
    }
}

fn told(mirror: &Path, incident: &Incident) -> String {
    let kept = match &incident.aside {
        Some(aside) => format!("it is set aside in {}", aside.display()),
        None => format!("the mirror is {}", mirror.display()),
    };
    let what = &incident.what;
    format!(
        "this agent's mirror of the repository was damaged ({what}); {kept}, and was fetched again; not counted as a failure"
    )
}

//! The ground of simulated agents, and the coordinator's objects: the forge, by way of a disk that
//! takes its time, a network that may be cut, and now and then an error.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use kage_agent::ground::port::{
    Ground, GroundAttempt, Grounded, Making, TakeWhen, TakenTree, Warnings, WentBack, Workspace,
};
use kage_coordinator::ports::{ArrivedResult, Objects, ResultNotTaken, UnclaimedWork};
use kage_core::checkpoint::Resume;
use kage_core::event::{FileChange, ResultCommit};
use kage_core::failure::{Failure, FailureKind};
use kage_core::folder::Folder;
use kage_core::id::{AttemptId, Digest, Oid, ProjectId, RepositoryName, SessionId};
use kage_core::protect::Protection;
use kage_core::risk::is_of_tests;
use kage_core::task::RepositoryRef;
use turmoil::net::TcpStream;

use crate::forge::{Files, Forge, changes, tree_of};
use crate::hosts::{COORDINATOR, PORT, disk};
use crate::run::Plant;
use crate::world::{Dice, World, count};

/// The wait for a connection, and before the next try.
const REACH: Duration = Duration::from_secs(1);

/// What an agent keeps of the forge. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct SimulatedGround {
    pub(crate) world: Arc<World>,
    pub(crate) host: String,
    pub(crate) dice: Dice,
}

#[derive(Debug)]
struct SimulatedWorkspace {
    ground: SimulatedGround,
    path: PathBuf,
    base: Oid,
}

/// A failure that nobody is to blame for.
fn broken(what: &str) -> Failure {
    Failure::new(FailureKind::CorruptedState, format!("{what} as the seed has it"))
}

impl SimulatedGround {
    fn forge<T>(&self, work: impl FnOnce(&mut Forge) -> T) -> T {
        work(&mut self.world.forge.lock().unwrap())
    }

    /// Waits as long as the disk takes.
    async fn disk(&self) {
        tokio::time::sleep(disk(&self.dice)).await;
    }

    /// Returns when the coordinator can be reached.
    async fn reach(&self) {
        loop {
            let connecting = TcpStream::connect((COORDINATOR, PORT));
            if let Ok(Ok(_)) = tokio::time::timeout(REACH, connecting).await {
                return;
            }
            tokio::time::sleep(REACH).await;
        }
    }

    /// What must never happen has happened.
    fn accuse(&self, text: String) -> Failure {
        self.world.accuse(format!("{}: {text}", self.host));
        broken("nothing can be done")
    }

    fn path(&self, attempt: AttemptId) -> PathBuf {
        self.world.dir(&self.host).join("worktrees").join(attempt.to_string())
    }

    async fn fetch(&self, commit: &Oid) -> Result<Files, Failure> {
        if let Some(files) = self.forge(|forge| forge.mirrored(&self.host, commit).map(|commit| commit.files.clone())) {
            return Ok(files);
        }
        self.reach().await;
        if !self.forge(|forge| forge.fetch(&self.host, commit)) {
            return Err(self.accuse(format!("{commit} is not in the coordinator's repository")));
        }
        self.disk().await;
        let files = self.forge(|forge| forge.mirrored(&self.host, commit).map(|commit| commit.files.clone()));
        files.ok_or_else(|| broken("the mirror was lost"))
    }

    /// The files of a checkpoint, put together from what the mirror lacks.
    async fn assemble(&self, base: &Oid, resume: &Resume) -> Result<Files, Failure> {
        self.fetch(base).await?;
        let commit = &resume.commit;
        let known = |forge: &mut Forge| forge.mirrored(&self.host, commit).map(|commit| commit.files.clone());
        let files = match self.forge(known) {
            Some(files) => files,
            None => {
                for pack in &resume.packs {
                    self.reach().await;
                    if !self.forge(|forge| forge.unpack(&self.host, pack)) {
                        return Err(self.accuse(format!("pack {pack} of head {commit} cannot be unpacked")));
                    }
                }
                let found = self.forge(known);
                found.ok_or_else(|| self.accuse(format!("head {commit} is in none of its packs")))?
            }
        };
        let tree = tree_of(&files);
        if tree != resume.tree {
            let expected = &resume.tree;
            return Err(self.accuse(format!("head {commit} has tree {tree} instead of {expected}")));
        }
        Ok(files)
    }

    async fn make(&self, of: &GroundAttempt, files: Files) -> Arc<dyn Workspace> {
        let path = self.path(of.attempt);
        self.forge(|forge| forge.check_out(&path, files));
        self.disk().await;
        Arc::new(SimulatedWorkspace {
            ground: self.clone(),
            path,
            base: of.repository.base.clone(),
        })
    }
}

impl Ground for SimulatedGround {
    fn for_session<'a>(&'a self, of: &'a GroundAttempt, resume: Option<&'a Resume>) -> Making<'a> {
        async move {
            self.disk().await;
            if self.dice.chance(20) {
                return Err(broken("no workspace"));
            }
            let files = match resume {
                None => self.fetch(&of.repository.base).await?,
                Some(resume) => {
                    count(&self.world.counts.resumed);
                    self.assemble(&of.repository.base, resume).await?
                }
            };
            Ok(self.make(of, files).await)
        }
        .boxed()
    }

    fn for_verify<'a>(&'a self, of: &'a GroundAttempt, session: SessionId, commit: &'a Oid) -> Making<'a> {
        async move {
            self.disk().await;
            if self.dice.chance(20) {
                return Err(broken("no clean workspace"));
            }
            let stored = self.forge(|forge| forge.result_of(session).cloned());
            if *commit != of.repository.base && stored.as_ref() != Some(commit) {
                return Err(self.accuse(format!(
                    "{commit} is verified and {stored:?} is the result of {session}"
                )));
            }
            let planted = self.world.plants(Plant::OtherFiles, &self.dice);
            let files = self.fetch(if planted { &of.repository.base } else { commit }).await?;
            Ok(self.make(of, files).await)
        }
        .boxed()
    }

    fn remove<'a>(&'a self, attempt: AttemptId, _: &'a ProjectId, _: &'a RepositoryName) -> BoxFuture<'a, ()> {
        async move {
            self.forge(|forge| forge.remove(&self.path(attempt)));
            self.disk().await;
        }
        .boxed()
    }

    fn sweep(&self) -> BoxFuture<'_, ()> {
        async move {
            let lost = self.dice.chance(300);
            self.forge(|forge| {
                forge.remove(&self.world.dir(&self.host));
                if lost {
                    forge.lose_mirror(&self.host);
                }
            });
            self.disk().await;
        }
        .boxed()
    }

    fn put<'a>(&'a self, _: &'a ProjectId, bytes: Bytes) -> Grounded<'a, Digest> {
        async move {
            self.reach().await;
            let digest = self.forge(|forge| forge.put(bytes));
            self.disk().await;
            Ok(digest)
        }
        .boxed()
    }

    fn get<'a>(&'a self, _: &'a ProjectId, digest: &'a Digest) -> Grounded<'a, Bytes> {
        async move {
            self.reach().await;
            let found = self.forge(|forge| forge.get(digest));
            found.ok_or_else(|| self.accuse(format!("blob {digest} of a conversation is not there")))
        }
        .boxed()
    }
}

impl SimulatedWorkspace {
    fn files(&self) -> Result<Files, Failure> {
        let files = self.ground.forge(|forge| forge.files(&self.path).cloned());
        files.ok_or_else(|| broken("the worktree is gone"))
    }

    fn files_of(&self, commit: &Oid) -> Result<Files, Failure> {
        let host = &self.ground.host;
        let files = self
            .ground
            .forge(|forge| forge.mirrored(host, commit).map(|commit| commit.files.clone()));
        files.ok_or_else(|| broken("the mirror was lost"))
    }
}

impl Workspace for SimulatedWorkspace {
    fn path(&self) -> &Path {
        &self.path
    }

    fn base(&self) -> &Oid {
        &self.base
    }

    fn changes(&self) -> Grounded<'_, Vec<FileChange>> {
        async move {
            self.ground.disk().await;
            Ok(changes(&self.files_of(&self.base)?, &self.files()?))
        }
        .boxed()
    }

    fn checkpoint<'a>(
        &'a self,
        _: &'a Warnings,
        parent: &'a Oid,
        message: &'a str,
        when: TakeWhen,
    ) -> Grounded<'a, TakenTree> {
        async move {
            let (ground, files) = (&self.ground, self.files()?);
            let before = self.files_of(parent)?;
            ground.disk().await;
            if ground.dice.chance(30) {
                return Err(broken("no checkpoint"));
            }
            let tree = tree_of(&files);
            let commit = if when == TakeWhen::Changed && files == before {
                parent.clone()
            } else {
                ground.forge(|forge| forge.commit(&ground.host, &files, parent, message))
            };
            count(&ground.world.counts.checkpoints);
            ground.disk().await;
            Ok(TakenTree {
                commit,
                tree,
                files_changed: changes(&before, &files).len() as u64,
            })
        }
        .boxed()
    }

    fn result<'a>(&'a self, _: &'a Warnings, message: &'a str) -> Grounded<'a, Option<ResultCommit>> {
        async move {
            let (ground, files) = (&self.ground, self.files()?);
            let base = self.files_of(&self.base)?;
            ground.disk().await;
            if files == base {
                return Ok(None);
            }
            let commit = ground.forge(|forge| forge.commit(&ground.host, &files, &self.base, message));
            Ok(Some(Forge::result(commit, &base, &files)))
        }
        .boxed()
    }

    fn send<'a>(&'a self, _: &'a Warnings, commit: &'a Oid, _have: &'a Oid) -> Grounded<'a, Digest> {
        async move {
            let ground = &self.ground;
            ground.reach().await;
            if ground.dice.chance(30) {
                return Err(Failure::new(FailureKind::Network, "not sent as the seed has it"));
            }
            let planted = ground.world.plants(Plant::WrongPack, &ground.dice);
            let sent = ground.forge(|forge| forge.upload(&ground.host, commit, planted));
            // The answer may be lost.
            ground.disk().await;
            sent.ok_or_else(|| broken("the mirror was lost"))
        }
        .boxed()
    }

    fn protect<'a>(&'a self, _: &'a Warnings, base: &'a Oid, protection: &'a Protection) -> Grounded<'a, Vec<String>> {
        async move {
            if !protection.patterns().is_empty() {
                return Err(self.ground.accuse("no task here protects a pattern".to_owned()));
            }
            let (before, mut files) = (self.ground.fetch(base).await?, self.files()?);
            let named = protection.named(before.keys().map(String::as_str));
            let differ: Vec<_> = named
                .into_iter()
                .filter(|path| files.get(*path) != before.get(*path))
                .map(str::to_owned)
                .collect();
            for path in &differ {
                files.insert(path.clone(), before[path].clone());
            }
            self.ground.disk().await;
            self.ground.forge(|forge| forge.check_out(&self.path, files));
            Ok(differ)
        }
        .boxed()
    }

    fn take_out<'a>(&'a self, _: &'a Warnings, base: &'a Oid, result: &'a Oid) -> Grounded<'a, Vec<String>> {
        async move {
            let (base, result) = (self.ground.fetch(base).await?, self.ground.fetch(result).await?);
            let mut files = self.files()?;
            let paths = base.keys().chain(result.keys());
            let changed: BTreeSet<String> = paths
                .filter(|path| base.get(*path) != result.get(*path) && !is_of_tests(path))
                .cloned()
                .collect();
            for path in &changed {
                match base.get(path) {
                    Some(content) => files.insert(path.clone(), content.clone()),
                    None => files.remove(path),
                };
            }
            self.ground.forge(|forge| forge.check_out(&self.path, files));
            Ok(changed.into_iter().collect())
        }
        .boxed()
    }

    fn go_back<'a>(&'a self, resume: &'a Resume, _complete: bool) -> Grounded<'a, WentBack> {
        async move {
            let files = self.ground.assemble(&self.base, resume).await?;
            let differ = changes(&self.files()?, &files).len();
            self.ground.disk().await;
            self.ground.forge(|forge| forge.check_out(&self.path, files));
            Ok(WentBack {
                put_back: differ,
                moved_aside: 0,
            })
        }
        .boxed()
    }

    fn paths_since_base<'a>(&'a self, checkpoint: &'a Oid) -> BoxFuture<'a, Vec<String>> {
        async move {
            let (Ok(base), Ok(files)) = (self.files_of(&self.base), self.files_of(checkpoint)) else {
                return Vec::new();
            };
            changes(&base, &files).into_iter().map(|change| change.path).collect()
        }
        .boxed()
    }

    fn retire(&self) -> BoxFuture<'_, ()> {
        self.remove()
    }

    fn remove(&self) -> BoxFuture<'_, ()> {
        async move {
            self.ground.forge(|forge| forge.remove(&self.path));
            self.ground.disk().await;
        }
        .boxed()
    }
}

/// What the coordinator has of the forge.
#[derive(Debug)]
pub(crate) struct SimulatedObjects {
    pub(crate) world: Arc<World>,
    pub(crate) dice: Dice,
}

impl SimulatedObjects {
    async fn ask<T>(&self, question: impl FnOnce(&mut Forge) -> T) -> T {
        tokio::time::sleep(disk(&self.dice)).await;
        question(&mut self.world.forge.lock().unwrap())
    }
}

impl Objects for SimulatedObjects {
    fn has_commit<'a>(
        &'a self,
        _: &'a ProjectId,
        _: &'a RepositoryName,
        commit: &'a Oid,
    ) -> BoxFuture<'a, io::Result<bool>> {
        async move { Ok(self.ask(|forge| forge.taken(commit).is_some()).await) }.boxed()
    }

    fn has_folder<'a>(
        &'a self,
        _: &'a ProjectId,
        repository: &'a RepositoryRef,
        folder: &'a Folder,
    ) -> BoxFuture<'a, io::Result<bool>> {
        let inside = format!("{folder}/");
        async move {
            let has = |forge: &mut Forge| {
                let base = forge.taken(&repository.base);
                base.is_some_and(|base| base.files.keys().any(|path| path.starts_with(&inside)))
            };
            Ok(self.ask(has).await)
        }
        .boxed()
    }

    fn has_blob<'a>(&'a self, _: &'a ProjectId, digest: &'a Digest) -> BoxFuture<'a, io::Result<bool>> {
        async move { Ok(self.ask(|forge| forge.has_blob(digest)).await) }.boxed()
    }

    fn take_in<'a>(&'a self, arrived: ArrivedResult<'a>) -> BoxFuture<'a, Result<ResultCommit, ResultNotTaken>> {
        async move {
            tokio::time::sleep(disk(&self.dice)).await;
            if self.dice.chance(30) {
                return Err(ResultNotTaken::Later("as the seed has it".to_owned()));
            }
            if (arrived.ended)() {
                return Err(ResultNotTaken::Ended);
            }
            let (session, commit) = (arrived.session, &arrived.result.commit);
            if self.world.plants(Plant::LostResult, &self.dice) {
                return Ok(arrived.result.clone());
            }
            if !self.ask(|forge| forge.take_in(session, commit, arrived.pack)).await {
                self.world.accuse(format!("the pack of result {commit} was not sent"));
                let failure = Failure::new(FailureKind::CorruptedState, "its pack is not here");
                return Err(ResultNotTaken::Never(failure));
            }
            // Its agents are honest: what they say is what the objects say.
            Ok(arrived.result.clone())
        }
        .boxed()
    }

    fn save<'a>(&'a self, unclaimed: UnclaimedWork<'a>) -> BoxFuture<'a, Result<Option<ResultCommit>, ResultNotTaken>> {
        async move {
            tokio::time::sleep(disk(&self.dice)).await;
            if self.dice.chance(30) {
                return Err(ResultNotTaken::Later("as the seed has it".to_owned()));
            }
            let UnclaimedWork {
                repository,
                session,
                work,
                message,
                ..
            } = unclaimed;
            let saved = self
                .ask(|forge| forge.save(session, &repository.base, work, message))
                .await;
            saved.map_err(|why| {
                self.world.accuse(format!("unfinished work of {session}: {why}"));
                ResultNotTaken::Never(Failure::new(FailureKind::CorruptedState, why))
            })
        }
        .boxed()
    }
}

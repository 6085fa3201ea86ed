//! The network of an attempt's programs, by the settings of its agent. A box that has a network of its own
//! (T2) has what its policy says: all, nothing, or a door, which is open from before the first program to
//! after the last one. In lower tiers programs have the network of the machine.

use std::path::Path;
use std::sync::Arc;

use kage_core::cause::chain;
use kage_core::contain::Tier;
use kage_core::failure::{Failure, FailureKind};
use kage_core::failure_table::local_failure;
use kage_core::network::NetworkPolicy;
use kage_proto::convert::agent::WorkKind;

use super::Attempt;
use crate::contain::{DoorWay, Network, Room};

/// Whose network it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NetworkUse {
    /// Of a session, and of setup, which fetches what the others need.
    Work,
    /// Of the verify command.
    Verify,
}

impl Attempt {
    /// The box of its programs, which work in this worktree.
    pub(super) fn room(&self, worktree: Option<&Path>, who: NetworkUse) -> Option<Arc<Room>> {
        let paths = &self.resources.paths;
        let own = worktree.map(Path::to_owned).into_iter();
        let own = own.chain([paths.scratch(self.id), paths.short_tmp().path(self.id)]);
        // Of the mirror, the worktree borrows its objects.
        let mirror = self
            .repository()
            .map(|repository| paths.mirror(&self.work.project, &repository.name));
        let lent = mirror.map(|mirror| mirror.join("objects"));
        let room = self.resources.boxes.room(own.collect(), lent.into_iter().collect())?;
        Some(self.on_network(&room, who))
    }

    /// What of the network its programs have: all, where their boxes have none of their own.
    pub(super) fn network_of(&self, who: NetworkUse) -> NetworkPolicy {
        match self.resources.boxes.proved().tier {
            Tier::T0 | Tier::T1 => NetworkPolicy::Open,
            Tier::T2 | Tier::T3 => match who {
                NetworkUse::Work => self.resources.network.sessions,
                NetworkUse::Verify => self.resources.network.verify,
            },
        }
    }

    /// Whether a door has to be there for some of its programs.
    fn needs_door(&self) -> bool {
        let uses: &[NetworkUse] = match &self.work.kind {
            WorkKind::Session(_) => &[NetworkUse::Work],
            WorkKind::Verify(_) => &[NetworkUse::Work, NetworkUse::Verify],
        };
        uses.iter().any(|who| self.network_of(*who) == NetworkPolicy::Gateway)
    }

    /// The box, with what of the network it has.
    fn on_network(&self, room: &Arc<Room>, who: NetworkUse) -> Arc<Room> {
        match (self.network_of(who), &self.door) {
            (NetworkPolicy::Open, _) => Arc::clone(room),
            (NetworkPolicy::Gateway, Some(way)) => room.behind(way.clone()),
            // Without its door it has nothing, rather than everything.
            (NetworkPolicy::None, _) | (NetworkPolicy::Gateway, None) => room.on(Network::None),
        }
    }
}

fn failed(what: &str, error: &(dyn std::error::Error + 'static)) -> Failure {
    local_failure(FailureKind::CorruptedState, format!("{what}: {}", chain(error)))
}

#[cfg(target_os = "linux")]
mod on_linux {
    use std::path::PathBuf;

    use kage_core::network::AllowRule;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::door::{DoorRules, Entrances, Upstream, serve};
    use crate::passing;

    /// A door that is open and not yet served.
    pub(in super::super) struct OpenDoor {
        pub(in super::super) way: DoorWay,
        folder: PathBuf,
        entrances: Entrances,
        rules: DoorRules,
    }

    impl Attempt {
        /// Opens the door, where one is needed.
        pub(in super::super) async fn open_door(&self) -> Result<Option<OpenDoor>, Failure> {
            if !self.needs_door() {
                return Ok(None);
            }
            let upstream = Upstream::of(&self.equipment.environment);
            let upstream = upstream.map_err(|error| failed("there is no way out for programs", &error))?;
            let list = self.resources.network.list(&self.provider());
            let (folder, ports) = (self.resources.paths.door(self.id), passing::ports(list.forwards()));
            let socket = folder.join("socket");
            let (made, path) = (folder.clone(), socket.clone());
            let opening = self.resources.blocking.run(move || {
                std::fs::create_dir_all(&made)?;
                passing::reception(&path)
            });
            let opened = opening.await.map_err(std::io::Error::other).and_then(|opened| opened);
            let boxes = opened.map_err(|error| failed("cannot open the door to the network", &error))?;
            Ok(Some(OpenDoor {
                way: DoorWay { socket, ports },
                folder,
                entrances: Entrances {
                    listeners: Vec::new(),
                    boxes: Some(boxes),
                },
                rules: DoorRules::new(list, upstream),
            }))
        }

        /// What the adapter of a session needs.
        fn provider(&self) -> Vec<AllowRule> {
            let WorkKind::Session(work) = &self.work.kind else {
                return Vec::new();
            };
            // The one way to its provider.
            if let Some((_, rule)) = &self.gateway {
                return vec![rule.clone()];
            }
            let adapter = self.equipment.adapters.get(&work.adapter);
            adapter.map_or_else(Vec::new, |adapter| adapter.provider())
        }

        /// Does the work while the door is served.
        pub(in super::super) async fn while_served<T>(&self, door: OpenDoor, work: impl Future<Output = T>) -> T {
            let (end, warnings) = (CancellationToken::new(), self.warnings());
            let tell = |text| {
                let warnings = warnings.clone();
                async move { warnings.tell(text).await }
            };
            let serving = serve(door.entrances, door.rules, tell, end.clone());
            let working = async {
                let done = work.await;
                end.cancel();
                done
            };
            let (done, served) = tokio::join!(working, serving);
            match served {
                Ok(traffic) => tracing::debug!(
                    connections = traffic.connections,
                    refused = traffic.refused,
                    sent = traffic.sent,
                    received = traffic.received,
                    "the door closed"
                ),
                Err(error) => tracing::warn!(%error, "programs had no network"),
            }
            let folder = door.folder;
            let removing = self.resources.blocking.run(move || std::fs::remove_dir_all(folder));
            if let Ok(Err(error)) = removing.await {
                tracing::debug!(%error, "the next start removes the door");
            }
            done
        }
    }
}

/// There are no boxes, and so no doors.
#[cfg(not(target_os = "linux"))]
mod elsewhere {
    use super::*;

    pub(in super::super) struct OpenDoor {
        pub(in super::super) way: DoorWay,
    }

    impl Attempt {
        pub(in super::super) async fn open_door(&self) -> Result<Option<OpenDoor>, Failure> {
            match self.needs_door() {
                true => Err(failed(
                    "there is no door",
                    &std::io::Error::from(std::io::ErrorKind::Unsupported),
                )),
                false => Ok(None),
            }
        }

        pub(in super::super) async fn while_served<T>(&self, _door: OpenDoor, work: impl Future<Output = T>) -> T {
            work.await
        }
    }
}

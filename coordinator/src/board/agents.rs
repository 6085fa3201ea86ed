//! Connections of agents, and the messages to them.

use std::collections::BTreeMap;

use kage_core::checkpoint::Resumes;
use kage_core::contain::Tier;
use kage_core::fleet::Agent;
use kage_core::id::{AdapterName, AgentId, AttemptId, BootId, ProjectId, SessionId};
use kage_core::job::Subject;
use kage_core::time::Timestamp;
use kage_proto::v1;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::lanes::Lanes;
use super::{AgentLink, Board, Joined, Member, Outbox, Presence, Presently, Pulse, Running, Serial, drain_message};
use crate::store::LiveAttempt;

/// A connection that another start of the same agent wants to replace. It was sent a ping.
#[derive(Debug)]
pub(crate) struct Incumbent {
    pub(crate) name: String,
    pub(crate) serial: Serial,
    /// Ends with the connection; `None` when the ping could not even be queued.
    pub(crate) pulse: Option<watch::Receiver<Pulse>>,
    pub(crate) answers_pings: bool,
}

impl Board {
    /// Adds an agent that was known before this coordinator started, with its running attempts.
    pub(crate) fn expect(&mut self, agent: Agent, running: Vec<LiveAttempt>, now: Instant) {
        let until = now + self.timings.lease_ttl;
        for live in &running {
            *self.held.entry(live.task).or_default() += 1;
        }
        let presently = if running.is_empty() {
            Presently::Lost { since: now }
        } else {
            Presently::Away { until }
        };
        let mut member = Member::new(agent, presently);
        for live in &running {
            member.lanes.take(live.adapter.as_ref());
        }
        member.running = running
            .into_iter()
            .map(|live| {
                let running = Running {
                    task: live.task,
                    adapter: live.adapter,
                    subject: live.subject,
                    lease_until: until,
                };
                (live.attempt, running)
            })
            .collect();
        self.members.insert(member);
    }

    /// Follows what is stored of an agent. One that is not known yet is not connected.
    pub(crate) fn stored(&mut self, agent: &Agent, project: Option<ProjectId>, now: Instant) {
        if self.members.get(agent.id).is_none() {
            let member = Member::new(agent.clone(), Presently::Lost { since: now });
            return self.members.insert(Member { project, ..member });
        }
        let told = self.members.change(agent.id, |member| {
            member.stored_draining = (agent.boot, agent.draining);
            member.agent.cordoned = agent.cordoned;
            let told = member.agent.boot == agent.boot && agent.draining && !member.agent.draining;
            if member.agent.boot == agent.boot {
                member.agent.draining = agent.draining;
            }
            told
        });
        if told == Some(true) {
            self.tell(agent.id, drain_message());
        }
    }

    /// Registers the newest connection of an agent. An older one is cut, and its offers are
    /// withdrawn. Whether it is drained or cordoned is as it was stored last.
    pub(crate) fn join(&mut self, agent: Agent, outbox: Outbox, claimed: &[AttemptId], now: Instant) -> Joined {
        let serial = Serial(self.next());
        let cut = CancellationToken::new();
        let (pulse, _) = watch::channel(Pulse {
            heard: now,
            busy: false,
        });
        let link = AgentLink {
            serial,
            pulse,
            answers_pings: false,
            context_deltas: 1,
            outbox,
            cut: cut.clone(),
        };
        let id = agent.id;
        self.take_back_all(id);
        self.hindrances.remove(&id);
        let mut forgotten = BTreeMap::new();
        if self.members.get(id).is_some() {
            self.members.redescribe(id, |member| {
                if let Presently::Connected(old) = &member.presently {
                    old.cut.cancel();
                }
                let lost = member.running.extract_if(.., |attempt, _| !claimed.contains(attempt));
                for (attempt, running) in lost {
                    member.lanes.release(running.adapter.as_ref());
                    forgotten.insert(attempt, running);
                }
                member.lanes.describe(&agent);
                let cordoned = member.agent.cordoned;
                let draining = match member.stored_draining {
                    (boot, draining) if boot == agent.boot => draining,
                    _ => agent.draining,
                };
                member.agent = Agent {
                    cordoned,
                    draining,
                    ..agent
                };
                member.presently = Presently::Connected(link);
            });
        } else {
            self.members.insert(Member::new(agent, Presently::Connected(link)));
        }
        for (attempt, running) in &forgotten {
            self.terms.forget(*attempt);
            self.let_go(running.task);
        }
        Joined {
            serial,
            cut,
            forgotten: forgotten.into_keys().collect(),
        }
    }

    /// Binds an agent to a project, or to none.
    pub(crate) fn scope(&mut self, agent: AgentId, project: Option<ProjectId>) {
        self.members.redescribe(agent, |member| member.project = project);
    }

    /// Those of `attempts` that a returning agent still has authority over but has to stop.
    pub(crate) fn to_stop(&self, attempts: &[AttemptId]) -> Vec<AttemptId> {
        attempts.iter().copied().filter(|a| self.stopping.contains(a)).collect()
    }

    /// Removes an ended connection. Ignored when a newer one replaced it.
    pub(crate) fn leave(&mut self, agent: AgentId, serial: Serial, now: Instant) {
        let until = now + self.timings.grace;
        let left = self.members.change(agent, |member| {
            let newest = member.link().is_some_and(|link| link.serial == serial);
            if newest {
                member.presently = Presently::Away { until };
            }
            newest
        });
        if left == Some(true) {
            self.hindrances.remove(&agent);
            self.take_back_all(agent);
        }
    }

    /// Notes a message of the agent, in progress until [`Board::carried_out`].
    pub(crate) fn heard(&mut self, agent: AgentId, serial: Serial, at: Timestamp, now: Instant) {
        self.members.change(agent, |member| {
            if let Presently::Connected(link) = &mut member.presently
                && link.serial == serial
            {
                link.pulse.send_replace(Pulse { heard: now, busy: true });
                member.agent.seen_at = at;
            }
        });
    }

    /// Notes that the agent's message was handled, so that the next one is read.
    pub(crate) fn carried_out(&self, agent: AgentId, serial: Serial) {
        let link = self.members.get(agent).and_then(Member::link);
        if let Some(link) = link.filter(|link| link.serial == serial) {
            link.pulse.send_modify(|pulse| pulse.busy = false);
        }
    }

    /// Notes that the agent answers pings.
    pub(crate) fn answers_pings(&mut self, agent: AgentId, serial: Serial) {
        self.members.change(agent, |member| {
            if let Presently::Connected(link) = &mut member.presently
                && link.serial == serial
            {
                link.answers_pings = true;
            }
        });
    }

    /// Notes which context deltas the agent reads.
    pub(crate) fn reads_context_deltas(&mut self, agent: AgentId, serial: Serial, newest: u32) {
        self.members.change(agent, |member| {
            if let Presently::Connected(link) = &mut member.presently
                && link.serial == serial
            {
                link.context_deltas = newest;
            }
        });
    }

    /// The newest version of context deltas that the agent reads.
    pub(crate) fn context_deltas(&self, agent: AgentId) -> u32 {
        let link = self.members.get(agent).and_then(Member::link);
        link.map_or(1, |link| link.context_deltas)
    }

    /// Sends a message to every connected agent of a project. One whose queue is full is left out: it is asked
    /// a favour.
    pub(crate) fn ask_all(&self, project: &ProjectId, message: &v1::ConnectResponse) {
        let of_project = |member: &&Member| member.project.as_ref().is_none_or(|own| own == project);
        for link in self.members.iter().filter(of_project).filter_map(Member::link) {
            if link.outbox.try_send(Ok(message.clone())).is_err() {
                tracing::debug!("an agent reads too slowly to be asked");
            }
        }
    }

    /// The agent's connection from another start than `boot`.
    pub(crate) fn incumbent(&self, agent: AgentId, boot: BootId) -> Option<Serial> {
        self.other_start(agent, boot).map(|(_, link)| link.serial)
    }

    /// Pings that connection, if it exists.
    pub(crate) fn challenge(&self, agent: AgentId, boot: BootId) -> Option<Incumbent> {
        let (member, link) = self.other_start(agent, boot)?;
        let ping = v1::connect_response::Message::Ping(v1::Ping { sequence: self.counter });
        let pulse = link.pulse.subscribe();
        // An agent whose queue is full does not read, and will not answer.
        let taken = link.outbox.try_send(Ok(v1::ConnectResponse { message: Some(ping) }));
        Some(Incumbent {
            name: member.agent.name.clone(),
            serial: link.serial,
            pulse: taken.is_ok().then_some(pulse),
            answers_pings: link.answers_pings,
        })
    }

    fn other_start(&self, agent: AgentId, boot: BootId) -> Option<(&Member, &AgentLink)> {
        let member = self.members.get(agent).filter(|member| member.agent.boot != boot)?;
        Some((member, member.link()?))
    }

    /// Sets or clears the hindrance that the agent reported.
    pub(crate) fn hindered(&mut self, agent: AgentId, serial: Serial, hindrance: Option<String>) {
        let link = self.members.get(agent).and_then(Member::link);
        match hindrance.filter(|_| link.is_some_and(|link| link.serial == serial)) {
            Some(hindrance) => self.hindrances.insert(agent, hindrance),
            None => self.hindrances.remove(&agent),
        };
    }

    /// Why an agent's session does not continue; `None` when no reason is known.
    pub(crate) fn why_not_going_on(&self, session: SessionId) -> Option<String> {
        self.hindrances.iter().find_map(|(agent, hindrance)| {
            let member = self.members.get(*agent)?;
            let here = member
                .running
                .values()
                .any(|running| running.subject == Subject::Session(session));
            here.then(|| format!("{} cannot go on: {hindrance}", member.agent.name))
        })
    }

    /// The agent asks for no new work, which is not stored yet.
    pub(crate) fn drains(&mut self, agent: AgentId) {
        self.members.change(agent, |member| member.agent.draining = true);
    }

    /// The agent was revoked: nothing waits for it.
    pub(crate) fn shut_out(&mut self, agent: AgentId) {
        self.members.change(agent, |member| member.shut_out = true);
    }

    /// Sends a message to an agent. False when it is not connected; an agent that does not read is
    /// cut off.
    pub(crate) fn tell(&mut self, agent: AgentId, message: v1::ConnectResponse) -> bool {
        let Some(link) = self.members.get(agent).and_then(Member::link) else {
            return false;
        };
        match link.outbox.try_send(Ok(message)) {
            Ok(()) => true,
            Err(_) => {
                link.cut.cancel();
                false
            }
        }
    }

    pub(crate) fn agent(&self, id: AgentId) -> Option<&Agent> {
        self.members.get(id).map(|member| &member.agent)
    }

    /// Where an agent's adapter can resume a conversation, as far as the agent reported.
    pub(crate) fn resumes(&self, agent: AgentId, adapter: &AdapterName) -> Resumes {
        let adapters = self.agent(agent).map_or(&[][..], |agent| &agent.adapters);
        let info = adapters.iter().find(|info| info.name == *adapter);
        info.map(|info| info.resumes).unwrap_or_default()
    }

    /// Whether a session of an agent's adapter takes what a person says while it works.
    pub(crate) fn hears(&self, agent: AgentId, adapter: &AdapterName) -> bool {
        let adapters = self.agent(agent).map_or(&[][..], |agent| &agent.adapters);
        adapters.iter().any(|info| info.name == *adapter && info.hears)
    }

    /// The tier of containment of an agent's present start, as far as the agent reported.
    pub(crate) fn contained(&self, agent: AgentId) -> Tier {
        self.agent(agent).map(|agent| agent.contained.tier).unwrap_or_default()
    }

    pub(crate) fn presence(&self, id: AgentId) -> Presence {
        match self.members.get(id) {
            None => Presence {
                state: v1::AgentState::Disconnected,
                busy: BTreeMap::new(),
            },
            Some(member) => Presence {
                state: match (&member.presently, member.agent.draining) {
                    (Presently::Connected(_), false) => v1::AgentState::Connected,
                    (Presently::Connected(_), true) => v1::AgentState::Draining,
                    (Presently::Away { .. } | Presently::Lost { .. }, _) => v1::AgentState::Disconnected,
                },
                busy: member
                    .lanes
                    .iter()
                    .map(|(lane, counted)| (lane, counted.busy))
                    .collect(),
            },
        }
    }

    pub(crate) fn connected(&self) -> usize {
        self.members.iter().filter(|member| member.link().is_some()).count()
    }
}

impl Member {
    fn new(agent: Agent, presently: Presently) -> Self {
        Self {
            lanes: Lanes::of(&agent),
            project: None,
            stored_draining: (agent.boot, agent.draining),
            agent,
            presently,
            running: BTreeMap::new(),
            shut_out: false,
        }
    }
}

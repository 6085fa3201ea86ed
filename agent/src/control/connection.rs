//! The control session: one task that owns the connection to the coordinator, the leases and the
//! running attempts. It connects forever; an unreachable coordinator is a long disconnect, during
//! which attempts continue and are frozen only when their leases end.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use kage_core::contain::Containment;
use kage_core::context::DELTA_VERSION;
use kage_core::id::{AgentId, AttemptId, BootId, Digest};
use kage_core::task::Labels;
use kage_proto::convert::agent::Hello;
use kage_proto::convert::time::duration;
use kage_proto::status::ApiError;
use kage_proto::v1;
use kage_proto::v1::connect_request::Message as ToCoordinator;
use kage_proto::v1::connect_response::Message as FromCoordinator;
use kage_proto::{PROTOCOL, PROTOCOL_MIN};
use tokio::sync::watch;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::attempt::Resources;
use crate::backoff::{SessionEnd, SessionWaits};
use crate::control::lease::{Effect, Leases, Terms};
use crate::delivery::live::StopReason;
use crate::equipment::Announcement;
use crate::identity::trust::Keyring;
use crate::ports::Random;

mod link;
mod slots;
mod offers;
mod passed_on;

use link::{Connected, ControlLink, ControlLinkError, News, Welcomed, request};
use offers::Accepted;
use slots::Slots;

/// The shortest interval that is accepted from a coordinator: a shorter one would leave both sides no time for
/// anything else.
const SHORTEST: Duration = Duration::from_millis(10);

/// The terms until the first Welcome; nothing runs before it.
const FIRST_TERMS: Terms = Terms {
    ttl: Duration::from_secs(20),
    max_detached: Duration::from_secs(600),
};

pub(crate) struct ControlParts {
    pub(crate) resources: Arc<Resources>,
    pub(crate) agent: AgentId,
    pub(crate) boot: BootId,
    pub(crate) slots: u32,
    pub(crate) labels: Labels,
    /// What the machine brings to a check of a base; `None`: it is not known.
    pub(crate) machine: Option<Digest>,
    /// How well it keeps programs apart from the machine.
    pub(crate) contained: Containment,
    pub(crate) coordinator_url: String,
    pub(crate) keyring: Keyring,
    pub(crate) random: Random,
    pub(crate) shutdown: CancellationToken,
    pub(crate) hand_back: CancellationToken,
}

/// Whether and how the agent ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Course {
    Taking,
    /// It ends when the running attempts are finished, however long that takes: the coordinator
    /// said so.
    Draining,
    /// As `Draining`, but at this time it hands back the attempts that still run.
    Finishing {
        until: Instant,
    },
    /// It ends when the running attempts have stopped, or abandons them at this time.
    HandingBack {
        until: Instant,
    },
    /// As `HandingBack`, and it does not connect any more: the coordinator rejected it.
    ShutOut {
        until: Instant,
    },
}

enum ControlInput {
    Link(News),
    LeaseDue,
    AttemptEnded(Result<(Id, ()), JoinError>),
    /// The coordinator is to know other adapters.
    Announced,
    Shutdown,
    HandBack,
    CourseDue,
}

pub(crate) struct Connection {
    parts: ControlParts,
    link: ControlLink,
    waits: SessionWaits,
    course: Course,
    slots: Slots,
    announced: watch::Receiver<Announcement>,
    /// The version of the announcement in the last Hello.
    told: u64,
    accepted: HashMap<AttemptId, Accepted>,
    leases: Leases,
    running: JoinSet<()>,
    attempts: HashMap<Id, AttemptId>,
    frozen: HashMap<AttemptId, watch::Sender<bool>>,
    /// Why the coordinator rejects this agent, for good or for now.
    denied: Option<ApiError>,
}

impl Connection {
    pub(crate) fn new(parts: ControlParts) -> Self {
        Self {
            slots: Slots::new(parts.slots),
            announced: parts.resources.equipments.announced(),
            told: 0,
            parts,
            link: ControlLink::Down { until: Instant::now() },
            waits: SessionWaits::new(),
            course: Course::Taking,
            accepted: HashMap::new(),
            leases: Leases::new(FIRST_TERMS),
            running: JoinSet::new(),
            attempts: HashMap::new(),
            frozen: HashMap::new(),
            denied: None,
        }
    }

    /// Runs until the agent is told to end and no attempt runs any more.
    ///
    /// # Errors
    /// When the coordinator shut this agent out, or rejected it until the end.
    pub(crate) async fn run(mut self) -> Result<(), ApiError> {
        while !self.is_over() {
            match self.input().await {
                ControlInput::Link(news) => self.heard(news),
                ControlInput::LeaseDue => {
                    for effect in self.leases.due(Instant::now()) {
                        self.carry_out(effect);
                    }
                }
                ControlInput::AttemptEnded(joined) => self.attempt_ended(joined),
                ControlInput::Announced => self.announce(),
                ControlInput::Shutdown => {
                    tracing::info!("shutting down: no more work is taken");
                    let until = Instant::now() + self.parts.resources.limits.drain;
                    self.stop_taking(Course::Finishing { until });
                }
                ControlInput::HandBack => self.hand_back(),
                ControlInput::CourseDue => match self.course {
                    Course::Taking | Course::Draining => {}
                    Course::Finishing { .. } => self.hand_back(),
                    Course::HandingBack { .. } | Course::ShutOut { .. } => {
                        tracing::error!(attempts = self.running.len(), "attempts did not stop and are abandoned");
                        self.running.abort_all();
                        break;
                    }
                },
            }
        }
        self.denied.map_or(Ok(()), Err)
    }

    fn heard(&mut self, news: News) {
        match news {
            News::Retry => self.link = ControlLink::Connecting(Box::pin(self.connect())),
            News::Connected(Ok(connected)) => self.link = ControlLink::Up(connected),
            News::Connected(Err(error)) => self.down(&error),
            News::Message(message) => match *message {
                Ok(Some(message)) => self.message(message),
                Ok(None) => self.down(&ControlLinkError::Closed),
                Err(status) => self.down(&ControlLinkError::Call(status.into())),
            },
            News::Heartbeat => self.heartbeat(),
            News::Silent => self.down(&ControlLinkError::Silent),
        }
    }

    fn is_over(&self) -> bool {
        match self.course {
            Course::Taking => false,
            // An accepted offer may be granted already.
            Course::Draining | Course::Finishing { .. } => self.running.is_empty() && self.accepted.is_empty(),
            Course::HandingBack { .. } | Course::ShutOut { .. } => self.running.is_empty(),
        }
    }

    async fn input(&mut self) -> ControlInput {
        let (until, may_shut_down, may_hand_back) = match self.course {
            Course::Taking | Course::Draining => (None, true, true),
            Course::Finishing { until } => (Some(until), false, true),
            Course::HandingBack { until } | Course::ShutOut { until } => (Some(until), false, false),
        };
        let lease = self.leases.next();
        tokio::select! {
            biased;
            () = self.parts.hand_back.cancelled(), if may_hand_back => ControlInput::HandBack,
            () = self.parts.shutdown.cancelled(), if may_shut_down => ControlInput::Shutdown,
            () = sleep_until(until), if until.is_some() => ControlInput::CourseDue,
            () = sleep_until(lease), if lease.is_some() => ControlInput::LeaseDue,
            Some(joined) = self.running.join_next_with_id() => ControlInput::AttemptEnded(joined),
            Ok(()) = self.announced.changed() => ControlInput::Announced,
            news = self.link.next() => ControlInput::Link(news),
        }
    }

    /// Says Hello again, which tells the adapters. Attempts go on meanwhile, as when a connection breaks;
    /// accepted offers return to the coordinator.
    fn announce(&mut self) {
        match self.link {
            ControlLink::Up(_) | ControlLink::Connecting(_) => {
                self.accepted.clear();
                self.link = ControlLink::Down { until: Instant::now() };
            }
            ControlLink::Down { .. } => {}
        }
    }

    fn connect(&mut self) -> impl Future<Output = Result<Box<Connected>, ControlLinkError>> + Send + use<> {
        self.told = self.announced.borrow_and_update().version;
        let adapters = self.parts.resources.equipments.infos();
        self.slots.update(&adapters);
        let url = self.parts.coordinator_url.clone();
        let keyring = self.parts.keyring.clone();
        let hello = Hello {
            agent: self.parts.agent,
            boot: self.parts.boot,
            protocols: PROTOCOL_MIN..=PROTOCOL,
            name: self.parts.resources.name.clone(),
            slots: self.parts.slots,
            labels: self.parts.labels.clone(),
            adapters,
            running: self.parts.resources.live.keys(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            answers_pings: true,
            machine: self.parts.machine.clone(),
            contained: self.parts.contained.clone(),
            context_deltas: DELTA_VERSION,
        };
        link::connect(url, keyring, hello)
    }

    /// The connection is lost. Accepted offers return to the coordinator unharmed.
    fn down(&mut self, error: &ControlLinkError) {
        let end = match error {
            ControlLinkError::Call(in_use @ ApiError::AgentIdInUse { .. }) => {
                self.denied = Some(in_use.clone());
                SessionEnd::IdInUse
            }
            ControlLinkError::Call(_)
            | ControlLinkError::Connect(_)
            | ControlLinkError::Silent
            | ControlLinkError::Closed
            | ControlLinkError::Full => SessionEnd::Broken,
        };
        let wait = self.waits.next(end, self.link.lasted(), &self.parts.random);
        tracing::warn!(
            error = error as &dyn std::error::Error,
            ?wait,
            "not connected to the coordinator"
        );
        self.accepted.clear();
        if let ControlLinkError::Call(denied @ ApiError::PermissionDenied { .. }) = error {
            // The coordinator is not away but rejects the agent: it accepts nothing that this agent
            // does.
            let reason = StopReason::Ordered("the coordinator shut this agent out".to_owned());
            self.parts.resources.live.stop_all(&reason);
            let until = Instant::now() + self.patience();
            self.course = Course::ShutOut { until };
            self.link = ControlLink::Down { until };
            self.denied = Some(denied.clone());
            return;
        }
        self.link = ControlLink::Down {
            until: Instant::now() + wait,
        };
    }

    fn send(&mut self, message: ToCoordinator) {
        if let ControlLink::Up(connected) = &self.link
            && connected.outbound.try_send(request(message)).is_err()
        {
            self.down(&ControlLinkError::Full);
        }
    }

    fn message(&mut self, message: v1::ConnectResponse) {
        let now = Instant::now();
        if let ControlLink::Up(connected) = &mut self.link {
            connected.heard = now;
        }
        match message.message {
            Some(FromCoordinator::Welcome(welcome)) => self.welcome(&welcome),
            Some(FromCoordinator::Offer(offer)) => self.offer(*offer),
            Some(FromCoordinator::Granted(granted)) => self.granted(&granted.attempt_id),
            Some(FromCoordinator::HeartbeatAck(ack)) => self.heartbeat_ack(&ack),
            Some(FromCoordinator::Stop(stop)) => {
                if let Some(attempt) = parse(&stop.attempt_id) {
                    tracing::info!(%attempt, reason = stop.reason, "told to stop");
                    self.accepted.remove(&attempt);
                    if stop.keep_worktree {
                        self.parts.resources.parking.leave(attempt);
                    }
                    self.parts
                        .resources
                        .live
                        .stop(attempt, StopReason::Ordered(stop.reason));
                }
            }
            Some(FromCoordinator::Drain(v1::Drain {})) => {
                tracing::info!("told to drain: ends when the running attempts are finished");
                if self.course == Course::Taking {
                    self.stop_taking(Course::Draining);
                }
            }
            Some(FromCoordinator::TakeCheckpoint(wanted)) => self.take_checkpoint(wanted),
            Some(FromCoordinator::SendContext(wanted)) => {
                let resources = Arc::clone(&self.parts.resources);
                // Beside the loop: a context may be large.
                self.running
                    .spawn(async move { resources.contexts.bring_back(&wanted).await });
            }
            Some(FromCoordinator::Say(said)) => self.say(said),
            Some(FromCoordinator::AnswerQuestion(answered)) => self.answer(answered),
            Some(FromCoordinator::Ping(v1::Ping { sequence })) => {
                self.send(ToCoordinator::Pong(v1::Pong { sequence }));
            }
            // A newer coordinator sends a message that this agent does not know.
            None => tracing::debug!("unknown message"),
        }
    }

    fn welcome(&mut self, welcome: &v1::Welcome) {
        let ControlLink::Up(connected) = &mut self.link else {
            return;
        };
        let told = |span: Option<_>| span.map(duration).unwrap_or_default();
        connected.welcome = Some(Welcomed {
            since: Instant::now(),
            interval: told(welcome.heartbeat_interval).max(SHORTEST),
            // At once: the first heartbeat renews the leases of attempts that went on during the
            // disconnect.
            next: Instant::now(),
            sequence: 0,
            asked: BTreeMap::new(),
        });
        self.denied = None;
        self.parts.resources.equipments.reached(self.told);
        self.leases.set_terms(Terms {
            ttl: told(welcome.lease_ttl).max(SHORTEST),
            max_detached: told(welcome.max_detached),
        });
        tracing::info!(protocol = welcome.protocol, "connected to the coordinator");
        for attempt in welcome.stop.iter().filter_map(|id| parse(id)) {
            let reason = StopReason::Ordered("the coordinator gave it up".to_owned());
            self.parts.resources.live.stop(attempt, reason);
        }
        match self.course {
            Course::Taking => {}
            Course::Draining | Course::Finishing { .. } | Course::HandingBack { .. } | Course::ShutOut { .. } => {
                self.send(ToCoordinator::Draining(v1::Draining {}));
            }
        }
    }

    fn heartbeat(&mut self) {
        let resources = &self.parts.resources;
        resources.equipments.look_again();
        let running = resources.live.keys().into_iter().map(Into::into).collect();
        let hindrance = resources.outbox.hindrances().now().unwrap_or_default();
        let ControlLink::Up(connected) = &mut self.link else {
            return;
        };
        let Some(welcome) = &mut connected.welcome else {
            return;
        };
        let now = Instant::now();
        // The coordinator withdrew the offer after all, which it does silently.
        let terms = self.leases.terms();
        self.accepted.retain(|_, accepted| now - accepted.at < terms.ttl);
        welcome.next = now + welcome.interval;
        welcome.sequence += 1;
        welcome.asked.insert(welcome.sequence, now);
        let sequence = welcome.sequence;
        self.send(ToCoordinator::Heartbeat(v1::Heartbeat {
            sequence,
            running,
            hindrance,
        }));
    }

    fn heartbeat_ack(&mut self, ack: &v1::HeartbeatAck) {
        let ControlLink::Up(connected) = &mut self.link else {
            return;
        };
        let Some(asked) = connected.welcome.as_mut().and_then(|welcome| {
            let asked = welcome.asked.remove(&ack.sequence);
            // Earlier heartbeats will not be answered any more.
            welcome.asked = welcome.asked.split_off(&ack.sequence);
            asked
        }) else {
            tracing::debug!(sequence = ack.sequence, "acknowledged a heartbeat that was not sent");
            return;
        };
        for attempt in ack.renewed.iter().filter_map(|id| parse(id)) {
            if let Some(effect) = self.leases.renew(attempt, asked) {
                self.carry_out(effect);
            }
        }
    }

    fn carry_out(&self, effect: Effect) {
        let freeze = |attempt: AttemptId, frozen: bool| {
            tracing::warn!(%attempt, frozen, "the lease decides");
            if let Some(sender) = self.frozen.get(&attempt) {
                sender.send_replace(frozen);
            }
        };
        match effect {
            Effect::Freeze(attempt) => freeze(attempt, true),
            Effect::Thaw(attempt) => freeze(attempt, false),
            Effect::Kill(attempt) => self.parts.resources.live.stop(attempt, StopReason::Detached),
        }
    }

    fn attempt_ended(&mut self, joined: Result<(Id, ()), JoinError>) {
        let (id, crash) = match joined {
            Ok((id, ())) => (id, None),
            Err(error) => (error.id(), Some(error.to_string())),
        };
        let Some(attempt) = self.attempts.remove(&id) else {
            return;
        };
        self.leases.end(attempt);
        self.frozen.remove(&attempt);
        if let Some(why) = crash {
            tracing::error!(%attempt, why, "attempt crashed");
            // Beside the loop: it may have to wait for space, and heartbeats must not.
            let resources = Arc::clone(&self.parts.resources);
            self.running
                .spawn(async move { resources.crashed(attempt, &why).await });
        }
    }

    fn stop_taking(&mut self, course: Course) {
        self.course = course;
        self.send(ToCoordinator::Draining(v1::Draining {}));
    }

    /// How long stopped attempts may take to end.
    fn patience(&self) -> Duration {
        self.parts.resources.limits.stop_grace * 2 + Duration::from_secs(10)
    }

    fn hand_back(&mut self) {
        tracing::info!(attempts = self.running.len(), "handing running attempts back");
        let until = Instant::now() + self.patience();
        self.stop_taking(Course::HandingBack { until });
        self.accepted.clear();
        self.parts.resources.live.stop_all(&StopReason::HandedBack);
    }
}

fn parse(attempt_id: &str) -> Option<AttemptId> {
    let parsed = attempt_id.parse();
    if parsed.is_err() {
        tracing::warn!(attempt = attempt_id, "the coordinator named a malformed attempt");
    }
    parsed.ok()
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

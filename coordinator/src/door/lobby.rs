//! Counts connections, and decides which one is closed when there are too many. A connection is a
//! stranger's until its certificate or one of its calls identifies the caller. Strangers have few
//! places, in total and per address. The newest stranger is admitted, and another one is closed:
//! the oldest that has sent nothing, so that silent connections keep nobody out, or else a random
//! one. Not the oldest of those that have sent something, because it is the closest to being
//! identified: when many agents behind one address reconnect at once, each would be closed just
//! before that. Known callers keep their places.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::ConnectionLimits;
use crate::telemetry::{self, Cut};

/// The interval of log messages about a full lobby.
const TELL: Duration = Duration::from_secs(10);

/// The maximum numbers of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Caps {
    pub(crate) all: usize,
    pub(crate) strangers: usize,
    pub(crate) of_address: usize,
}

impl Caps {
    /// The limits of a process that may open so many files.
    pub(crate) fn of(limits: &ConnectionLimits, files: Option<u64>) -> Self {
        // The other half is for the database, blobs, output, and the pipes of git.
        let affordable = files.map_or(usize::MAX, |files| usize::try_from(files / 2).unwrap_or(usize::MAX));
        let all = limits.all.min(affordable).max(2);
        // Half of all places are reserved for known callers, however few there are.
        let strangers = limits.strangers.min(all / 2).max(1);
        Self {
            all,
            strangers,
            of_address: limits.strangers_per_address.min(strangers).max(1),
        }
    }
}

/// The origin of a connection, for counting strangers and wrong tokens. In IPv6 one machine has a whole /64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct From(IpAddr);

impl From {
    pub(crate) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self(address.into()),
            IpAddr::V6(address) => Self(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into()),
        }
    }
}

#[derive(Debug)]
struct Seat {
    from: From,
    cut: CancellationToken,
}

/// The strangers of one address.
#[derive(Debug, Default)]
struct OfAddress {
    /// Strangers that have sent nothing yet.
    silent: BTreeSet<u64>,
    speaking: BTreeSet<u64>,
}

impl OfAddress {
    fn len(&self) -> usize {
        self.silent.len() + self.speaking.len()
    }

    /// The stranger to close; `draw` is a random number.
    fn next_to_go(&self, draw: usize) -> Option<u64> {
        let any = || self.speaking.iter().nth(draw % self.speaking.len().max(1));
        self.silent.first().or_else(any).copied()
    }
}

/// The connections. Synchronous; numbers rise, so a smaller number is older.
#[derive(Debug, Default)]
struct Seats {
    known: usize,
    strangers: BTreeMap<u64, Seat>,
    by_address: HashMap<From, OfAddress>,
    next: u64,
}

impl Seats {
    /// Admits a connection, and returns the one that was closed for it. An error if none can be
    /// closed. `draw` is a random number.
    fn enter(
        &mut self,
        from: From,
        cut: CancellationToken,
        caps: Caps,
        draw: usize,
    ) -> Result<(u64, Option<Cut>), Cut> {
        let reason = if self.by_address.get(&from).map_or(0, OfAddress::len) >= caps.of_address {
            self.make_room(from, draw);
            Some(Cut::Address)
        } else if self.strangers.len() >= caps.strangers || self.known + self.strangers.len() >= caps.all {
            let most = self.by_address.iter().max_by_key(|(from, seats)| (seats.len(), **from));
            match most.map(|(from, _)| *from) {
                Some(from) => self.make_room(from, draw),
                None => return Err(Cut::Full),
            }
            Some(Cut::Strangers)
        } else {
            None
        };
        let number = self.next;
        self.next += 1;
        self.strangers.insert(number, Seat { from, cut });
        self.by_address.entry(from).or_default().silent.insert(number);
        Ok((number, reason))
    }

    fn make_room(&mut self, from: From, draw: usize) {
        let goes = self.by_address.get(&from).and_then(|seats| seats.next_to_go(draw));
        if let Some(seat) = goes.and_then(|number| self.remove(number)) {
            seat.cut.cancel();
        }
    }

    /// Notes that a stranger sent something.
    fn speaks(&mut self, number: u64) {
        if let Some(seat) = self.strangers.get(&number)
            && let Some(seats) = self.by_address.get_mut(&seat.from)
            && seats.silent.remove(&number)
        {
            seats.speaking.insert(number);
        }
    }

    fn remove(&mut self, number: u64) -> Option<Seat> {
        let seat = self.strangers.remove(&number)?;
        if let Some(seats) = self.by_address.get_mut(&seat.from) {
            seats.silent.remove(&number);
            seats.speaking.remove(&number);
            if seats.len() == 0 {
                self.by_address.remove(&seat.from);
            }
        }
        Some(seat)
    }

    /// Marks a stranger as known. False if it was closed already.
    fn promote(&mut self, number: u64) -> bool {
        let there = self.remove(number).is_some();
        self.known += usize::from(there);
        there
    }

    fn leave(&mut self, number: u64, known: bool) {
        if known {
            self.known -= 1;
        } else {
            self.remove(number);
        }
    }
}

/// Connections closed since the last log message.
#[derive(Debug, Default)]
struct Told {
    last: Option<Instant>,
    since: u64,
}

#[derive(Debug)]
pub(crate) struct Lobby {
    caps: Caps,
    limits: ConnectionLimits,
    seats: Mutex<Seats>,
    told: Mutex<Told>,
}

impl Lobby {
    pub(crate) fn new(limits: ConnectionLimits, caps: Caps) -> Arc<Self> {
        Arc::new(Self {
            caps,
            limits,
            seats: Mutex::default(),
            told: Mutex::default(),
        })
    }

    /// A connection came in. `None` = there is no place for it.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Arc<Guest>> {
        let cut = CancellationToken::new();
        let draw = rand::random::<u32>() as usize;
        let entered = self.seats().enter(From::of(address), cut.clone(), self.caps, draw);
        let (number, reason) = match entered {
            Ok((number, reason)) => (Some(number), reason),
            Err(reason) => (None, Some(reason)),
        };
        if let Some(reason) = reason {
            self.tell(reason, address);
        }
        Some(Arc::new(Guest {
            lobby: Arc::clone(self),
            address,
            number: number?,
            known: AtomicBool::new(false),
            cut,
            streams: Mutex::new(Streams {
                open: 0,
                changed: Instant::now(),
            }),
        }))
    }

    fn tell(&self, reason: Cut, address: IpAddr) {
        telemetry::connection_cut(reason);
        let now = Instant::now();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.since += 1;
        if told.last.is_none_or(|last| now - last >= TELL) {
            let cut = std::mem::take(&mut told.since);
            told.last = Some(now);
            tracing::warn!(
                reason = reason.as_str(),
                cut,
                last = %address,
                "too many connections of callers that have not shown who they are: others are cut for new ones"
            );
        }
    }

    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Calls that are open on a connection, and when the last one began or ended.
#[derive(Debug, Clone, Copy)]
struct Streams {
    open: usize,
    changed: Instant,
}

/// Whether a connection has to end now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Due {
    /// Check again at this time.
    Later(Instant),
    Now(Cut),
}

/// One connection. Dropped when it ends.
#[derive(Debug)]
pub(crate) struct Guest {
    lobby: Arc<Lobby>,
    address: IpAddr,
    number: u64,
    known: AtomicBool,
    cut: CancellationToken,
    streams: Mutex<Streams>,
}

impl Guest {
    /// Cancelled when the connection has to end at once.
    pub(crate) const fn cut(&self) -> &CancellationToken {
        &self.cut
    }

    /// The address of the other side.
    pub(crate) const fn address(&self) -> IpAddr {
        self.address
    }

    /// Notes that the caller sent something.
    pub(crate) fn speaks(&self) {
        self.lobby.seats().speaks(self.number);
    }

    /// Notes that the caller has been identified.
    pub(crate) fn is_known(&self) {
        if !self.known.load(Ordering::Relaxed) && self.lobby.seats().promote(self.number) {
            self.known.store(true, Ordering::Relaxed);
        }
    }

    /// Counts a new call until the returned value is dropped.
    pub(crate) fn begin(self: &Arc<Self>) -> Open {
        self.change(|open| open + 1);
        Open(Arc::clone(self))
    }

    /// The number of open calls.
    pub(crate) fn open(&self) -> usize {
        self.streams().open
    }

    /// Time limit of a stranger's request.
    pub(crate) fn stranger_request(&self) -> Duration {
        self.lobby.limits.stranger_request
    }

    /// When the connection has to end if nothing happens on it.
    pub(crate) fn due(&self, now: Instant) -> Due {
        let limits = &self.lobby.limits;
        let Streams { open, changed } = *self.streams();
        let (until, reason) = match (self.known.load(Ordering::Relaxed), open) {
            (true, 0) => (changed + limits.idle, Cut::Idle),
            // A watch or a push may take any time.
            (true, _) => return Due::Later(now + limits.idle),
            (false, 0) => (changed + limits.first_request, Cut::NoRequest),
            // The request's own limit ends it earlier; this is for callers that do not read the
            // response.
            (false, _) => (changed + limits.stranger_request + limits.first_request, Cut::NoRequest),
        };
        if until <= now {
            Due::Now(reason)
        } else {
            Due::Later(until)
        }
    }

    fn change(&self, change: impl FnOnce(usize) -> usize) {
        let mut streams = self.streams();
        streams.open = change(streams.open);
        streams.changed = Instant::now();
    }

    fn streams(&self) -> MutexGuard<'_, Streams> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let known = *self.known.get_mut();
        self.lobby.seats().leave(self.number, known);
    }
}

/// An open call; it counts until it is dropped.
#[derive(Debug)]
pub(crate) struct Open(Arc<Guest>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.change(|open| open - 1);
    }
}

#[cfg(test)]
mod tests;

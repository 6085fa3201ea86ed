//! What is to be delivered and what was: per attempt the events and output that the coordinator has
//! not acknowledged, and what to send next. Synchronous and without I/O; `sender` drives it.
//!
//! Events go before output, attempts take turns, and the bytes in flight are bounded. An attempt's
//! `Finished` waits until all its output is acknowledged, because the coordinator accepts nothing
//! more of an attempt that has ended.
//!
//! A piece of output that does not fill a batch is sent at once when no other such piece of its
//! stream is in flight; otherwise it gathers until that piece is acknowledged. So a line after a
//! pause is sent without delay, and many lines cost the coordinator a sync per round trip, not one
//! each.

use std::collections::{HashMap, VecDeque};

use kage_core::event::OutputStream;
use kage_core::id::AttemptId;
use kage_proto::v1;
use kage_proto::v1::event::Body;
use kage_proto::{MAX_INLINE, convert::agent::AttemptKey};

use crate::delivery::outbox::{Leftover, OutboxChange, Stored};

/// The most events of one batch; bytes limit it too.
const BATCH_EVENTS: usize = 512;
/// The most bytes of output in flight.
pub(crate) const WINDOW: u64 = 8 << 20;

#[derive(Debug, Clone, PartialEq)]
#[must_use]
pub(crate) enum Next {
    /// Consecutive events of one attempt.
    Events(AttemptKey, Vec<v1::Event>),
    /// A piece of an output file.
    Output {
        key: AttemptKey,
        stream: OutputStream,
        offset: u64,
        length: usize,
    },
    /// Nothing may be sent now.
    Nothing,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[must_use]
pub(crate) struct Progress {
    /// The new durable position, if it advanced.
    pub(crate) acked: Option<u64>,
    /// Freed space for events.
    pub(crate) event_bytes: u64,
    /// Freed space for output.
    pub(crate) output_bytes: u64,
    /// Everything of the attempt is delivered.
    pub(crate) delivered: bool,
    /// The delivered attempt has output files.
    pub(crate) had_output: bool,
}

#[derive(Debug, Default, Clone, Copy)]
struct Output {
    length: u64,
    sent: u64,
    acked: u64,
    /// End of the last piece in flight that did not fill a batch.
    partial: u64,
    queued: bool,
}

impl Output {
    /// Whether the unsent output is to be sent now. `closed`: no more output will follow to gather
    /// with it.
    const fn is_due(&self, closed: bool) -> bool {
        let unsent = self.length.saturating_sub(self.sent);
        unsent >= MAX_INLINE as u64 || unsent > 0 && (closed || self.partial <= self.acked)
    }

    /// Resumes sending at `offset`.
    const fn go_back(&mut self, offset: u64) {
        self.sent = offset;
        self.partial = offset;
    }
}

#[derive(Debug)]
struct LedgerEntry {
    key: AttemptKey,
    /// Unacknowledged, by number.
    events: VecDeque<Stored>,
    acked_seq: u64,
    sent_seq: u64,
    queued: bool,
    output: [Output; 3],
    /// No more will come: the attempt finished, or an earlier start of this agent left it.
    closed: bool,
    /// Left by an earlier start: its data occupies no space of this start.
    leftover: bool,
}

const fn index(stream: OutputStream) -> usize {
    match stream {
        OutputStream::Stdout => 0,
        OutputStream::Stderr => 1,
        OutputStream::Transcript => 2,
    }
}

fn is_finished(event: &v1::Event) -> bool {
    matches!(event.body, Some(Body::Finished(_)))
}

impl LedgerEntry {
    fn new(key: AttemptKey) -> Self {
        Self {
            key,
            events: VecDeque::new(),
            acked_seq: 0,
            sent_seq: 0,
            queued: false,
            output: [Output::default(); 3],
            closed: false,
            leftover: false,
        }
    }

    fn output_delivered(&self) -> bool {
        self.output.iter().all(|output| output.acked >= output.length)
    }

    fn has_output(&self) -> bool {
        self.output.iter().any(|output| output.length > 0)
    }

    fn delivered(&self) -> bool {
        self.closed && self.events.is_empty() && self.output_delivered()
    }

    /// The next events, within the limits of a batch. Empty when there are none, or when only
    /// `Finished` is left and output has to be acknowledged first.
    fn next_events(&self) -> Vec<v1::Event> {
        let mut bytes = 0;
        let output_delivered = self.output_delivered();
        self.events
            .iter()
            .skip_while(|stored| stored.event.seq <= self.sent_seq)
            .take(BATCH_EVENTS)
            .take_while(|stored| {
                let first = bytes == 0;
                bytes += stored.size as usize;
                (first || bytes <= MAX_INLINE) && (output_delivered || !is_finished(&stored.event))
            })
            .map(|stored| stored.event.clone())
            .collect()
    }

    fn undelivered(&self) -> Progress {
        let event_bytes = self.events.iter().map(|stored| u64::from(stored.size)).sum();
        let output_bytes = self.output.iter().map(|output| output.length - output.acked).sum();
        if self.leftover {
            Progress::default()
        } else {
            Progress {
                event_bytes,
                output_bytes,
                ..Progress::default()
            }
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Ledger {
    entries: HashMap<AttemptId, LedgerEntry>,
    events: VecDeque<AttemptId>,
    output: VecDeque<(AttemptId, OutputStream)>,
    in_flight: u64,
}

impl Ledger {
    /// Starts with the leftovers of an earlier start.
    pub(crate) fn new(leftovers: Vec<Leftover>) -> Self {
        let mut ledger = Self::default();
        for leftover in leftovers {
            let mut entry = LedgerEntry::new(leftover.key);
            let attempt = entry.key.attempt;
            entry.closed = true;
            entry.leftover = true;
            entry.acked_seq = leftover.events.first().map_or(0, |first| first.event.seq - 1);
            entry.sent_seq = entry.acked_seq;
            entry.events = leftover.events.into();
            for (stream, length, acked) in leftover.output {
                entry.output[index(stream)] = Output {
                    length,
                    sent: acked,
                    acked,
                    partial: acked,
                    queued: false,
                };
            }
            ledger.entries.insert(attempt, entry);
        }
        ledger.resend();
        ledger
    }

    /// Attempts without anything undelivered that were never reported as delivered: leftovers whose
    /// last acknowledgement was saved and whose removal was not.
    pub(crate) fn already_delivered(&self) -> Vec<AttemptId> {
        let delivered = self.entries.iter().filter(|(_, entry)| entry.delivered());
        let mut delivered: Vec<_> = delivered.map(|(attempt, _)| *attempt).collect();
        delivered.sort_unstable();
        delivered
    }

    /// True while something of an earlier start is undelivered.
    pub(crate) fn has_leftovers(&self) -> bool {
        self.entries.values().any(|entry| entry.leftover)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn apply(&mut self, change: OutboxChange) -> Progress {
        match change {
            OutboxChange::Opened(key) => {
                self.entries.insert(key.attempt, LedgerEntry::new(key));
            }
            OutboxChange::Committed(attempt, stored) => match self.entries.get_mut(&attempt) {
                Some(entry) => {
                    let closes = is_finished(&stored.event);
                    entry.closed |= closes;
                    entry.events.push_back(stored);
                    self.queue_events(attempt);
                    if closes {
                        for stream in OutputStream::ALL {
                            self.queue_output(attempt, stream);
                        }
                    }
                }
                // The attempt was refused in the meantime; later data of it occupies no space.
                None => {
                    return Progress {
                        event_bytes: stored.size.into(),
                        ..Progress::default()
                    };
                }
            },
            OutboxChange::Grew {
                attempt,
                stream,
                length,
                added,
            } => match self.entries.get_mut(&attempt) {
                Some(entry) => {
                    let output = &mut entry.output[index(stream)];
                    output.length = output.length.max(length);
                    self.queue_output(attempt, stream);
                }
                None => {
                    return Progress {
                        output_bytes: added,
                        ..Progress::default()
                    };
                }
            },
        }
        Progress::default()
    }

    /// What to send next. The caller sends it, or calls [`Ledger::resend`] after a new connection.
    pub(crate) fn next(&mut self) -> Next {
        while let Some(attempt) = self.events.pop_front() {
            let Some(entry) = self.entries.get_mut(&attempt) else {
                continue;
            };
            entry.queued = false;
            let events = entry.next_events();
            let Some(last) = events.last() else {
                continue;
            };
            entry.sent_seq = last.seq;
            let key = entry.key.clone();
            self.queue_events(attempt);
            return Next::Events(key, events);
        }
        while self.in_flight < WINDOW
            && let Some((attempt, stream)) = self.output.pop_front()
        {
            let Some(entry) = self.entries.get_mut(&attempt) else {
                continue;
            };
            let output = &mut entry.output[index(stream)];
            output.queued = false;
            if !output.is_due(entry.closed) {
                continue;
            }
            let length = (output.length - output.sent).min(MAX_INLINE as u64);
            let offset = output.sent;
            output.sent += length;
            if length < MAX_INLINE as u64 {
                output.partial = output.sent;
            }
            self.in_flight += length;
            let key = entry.key.clone();
            self.queue_output(attempt, stream);
            return Next::Output {
                key,
                stream,
                offset,
                // At most 64 KiB.
                length: length as usize,
            };
        }
        Next::Nothing
    }

    /// Whether [`Ledger::next`] may have something.
    pub(crate) fn has_next(&self) -> bool {
        !self.events.is_empty() || (self.in_flight < WINDOW && !self.output.is_empty())
    }

    /// Something was sent and is not acknowledged.
    pub(crate) fn awaits_acks(&self) -> bool {
        self.in_flight > 0 || self.entries.values().any(|entry| entry.sent_seq > entry.acked_seq)
    }

    /// Events up to `seq` are durable. An acknowledgement without progress means that the
    /// coordinator lacks something: it is sent again.
    pub(crate) fn acked_events(&mut self, attempt: AttemptId, seq: u64) -> Progress {
        let Some(entry) = self.entries.get_mut(&attempt) else {
            return Progress::default();
        };
        if seq <= entry.acked_seq {
            if entry.sent_seq > entry.acked_seq {
                entry.sent_seq = entry.acked_seq;
                self.queue_events(attempt);
            }
            return Progress::default();
        }
        let mut event_bytes = 0;
        while entry.events.front().is_some_and(|stored| stored.event.seq <= seq) {
            event_bytes += entry.events.pop_front().map_or(0, |stored| u64::from(stored.size));
        }
        entry.acked_seq = seq;
        entry.sent_seq = entry.sent_seq.max(seq);
        let progress = Progress {
            acked: Some(seq),
            event_bytes: if entry.leftover { 0 } else { event_bytes },
            output_bytes: 0,
            delivered: entry.delivered(),
            had_output: entry.has_output(),
        };
        if progress.delivered {
            self.entries.remove(&attempt);
        }
        progress
    }

    /// Output before `offset` is durable. Without progress it is sent again from there.
    pub(crate) fn acked_output(&mut self, attempt: AttemptId, stream: OutputStream, offset: u64) -> Progress {
        let Some(entry) = self.entries.get_mut(&attempt) else {
            return Progress::default();
        };
        let output = &mut entry.output[index(stream)];
        if offset <= output.acked {
            if output.sent > offset {
                self.in_flight = self.in_flight.saturating_sub(output.sent.saturating_sub(output.acked));
                output.go_back(offset);
                self.queue_output(attempt, stream);
            }
            return Progress::default();
        }
        // The offset can exceed the length when the file lost its end in a power failure.
        let offset = offset.min(output.length);
        let acked = offset - output.acked;
        self.in_flight = self
            .in_flight
            .saturating_sub(acked.min(output.sent.saturating_sub(output.acked)));
        output.acked = offset;
        output.sent = output.sent.max(offset);
        let progress = Progress {
            acked: Some(offset),
            event_bytes: 0,
            output_bytes: if entry.leftover { 0 } else { acked },
            delivered: entry.delivered(),
            had_output: true,
        };
        if progress.delivered {
            self.entries.remove(&attempt);
            return progress;
        }
        if entry.output_delivered() {
            // `Finished` may have waited for this.
            self.queue_events(attempt);
        }
        // Output that came meanwhile may have waited for this.
        self.queue_output(attempt, stream);
        progress
    }

    /// The coordinator accepts nothing more of this attempt.
    pub(crate) fn drop_attempt(&mut self, attempt: AttemptId) -> Progress {
        let Some(entry) = self.entries.remove(&attempt) else {
            return Progress::default();
        };
        let on_its_way: u64 = entry
            .output
            .iter()
            .map(|output| output.sent.saturating_sub(output.acked))
            .sum();
        self.in_flight = self.in_flight.saturating_sub(on_its_way);
        Progress {
            delivered: true,
            had_output: entry.has_output(),
            ..entry.undelivered()
        }
    }

    /// Resumes after the last acknowledgements, on a new connection.
    pub(crate) fn resend(&mut self) {
        self.in_flight = 0;
        let mut attempts: Vec<_> = self.entries.keys().copied().collect();
        attempts.sort_unstable();
        for attempt in attempts {
            if let Some(entry) = self.entries.get_mut(&attempt) {
                entry.sent_seq = entry.acked_seq;
                for output in &mut entry.output {
                    output.go_back(output.acked);
                }
            }
            self.queue_events(attempt);
            for stream in OutputStream::ALL {
                self.queue_output(attempt, stream);
            }
        }
    }

    fn queue_events(&mut self, attempt: AttemptId) {
        if let Some(entry) = self.entries.get_mut(&attempt)
            && !entry.queued
            && entry.events.back().is_some_and(|last| last.event.seq > entry.sent_seq)
        {
            entry.queued = true;
            self.events.push_back(attempt);
        }
    }

    fn queue_output(&mut self, attempt: AttemptId, stream: OutputStream) {
        if let Some(entry) = self.entries.get_mut(&attempt) {
            let output = &mut entry.output[index(stream)];
            if !output.queued && output.is_due(entry.closed) {
                output.queued = true;
                self.output.push_back((attempt, stream));
            }
        }
    }
}

#[cfg(test)]
mod tests;

//! A fleet that calls one account without a pause, against a provider that counts exactly: agents are killed, words
//! are lost, the queue is lost, and the limits are halved in the middle. Time is played.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::*;

const SESSIONS: usize = 64;
const PER_AGENT: usize = 8;
const TASKS: u128 = 8;
/// When the queue is lost, and when the limits are halved.
const LOST: Duration = Duration::from_secs(200);
const HALVED: Duration = Duration::from_secs(300);
const END: Duration = Duration::from_secs(600);
/// How long a question is held, and when it comes again.
const HOLD: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(50);

/// Numbers that look random.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }
}

/// One limit of the provider: a bucket that is filled evenly, or a window that begins anew.
#[derive(Debug, Clone, Copy)]
struct Counted {
    limit: f64,
    left: f64,
    at: Timestamp,
    /// What was allowed in all.
    allowed: f64,
    has_windows: bool,
}

impl Counted {
    fn new(limit: f64, has_windows: bool) -> Self {
        Self {
            limit,
            left: limit,
            at: START,
            allowed: limit,
            has_windows,
        }
    }

    fn advance(&mut self, now: Timestamp) {
        let before = self.left;
        if self.has_windows {
            let window = |at: Timestamp| at.since(START).as_secs() / 60;
            if window(now) > window(self.at) {
                self.left = self.limit;
                self.allowed += self.limit;
            }
        } else {
            let more = self.limit * now.since(self.at).as_secs_f64() / 60.0;
            self.left = (before + more).min(self.limit);
            self.allowed += self.left - before;
        }
        self.at = now;
    }

    fn halve(&mut self, now: Timestamp) {
        self.advance(now);
        let before = self.left;
        self.limit /= 2.0;
        self.left = before.min(self.limit);
        self.allowed -= before - self.left;
    }

    /// Until so much is left.
    fn until(&self, need: f64) -> Duration {
        if self.has_windows {
            return Duration::from_secs(60 - self.at.since(START).as_secs() % 60);
        }
        Duration::from_secs_f64(((need - self.left) / self.limit * 60.0).max(0.0))
    }

    fn told(&self) -> Option<LimitTold> {
        Some(LimitTold {
            limit: Some(self.limit as u64),
            remaining: self.left.max(0.0) as u64,
            reset: Some(self.until(self.limit)),
        })
    }
}

struct Provider {
    requests: Counted,
    input: Counted,
    output: Counted,
    refused: u64,
    served: u64,
}

impl Provider {
    /// What is told with the answer, or with a refusal.
    fn call(&mut self, input: f64, now: Timestamp) -> (bool, RateTold) {
        for limit in [&mut self.requests, &mut self.input, &mut self.output] {
            limit.advance(now);
        }
        let needs = [(&self.requests, 1.0), (&self.input, input), (&self.output, 1.0)];
        let missing = needs.iter().filter(|(limit, need)| limit.left < *need);
        let wait = missing.map(|(limit, need)| limit.until(*need)).max();
        if wait.is_none() {
            self.requests.left -= 1.0;
            self.input.left -= input;
            self.served += 1;
        } else {
            self.refused += 1;
        }
        let told = RateTold {
            requests: self.requests.told(),
            input: self.input.told(),
            output: self.output.told(),
            // In whole seconds, as in the header.
            retry_after: wait.map(|wait| Duration::from_secs(wait.as_secs() + 1)),
        };
        (wait.is_none(), told)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Happens {
    Lost,
    Halved,
    Killed(usize),
    /// A session looks whether it may go; the number is that of its question.
    Look(usize, u64),
    Arrives(usize, u64),
    Ends(usize, u64),
}

#[derive(Debug)]
struct Session {
    /// Counts its calls.
    call: u64,
    asked: Timestamp,
    /// Whether the call was let go.
    is_made: bool,
}

struct Fleet {
    dice: Dice,
    provider: Provider,
    queue: CallQueue,
    sessions: Vec<Session>,
    /// Calls served of each task.
    served: Vec<f64>,
    coming: BinaryHeap<Reverse<(Timestamp, u64, Happens)>>,
    count: u64,
    /// Tokens of input of a call that count.
    input: u64,
}

/// Of a run.
#[derive(Debug)]
struct Shares {
    refused: f64,
    throughput: f64,
    jain: f64,
}

impl Fleet {
    fn new(seed: u64, requests: f64, input: f64, has_windows: bool) -> Self {
        let limit = |limit| Counted::new(limit, has_windows);
        let mut fleet = Self {
            dice: Dice(seed * 2 + 1),
            provider: Provider {
                requests: limit(requests),
                input: limit(input),
                output: limit(600_000.0),
                refused: 0,
                served: 0,
            },
            queue: CallQueue::default(),
            sessions: Vec::new(),
            served: vec![0.0; TASKS as usize],
            coming: BinaryHeap::new(),
            count: 0,
            input: 2_000,
        };
        for session in 0..SESSIONS {
            fleet.sessions.push(Session {
                call: 0,
                asked: START,
                is_made: false,
            });
            fleet.at(START, Happens::Look(session, 0));
        }
        fleet.at(START + LOST, Happens::Lost);
        fleet.at(START + HALVED, Happens::Halved);
        for agent in 0..SESSIONS / PER_AGENT {
            let when = fleet.dice.millis(20_000, 550_000);
            fleet.at(START + when, Happens::Killed(agent));
        }
        fleet
    }

    fn at(&mut self, time: Timestamp, what: Happens) {
        self.count += 1;
        self.coming.push(Reverse((time, self.count, what)));
    }

    fn task(session: usize) -> u128 {
        // Half of all sessions are of one task.
        if session.is_multiple_of(2) {
            0
        } else {
            session as u128 / 2 % (TASKS - 1) + 1
        }
    }

    fn asked(&self, session: usize) -> CallAsked {
        let call = u128::from(self.sessions[session].call) * 1_000 + session as u128;
        CallAsked {
            // The bound is three times what counts, as of bytes.
            input: self.input * 3,
            ..asked(call, Self::task(session), None)
        }
    }

    fn play(mut self) -> Shares {
        while let Some(Reverse((now, _, what))) = self.coming.pop() {
            if now > START + END {
                break;
            }
            match what {
                Happens::Lost => self.queue = CallQueue::default(),
                Happens::Halved => {
                    for limit in [&mut self.provider.requests, &mut self.provider.input] {
                        limit.halve(now);
                    }
                }
                Happens::Killed(agent) => {
                    for session in agent * PER_AGENT..(agent + 1) * PER_AGENT {
                        let waits = self.asked(session).call;
                        self.queue.pause(waits, now);
                        self.next(session, now + seconds(3));
                    }
                }
                Happens::Look(session, call) if call == self.sessions[session].call => self.look(session, now),
                Happens::Arrives(session, call) if call == self.sessions[session].call => self.arrives(session, now),
                Happens::Ends(session, call) if call == self.sessions[session].call => self.ends(session, now),
                Happens::Look(..) | Happens::Arrives(..) | Happens::Ends(..) => {}
            }
            for call in self.queue.woken() {
                let session = (0..SESSIONS).find(|session| self.asked(*session).call == call);
                if let Some(session) = session {
                    self.at(now, Happens::Look(session, self.sessions[session].call));
                }
            }
        }
        let sum: f64 = self.served.iter().sum();
        let squares: f64 = self.served.iter().map(|served| served * served).sum();
        let served = self.provider.served as f64;
        let of = |limit: &Counted, size: f64| served * size / limit.allowed;
        let requests = of(&self.provider.requests, 1.0);
        Shares {
            refused: self.provider.refused as f64 / (self.provider.refused as f64 + served),
            throughput: requests.max(of(&self.provider.input, self.input as f64)),
            jain: sum * sum / (self.served.len() as f64 * squares),
        }
    }

    /// The session asks for its next call then.
    fn next(&mut self, session: usize, at: Timestamp) {
        let of = &mut self.sessions[session];
        of.call += 1;
        (of.asked, of.is_made) = (at, false);
        let call = of.call;
        self.at(at, Happens::Look(session, call));
    }

    fn look(&mut self, session: usize, now: Timestamp) {
        if self.sessions[session].is_made {
            return;
        }
        let asked = self.asked(session);
        let call = self.sessions[session].call;
        match self.queue.ask(&asked, now) {
            CallTurn::Go => {
                self.sessions[session].is_made = true;
                let arrives = now + self.dice.millis(1, 80);
                self.at(arrives, Happens::Arrives(session, call));
            }
            CallTurn::Held { .. } => panic!("no limit is used up for so long"),
            CallTurn::Wait { until, .. } => {
                let held = self.sessions[session].asked + HOLD;
                if now >= held {
                    self.queue.pause(asked.call, now);
                    self.sessions[session].asked = now + AGAIN;
                    self.at(now + AGAIN, Happens::Look(session, call));
                } else {
                    self.at(until.unwrap_or(held).min(held), Happens::Look(session, call));
                }
            }
        }
    }

    fn arrives(&mut self, session: usize, now: Timestamp) {
        let (is_served, told) = self.provider.call(self.input as f64, now);
        let call = self.asked(session).call;
        if !is_served {
            self.queue.released(call, &told, now);
            let wait = told.retry_after.unwrap_or_default();
            self.next(session, now + wait);
            return;
        }
        self.served[Self::task(session) as usize] += 1.0;
        // Now and then nobody hears that the answer began.
        if self.dice.below(100) > 0 {
            self.queue.started(call, &told, now);
        }
        let ends = now + self.dice.millis(200, 3_000);
        self.at(ends, Happens::Ends(session, self.sessions[session].call));
    }

    fn ends(&mut self, session: usize, now: Timestamp) {
        let output = self.dice.below(600);
        self.provider.output.advance(now);
        self.provider.output.left -= output as f64;
        let used = CallUsed {
            input: Some(self.input),
            output: Some(output),
        };
        let call = self.asked(session).call;
        self.queue.committed(call, used, &RateTold::default(), now);
        self.next(session, now + Duration::from_millis(20));
    }
}

#[test]
fn a_fleet_uses_what_its_account_allows_and_no_more() {
    for (requests, input, has_windows) in [(600.0, 1e9, false), (6_000.0, 1_200_000.0, false), (600.0, 1e9, true)] {
        for seed in [1, 7] {
            let shares = Fleet::new(seed, requests, input, has_windows).play();
            let words = format!("{requests} requests, {input} tokens, seed {seed}: {shares:?}");
            assert!(shares.refused <= 0.005, "{words}");
            assert!(shares.throughput >= 0.95, "{words}");
            // In a window that has just begun nobody waits for a turn.
            assert!(has_windows || shares.jain >= 0.9, "{words}");
        }
    }
}

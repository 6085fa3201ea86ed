//! The committed feed: what every commit changed, in order and numbered, for everything in memory
//! that follows the store. An engine tells of a commit after it is durable and before anybody is
//! answered. A follower reads at its own pace; it gets a gap, after which it has to read the store
//! again, when it fell behind, or when a commit's outcome is not known.
//!
//! ```text
//!   engine --committed, unknown--> Feed --next--> Follower (the cache of tasks)
//!                                      \---next--> Follower (board, identities, topics, ...)
//! ```
//! What every follower has read is dropped at once, so that the feed is nearly empty as a rule.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::change::{Change, EACH};

/// What entries may weigh together until a slow follower loses the oldest.
const MOST: usize = 64 << 20;

#[derive(Debug, PartialEq)]
pub(crate) struct Commit {
    /// Consecutive, from 1, while this process lives; commits of unknown outcome count too.
    pub(crate) number: u64,
    /// In the order in which they were made.
    pub(crate) changes: Vec<Change>,
}

/// What a follower reads.
#[derive(Debug, Clone)]
pub(crate) enum News {
    Commit(Arc<Commit>),
    /// Something is missing here: the store is to be read again.
    Gap,
}

#[derive(Debug)]
pub(super) struct Feed {
    most: usize,
    entries: Mutex<Entries>,
    /// The number of the last entry, for followers that have read it.
    last: AtomicU64,
    /// One permit is enough: whoever waits reads everything.
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Entries {
    /// Entries up to this one were dropped.
    dropped: u64,
    /// In order, without a hole. `None` = a commit of unknown outcome.
    kept: VecDeque<Option<Arc<Commit>>>,
    weight: usize,
    /// The last entry that each follower has read.
    read: BTreeMap<u64, u64>,
    followers: u64,
}

impl Default for Feed {
    fn default() -> Self {
        Self::with_most(MOST)
    }
}

impl Feed {
    fn with_most(most: usize) -> Self {
        Self {
            most,
            entries: Mutex::default(),
            last: AtomicU64::new(0),
            arrived: Notify::new(),
        }
    }

    /// A commit is durable. One that changed nothing that anybody follows is not told.
    pub(super) fn committed(&self, changes: Vec<Change>) {
        if !changes.is_empty() {
            self.push(Some(changes));
        }
    }

    /// Nobody knows whether a commit is durable.
    pub(super) fn unknown(&self) {
        self.push(None);
    }

    fn push(&self, changes: Option<Vec<Change>>) {
        let mut entries = self.lock();
        let number = entries.last() + 1;
        let entry = changes.map(|changes| Arc::new(Commit { number, changes }));
        entries.weight += weight(entry.as_deref());
        entries.kept.push_back(entry);
        while entries.weight > self.most {
            entries.drop_oldest();
        }
        entries.tidy();
        self.last.store(number, Ordering::Release);
        drop(entries);
        self.arrived.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        // Every change is done in whole steps.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries {
    fn last(&self) -> u64 {
        self.dropped + self.kept.len() as u64
    }

    fn drop_oldest(&mut self) {
        if let Some(entry) = self.kept.pop_front() {
            self.weight -= weight(entry.as_deref());
            self.dropped += 1;
        }
    }

    /// Drops what every follower has read.
    fn tidy(&mut self) {
        let read = self.read.values().min().copied().unwrap_or(u64::MAX);
        while self.dropped < read && !self.kept.is_empty() {
            self.drop_oldest();
        }
    }
}

fn weight(entry: Option<&Commit>) -> usize {
    entry.map_or(EACH, |commit| commit.changes.iter().map(Change::weight).sum())
}

/// A reader of the feed.
#[derive(Debug)]
pub(crate) struct Follower {
    feed: Arc<Feed>,
    id: u64,
    /// The last entry that it has read.
    read: u64,
}

impl Follower {
    /// One that reads what is committed from now on.
    pub(super) fn new(feed: Arc<Feed>) -> Self {
        let mut entries = feed.lock();
        entries.followers += 1;
        let (id, read) = (entries.followers, entries.last());
        entries.read.insert(id, read);
        drop(entries);
        Self { feed, id, read }
    }

    /// What comes next, when it is there already.
    pub(crate) fn next(&mut self) -> Option<News> {
        if self.feed.last.load(Ordering::Acquire) == self.read {
            return None;
        }
        let mut entries = self.feed.lock();
        let news = if self.read < entries.dropped {
            self.read = entries.dropped;
            News::Gap
        } else {
            let index = usize::try_from(self.read - entries.dropped).unwrap_or(usize::MAX);
            let entry = entries.kept.get(index)?.clone();
            self.read += 1;
            entry.map_or(News::Gap, News::Commit)
        };
        entries.read.insert(self.id, self.read);
        entries.tidy();
        Some(news)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let mut entries = self.feed.lock();
        entries.read.remove(&self.id);
        entries.tidy();
    }
}

/// Says that something was committed, to one who waits for it. What came since it last waited
/// counts.
#[derive(Debug, Clone)]
pub(crate) struct Arrivals(pub(super) Arc<Feed>);

impl Arrivals {
    pub(crate) async fn wait(&self) {
        self.0.arrived.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use kage_core::id::AgentId;
    use kage_core::time::Timestamp;

    use super::*;

    fn seen(n: u64) -> Change {
        Change::AgentSeen(AgentId::from_random(1), Timestamp::from_millis(n))
    }

    /// The numbers of the commits that a follower gets; 0 for a gap.
    fn read(follower: &mut Follower) -> Vec<u64> {
        let news = std::iter::from_fn(|| follower.next());
        let numbers = news.map(|news| match news {
            News::Commit(commit) => {
                assert_eq!(commit.changes, [seen(commit.number)]);
                commit.number
            }
            News::Gap => 0,
        });
        numbers.collect()
    }

    #[test]
    fn each_follower_gets_everything_once_and_in_order_and_then_it_is_dropped() {
        let feed = Arc::new(Feed::default());
        feed.committed(vec![seen(1)]);
        assert!(feed.lock().kept.is_empty(), "nobody follows");
        let mut first = Follower::new(Arc::clone(&feed));
        feed.committed(vec![seen(2)]);
        feed.committed(Vec::new());
        let mut second = Follower::new(Arc::clone(&feed));
        feed.committed(vec![seen(3)]);
        feed.unknown();
        feed.committed(vec![seen(5)]);
        assert_eq!(read(&mut first), [2, 3, 0, 5]);
        assert_eq!(read(&mut second), [3, 0, 5]);
        assert_eq!(read(&mut second), [0; 0]);
        assert!(feed.lock().kept.is_empty());
        feed.committed(vec![seen(6)]);
        read(&mut first);
        assert_eq!(feed.lock().kept.len(), 1);
        drop(second);
        let entries = feed.lock();
        assert_eq!((entries.kept.len(), entries.weight), (0, 0));
    }

    #[test]
    fn a_follower_that_is_too_slow_gets_a_gap_and_goes_on_behind_it() {
        let feed = Arc::new(Feed::with_most(3 * seen(1).weight()));
        let mut slow = Follower::new(Arc::clone(&feed));
        let mut quick = Follower::new(Arc::clone(&feed));
        for n in 1..=5 {
            feed.committed(vec![seen(n)]);
            assert_eq!(read(&mut quick), [n]);
        }
        assert_eq!(read(&mut slow), [0, 3, 4, 5]);
    }
}

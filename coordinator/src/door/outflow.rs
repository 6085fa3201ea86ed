//! What waits for the network of watchers: so many bytes for each, and so many for all together. A watcher that
//! reads slowly is sent no more until it reads, and one that does not go on reading is cut: what waits for it is
//! dropped, and it goes on from its cursor when it comes again. What hyper and the kernel hold comes on top.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use kage_proto::MAX_INLINE;
use kage_proto::status::ApiError;
use prost::Message;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// Bytes that wait for one watcher: eight pieces of output. A larger message waits alone.
const EACH: usize = 8 * MAX_INLINE;
/// How long a watcher may take nothing while something waits for it, and how soon it may come again.
const PATIENCE: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_secs(1);

/// The watchers that share the memory.
#[derive(Debug)]
pub(crate) struct Outflows {
    all: Arc<Semaphore>,
    most: usize,
}

impl Outflows {
    /// Holds at most so many bytes. 0 = no limit.
    pub(crate) fn new(most: u64) -> Self {
        let most = match usize::try_from(most) {
            Ok(0) | Err(_) => Semaphore::MAX_PERMITS,
            Ok(most) => most.min(Semaphore::MAX_PERMITS),
        };
        Self {
            all: Arc::new(Semaphore::new(most)),
            most,
        }
    }

    /// A way to another watcher.
    pub(crate) fn open<T>(&self) -> (Outflow<T>, Outgoing<T>) {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                since: Instant::now(),
                end: None,
                reader: None,
            }),
            empty: Notify::new(),
            gone: CancellationToken::new(),
        });
        let outflow = Outflow {
            shared: Arc::clone(&shared),
            own: Arc::new(Semaphore::new(EACH)),
            all: Arc::clone(&self.all),
            most: self.most,
        };
        (outflow, Outgoing(shared))
    }
}

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<State<T>>,
    /// Told when the last message that waited was taken.
    empty: Notify,
    /// Nobody reads any more.
    gone: CancellationToken,
}

#[derive(Debug)]
struct State<T> {
    waiting: VecDeque<(T, Held)>,
    /// How long the first of them has been the first.
    since: Instant,
    /// What comes after them; `None`: more may.
    end: Option<Result<(), Status>>,
    reader: Option<Waker>,
}

/// The room of a message that waits.
#[derive(Debug)]
struct Held {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl<T> Shared<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        // Messages come and go whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State<T>)) {
        let mut state = self.state();
        change(&mut state);
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
    }
}

/// Nobody reads any more, or not fast enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unsent;

/// The end that messages go into.
#[derive(Debug)]
pub(crate) struct Outflow<T> {
    shared: Arc<Shared<T>>,
    own: Arc<Semaphore>,
    all: Arc<Semaphore>,
    most: usize,
}

impl<T: Message> Outflow<T> {
    /// Returns when the message waits for the network. Cuts the watcher when there is no room for long.
    pub(crate) async fn send(&self, message: T) -> Result<(), Unsent> {
        let bytes = message.encoded_len().max(1);
        let room = async {
            Some(Held {
                _own: taken(&self.own, bytes.min(EACH)).await?,
                _all: taken(&self.all, bytes.min(self.most)).await?,
            })
        };
        let held = tokio::select! {
            biased;
            () = self.closed() => return Err(Unsent),
            held = timeout(PATIENCE, room) => held,
        };
        let Ok(Some(held)) = held else {
            self.cut();
            return Err(Unsent);
        };
        self.shared.change(|state| {
            if state.waiting.is_empty() {
                state.since = Instant::now();
            }
            state.waiting.push_back((message, held));
        });
        Ok(())
    }
}

impl<T> Outflow<T> {
    /// Does the work that sends, and returns when it has ended and nothing of it waits any more. A watcher that
    /// takes nothing for long is cut, whether or not there is more to send.
    pub(crate) async fn while_taken(&self, work: impl Future<Output = ()>) {
        tokio::select! {
            () = work => {}
            () = self.cut_when_stalled() => return,
        }
        self.shared.change(|state| {
            state.end.get_or_insert(Ok(()));
        });
        tokio::select! {
            () = self.closed() => {}
            () = self.emptied() => {}
            () = self.cut_when_stalled() => {}
        }
    }

    /// Returns when nothing waits.
    async fn emptied(&self) {
        while !self.shared.state().waiting.is_empty() {
            self.shared.empty.notified().await;
        }
    }

    /// Returns when something waited, and nothing was taken, for so long that the watcher was cut.
    async fn cut_when_stalled(&self) {
        loop {
            let until = {
                let state = self.shared.state();
                match state.waiting.is_empty() {
                    // What comes later waits from then on.
                    true => Instant::now() + PATIENCE,
                    false => state.since + PATIENCE,
                }
            };
            if until <= Instant::now() {
                self.cut();
                return;
            }
            sleep_until(until).await;
        }
    }

    /// Drops what waits, with the words for a watcher that reads after all.
    fn cut(&self) {
        tracing::info!("a watcher that did not read was cut");
        self.shared.change(|state| {
            state.waiting.clear();
            let error = ApiError::Unavailable {
                message: format!(
                    "the watcher took nothing for {} s; watch again from the last cursor",
                    PATIENCE.as_secs()
                ),
                retry: Some(AGAIN),
            };
            state.end = Some(Err(error.into()));
        });
    }

    /// Returns when nobody reads any more.
    pub(crate) async fn closed(&self) {
        self.shared.gone.cancelled().await;
    }

    /// Ends with an error after what waits.
    pub(crate) fn fail(&self, error: ApiError) {
        self.shared.change(|state| {
            state.end.get_or_insert_with(|| Err(error.into()));
        });
    }
}

impl<T> Drop for Outflow<T> {
    fn drop(&mut self) {
        self.shared.change(|state| {
            state.end.get_or_insert(Ok(()));
        });
    }
}

/// `None` never comes: nobody closes it.
async fn taken(room: &Arc<Semaphore>, bytes: usize) -> Option<OwnedSemaphorePermit> {
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    Arc::clone(room).acquire_many_owned(bytes).await.ok()
}

/// The end that the network reads.
#[derive(Debug)]
pub(crate) struct Outgoing<T>(Arc<Shared<T>>);

impl<T> Stream for Outgoing<T> {
    type Item = Result<T, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut state = self.0.state();
        if let Some((message, _held)) = state.waiting.pop_front() {
            state.since = Instant::now();
            if state.waiting.is_empty() {
                self.0.empty.notify_one();
            }
            return Poll::Ready(Some(Ok(message)));
        }
        match state.end.replace(Ok(())) {
            Some(Ok(())) => Poll::Ready(None),
            Some(Err(status)) => Poll::Ready(Some(Err(status))),
            None => {
                state.end = None;
                state.reader = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl<T> Drop for Outgoing<T> {
    fn drop(&mut self) {
        self.0.gone.cancel();
        self.0.state().waiting.clear();
    }
}

#[cfg(test)]
mod tests {
    use kage_proto::v1;
    use tokio_stream::StreamExt as _;
    use tonic::Code;

    use super::*;

    fn piece(bytes: usize) -> v1::OutputChunk {
        v1::OutputChunk {
            data: vec![b'x'; bytes].into(),
            ..v1::OutputChunk::default()
        }
    }

    fn free(outflows: &Outflows) -> usize {
        outflows.most - outflows.all.available_permits()
    }

    #[tokio::test(start_paused = true)]
    async fn a_watcher_that_does_not_read_holds_little_and_is_cut() {
        let outflows = Outflows::new(1 << 30);
        let (outflow, mut outgoing) = outflows.open();
        let mut sent = 0;
        while outflow.send(piece(MAX_INLINE)).await.is_ok() {
            sent += 1;
            assert!(free(&outflows) <= EACH);
        }
        assert!((1..=8).contains(&sent), "{sent}");
        // What waited is dropped with it, whether or not it ever reads.
        assert_eq!(free(&outflows), 0);
        let cut = outgoing.next().await.unwrap().unwrap_err();
        assert_eq!(cut.code(), Code::Unavailable);
        assert!(outgoing.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_after_the_end_is_dropped_when_nobody_takes_it() {
        let outflows = Outflows::new(1 << 30);
        let (outflow, mut outgoing) = outflows.open();
        let work = async {
            for _ in 0..3 {
                outflow.send(piece(1000)).await.unwrap();
            }
        };
        let begun = Instant::now();
        let reading = async {
            tokio::time::sleep(PATIENCE / 2).await;
            assert!(outgoing.next().await.unwrap().is_ok());
            // What was taken counts anew.
            tokio::time::sleep(PATIENCE * 3 / 4).await;
            assert_ne!(free(&outflows), 0);
        };
        tokio::join!(outflow.while_taken(work), reading);
        assert!(begun.elapsed() >= PATIENCE / 2 + PATIENCE, "{:?}", begun.elapsed());
        assert_eq!(free(&outflows), 0);
        let cut = outgoing.next().await.unwrap().unwrap_err();
        assert_eq!(cut.code(), Code::Unavailable);
        assert!(outgoing.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_waits_for_news_is_cut_for_what_was_not_taken() {
        let outflows = Outflows::new(0);
        let (outflow, mut outgoing) = outflows.open();
        let work = async {
            outflow.send(piece(1000)).await.unwrap();
            std::future::pending::<()>().await;
        };
        outflow.while_taken(work).await;
        assert_eq!(free(&outflows), 0);
        assert!(outgoing.next().await.unwrap().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_ends_when_its_last_message_is_taken_or_its_reader_leaves() {
        let outflows = Outflows::new(0);
        let (outflow, mut outgoing) = outflows.open();
        let begun = Instant::now();
        let work = async {
            outflow.send(piece(1)).await.unwrap();
            outflow.send(piece(1)).await.unwrap();
        };
        let reading = async {
            let mut read = 0;
            while let Some(message) = outgoing.next().await {
                message.unwrap();
                read += 1;
            }
            read
        };
        let ((), read) = tokio::join!(outflow.while_taken(work), reading);
        assert_eq!((read, begun.elapsed()), (2, Duration::ZERO));
        let (outflow, outgoing) = outflows.open();
        let work = async { outflow.send(piece(1)).await.unwrap() };
        tokio::join!(outflow.while_taken(work), async { drop(outgoing) });
        assert_eq!((free(&outflows), begun.elapsed()), (0, Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn all_watchers_share_a_bound_and_one_that_reads_goes_on() {
        let outflows = Outflows::new(100_000);
        let (slow, mut of_slow) = outflows.open();
        let (fast, mut of_fast) = outflows.open();
        slow.send(piece(60_000)).await.unwrap();
        let reading = async {
            let mut read = 0;
            while let Some(message) = of_fast.next().await {
                message.unwrap();
                read += 1;
            }
            read
        };
        let sending = async move {
            for _ in 0..20 {
                // Only one of them has room at a time, beside what waits for the slow one.
                fast.send(piece(30_000)).await.unwrap();
            }
        };
        let (read, ()) = tokio::join!(reading, sending);
        assert_eq!(read, 20);
        assert!(free(&outflows) <= 100_000);
        // A message that is larger than everything goes alone.
        drop(of_slow.next().await);
        let (large, mut of_large) = outflows.open();
        large.send(piece(10 << 20)).await.unwrap();
        assert_eq!(free(&outflows), 100_000);
        drop(large);
        assert!(of_large.next().await.unwrap().is_ok());
        assert!(of_large.next().await.is_none());
        drop(slow);
        assert!(of_slow.next().await.is_none());
        assert_eq!(free(&outflows), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_held_for_a_watcher_that_left() {
        let outflows = Outflows::new(0);
        let (outflow, outgoing) = outflows.open();
        outflow.send(piece(1000)).await.unwrap();
        drop(outgoing);
        outflow.closed().await;
        assert_eq!(free(&outflows), 0);
        assert_eq!(outflow.send(piece(1)).await, Err(Unsent));
        let (outflow, mut outgoing) = outflows.open::<v1::OutputChunk>();
        outflow.fail(ApiError::Unauthenticated);
        drop(outflow);
        let failed = outgoing.next().await.unwrap().unwrap_err();
        assert_eq!(failed.code(), Code::Unauthenticated);
    }
}

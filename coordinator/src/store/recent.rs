//! Recent tasks in memory, as they were committed. Whoever offers a job or watches a task asks
//! about it again and again while it is new; here the answer costs neither a statement nor a
//! change of threads. A task is here whole, from its creation on, or not at all: then SQLite
//! is asked. It follows the committed feed like everybody else, and catches up whenever it is
//! asked; after a gap it knows nothing any more.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kage_core::attempt::{Attempt, AttemptState};
use kage_core::id::{AttemptId, JobId, SessionId, TaskId};
use kage_core::job::Subject;
use kage_core::session::Session;
use kage_core::task::TaskSpec;

use super::change::{Change, EACH};
use super::feed::{Feed, Follower, News as Told};
use super::query::{AttemptView, News, TaskEvent, TaskView, Watched, Work};
use super::rows::{JobRow, TaskHead};

/// What all of them may weigh, in bytes of the text that is stored of them.
const MOST: usize = 32 << 20;
/// A heavier task is not kept, so that one does not drive out all others.
const MOST_OF_ONE: usize = 256 << 10;
/// A task with a longer spec is not kept: each look at it would copy that much.
const LONGEST_SPEC: usize = 32 << 10;
#[derive(Debug)]
pub(super) struct Recent {
    most: usize,
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    follower: Follower,
    tasks: HashMap<TaskId, Whole>,
    /// In the order of creation.
    order: BTreeMap<u64, TaskId>,
    begun: u64,
    attempts: HashMap<AttemptId, TaskId>,
    weight: usize,
}

/// Everything about a task.
#[derive(Debug)]
struct Whole {
    /// Its place in the order of creation.
    place: u64,
    head: Arc<TaskHead>,
    spec: Arc<TaskSpec>,
    sessions: Vec<Arc<Session>>,
    jobs: Vec<Arc<JobRow>>,
    /// In the order they were started.
    attempts: Vec<AttemptView>,
    /// All of them: the one at index `i` has position `i + 1`.
    events: Vec<TaskEvent>,
    weight: usize,
}

impl Recent {
    /// Keeps what is committed from now on.
    pub(super) fn new(feed: &Arc<Feed>) -> Self {
        Self::with_most(feed, MOST)
    }

    /// Never keeps anything, so that every question goes to SQLite.
    #[cfg(test)]
    pub(super) fn nothing(feed: &Arc<Feed>) -> Self {
        Self::with_most(feed, 0)
    }

    fn with_most(feed: &Arc<Feed>, most: usize) -> Self {
        let kept = Kept {
            follower: Follower::new(Arc::clone(feed)),
            tasks: HashMap::new(),
            order: BTreeMap::new(),
            begun: 0,
            attempts: HashMap::new(),
            weight: 0,
        };
        Self {
            most,
            kept: Mutex::new(kept),
        }
    }

    /// A task with its sessions.
    pub(super) fn task(&self, id: TaskId) -> Option<TaskView> {
        self.whole(id, Whole::view)
    }

    /// Everything that a watcher does not know yet.
    pub(super) fn news(&self, watched: Watched) -> Option<News> {
        self.whole(watched.task, |whole| News {
            view: whole.view(),
            attempts: if watched.attempts {
                whole.attempts.clone()
            } else {
                Vec::new()
            },
            events: whole.events(watched.after, watched.limit),
        })
    }

    /// The content of a job's offer. `Some(None)`: there is no such job.
    pub(super) fn work(&self, task: TaskId, job: JobId) -> Option<Option<Work>> {
        let kept = self.lock();
        let whole = kept.tasks.get(&task)?;
        let Some(row) = whole.jobs.iter().find(|row| row.job.id == job) else {
            return Some(None);
        };
        let session = match row.job.subject {
            Subject::Session(id) => whole.sessions.iter().find(|session| session.id == id)?,
            Subject::Base => whole.sessions.first()?,
        };
        if session.checkpoints.head.is_some() {
            // Checkpoints are not here.
            return None;
        }
        Some(Some(Work {
            spec: TaskSpec::clone(&whole.spec),
            session: Session::clone(session),
            job: row.job.clone(),
            number: row.job.started + 1,
            checkpoints: Vec::new(),
        }))
    }

    pub(super) fn attempt(&self, id: AttemptId) -> Option<AttemptView> {
        let kept = self.lock();
        let whole = kept.tasks.get(kept.attempts.get(&id)?)?;
        whole.attempts.iter().find(|view| view.attempt.id == id).cloned()
    }

    /// Every attempt of a task, in the order they were started.
    pub(super) fn attempts_of(&self, task: TaskId) -> Option<Vec<AttemptView>> {
        self.whole(task, |whole| whole.attempts.clone())
    }

    /// The events of a task after a position, in order.
    pub(super) fn events(&self, task: TaskId, after: u64, limit: u32) -> Option<Vec<TaskEvent>> {
        self.whole(task, |whole| whole.events(after, limit))
    }

    /// The part of a task that changes.
    pub(super) fn head(&self, task: TaskId) -> Option<TaskHead> {
        self.whole(task, |whole| TaskHead::clone(&whole.head))
    }

    /// A session. `Some(None)` when there is no such session.
    pub(super) fn session(&self, task: TaskId, id: SessionId) -> Option<Option<Session>> {
        self.whole(task, |whole| {
            let found = whole.sessions.iter().find(|session| session.id == id);
            found.map(|session| Session::clone(session))
        })
    }

    /// A job. `Some(None)` when there is no such job.
    pub(super) fn job(&self, task: TaskId, id: JobId) -> Option<Option<JobRow>> {
        self.whole(task, |whole| {
            let found = whole.jobs.iter().find(|row| row.job.id == id);
            found.map(|row| JobRow::clone(row))
        })
    }

    fn whole<T>(&self, id: TaskId, read: impl FnOnce(&Whole) -> T) -> Option<T> {
        self.lock().tasks.get(&id).map(read)
    }

    /// Everything that was committed so far is taken over before somebody looks.
    fn lock(&self) -> MutexGuard<'_, Kept> {
        let mut kept = self.kept.lock().unwrap_or_else(|broken| {
            // A panic may have left a task half changed. SQLite has them all.
            let mut kept = PoisonError::into_inner(broken);
            kept.forget_all();
            self.kept.clear_poison();
            kept
        });
        while let Some(told) = kept.follower.next() {
            match told {
                Told::Commit(commit) => commit.changes.iter().for_each(|change| kept.take(change)),
                Told::Gap => kept.forget_all(),
            }
        }
        while kept.weight > self.most {
            let Some((_, oldest)) = kept.order.pop_first() else {
                break;
            };
            kept.forget(oldest);
        }
        kept
    }
}

impl Kept {
    fn take(&mut self, change: &Change) {
        match change {
            Change::Created { head, spec, size } => {
                if *size <= LONGEST_SPEC {
                    self.begun += 1;
                    let whole = Whole::new(Arc::clone(head), Arc::clone(spec), self.begun, EACH + size);
                    self.order.insert(whole.place, head.id);
                    self.weight += whole.weight;
                    self.tasks.insert(head.id, whole);
                }
            }
            Change::Dropped { task, .. } => self.forget(*task),
            Change::Task(head) => self.change(head.id, |whole| {
                whole.head = Arc::clone(head);
                true
            }),
            Change::Session { session, .. } => self.change(session.task, |whole| {
                whole.session(session);
                true
            }),
            Change::Job { row, .. } => self.change(row.job.task, |whole| {
                whole.job(row);
                true
            }),
            Change::Started { attempt, note } => {
                self.change(attempt.task, |whole| {
                    whole.weight += EACH;
                    let (attempt, note) = (Attempt::clone(attempt), note.as_ref().clone());
                    whole.attempts.push(AttemptView::of(attempt, note));
                    true
                });
                if self.tasks.contains_key(&attempt.task) {
                    self.attempts.insert(attempt.id, attempt.task);
                }
            }
            Change::Attempt(attempt) => self.change(attempt.task, |whole| {
                let known = whole.attempts.iter_mut().find(|view| view.attempt.id == attempt.id);
                known.is_some_and(|known| {
                    known.attempt = Attempt::clone(attempt);
                    true
                })
            }),
            Change::LeasesExtended { until, now } => {
                let attempts = self.tasks.values_mut().flat_map(|whole| &mut whole.attempts);
                for view in attempts.filter(|view| view.attempt.state == AttemptState::Live) {
                    view.attempt.renew(*until, *now);
                }
            }
            Change::Event {
                task,
                pos,
                attempt,
                event,
                size,
            } => self.change(*task, |whole| {
                let by = whole.attempts.iter().find(|view| view.attempt.id == *attempt);
                let (Some(by), true) = (by, *pos == whole.events.len() as u64 + 1) else {
                    return false;
                };
                whole.events.push(TaskEvent::of(*pos, event.as_ref().clone(), by));
                whole.weight += size;
                true
            }),
            Change::Agent(_) | Change::AgentSeen(..) | Change::Enrolment(_) | Change::PersonToken(_) => {}
        }
    }

    /// Changes a task, if it is here. It is forgotten when that says that the change does not
    /// continue what is here, or when it weighs too much.
    fn change(&mut self, id: TaskId, change: impl FnOnce(&mut Whole) -> bool) {
        let Some(whole) = self.tasks.get_mut(&id) else {
            return;
        };
        let before = whole.weight;
        let continues = change(whole);
        self.weight += whole.weight - before;
        if !continues || whole.weight > MOST_OF_ONE {
            self.forget(id);
        }
    }

    fn forget(&mut self, id: TaskId) {
        if let Some(whole) = self.tasks.remove(&id) {
            self.weight -= whole.weight;
            self.order.remove(&whole.place);
            for view in &whole.attempts {
                self.attempts.remove(&view.attempt.id);
            }
        }
    }

    /// What is stored is not known any more.
    fn forget_all(&mut self) {
        self.tasks.clear();
        self.order.clear();
        self.attempts.clear();
        self.weight = 0;
    }
}

impl Whole {
    const fn new(head: Arc<TaskHead>, spec: Arc<TaskSpec>, place: u64, weight: usize) -> Self {
        Self {
            place,
            head,
            spec,
            sessions: Vec::new(),
            jobs: Vec::new(),
            attempts: Vec::new(),
            events: Vec::new(),
            weight,
        }
    }

    fn view(&self) -> TaskView {
        TaskView {
            task: self.head.with(TaskSpec::clone(&self.spec)),
            sessions: self.sessions.iter().map(|session| Session::clone(session)).collect(),
            last_event: self.head.last_event,
        }
    }

    fn session(&mut self, new: &Arc<Session>) {
        match self.sessions.iter_mut().find(|old| old.id == new.id) {
            Some(old) => *old = Arc::clone(new),
            None => {
                self.weight += EACH;
                self.sessions.push(Arc::clone(new));
            }
        }
    }

    fn job(&mut self, new: &Arc<JobRow>) {
        match self.jobs.iter_mut().find(|old| old.job.id == new.job.id) {
            Some(old) => *old = Arc::clone(new),
            None => {
                self.weight += EACH;
                self.jobs.push(Arc::clone(new));
            }
        }
    }

    fn events(&self, after: u64, limit: u32) -> Vec<TaskEvent> {
        let after = usize::try_from(after).unwrap_or(usize::MAX);
        let events = self.events.get(after..).unwrap_or_default();
        events.iter().take(limit as usize).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use kage_core::event::{Event, EventBody};
    use kage_core::task::{Policy, Task, TaskState};
    use kage_core::time::Timestamp;

    use super::*;

    fn task(n: u128) -> Task {
        let spec = TaskSpec {
            project: "default".parse().unwrap(),
            prompt: String::new(),
            prompt_blob: None,
            repository: None,
            context_base: None,
            assignments: Vec::new(),
            policy: Policy::default(),
            fresh_baseline: false,
            labels: kage_core::task::Labels::new(),
            environment: kage_core::task::TaskEnvironment::default(),
        };
        Task::new(TaskId::from_random(n), spec, Timestamp::from_millis(1))
    }

    fn head(n: u128) -> TaskHead {
        TaskHead::new(&task(n), SessionId::from_random(n), &[])
    }

    fn begin(feed: &Feed, n: u8, size: usize) {
        feed.committed(vec![Change::Created {
            head: Arc::new(head(n.into())),
            spec: Arc::new(task(n.into()).spec),
            size,
        }]);
    }

    #[test]
    fn the_oldest_is_forgotten_first_and_a_large_one_is_not_kept() {
        let feed = Arc::new(Feed::default());
        let recent = Recent::with_most(&feed, 3 * EACH);
        let known = |n| recent.task(TaskId::from_random(n)).is_some();
        begin(&feed, 1, 0);
        begin(&feed, 2, LONGEST_SPEC + 1);
        begin(&feed, 3, 0);
        assert!(known(1) && !known(2) && known(3));
        begin(&feed, 4, EACH);
        assert!(!known(1) && known(3) && known(4));
        feed.unknown();
        assert!(!known(3) && !known(4));
        assert_eq!(recent.lock().weight, 0);
    }

    #[test]
    fn a_task_that_is_not_known_whole_is_not_known() {
        let feed = Arc::new(Feed::default());
        let recent = Recent::new(&feed);
        let id = TaskId::from_random(1);
        let failed = || {
            vec![Change::Task(Arc::new(TaskHead {
                state: TaskState::Failed,
                ..head(1)
            }))]
        };
        feed.committed(failed());
        assert!(recent.task(id).is_none());
        begin(&feed, 1, 0);
        feed.committed(failed());
        assert_eq!(recent.task(id).unwrap().task.state, TaskState::Failed);
        // An event of an attempt that was never heard of.
        feed.committed(vec![Change::Event {
            task: id,
            pos: 1,
            attempt: AttemptId::from_random(1),
            event: Arc::new(Event {
                seq: 1,
                at: Timestamp::from_millis(1),
                body: EventBody::Warning(String::new()),
            }),
            size: 1,
        }]);
        assert!(recent.task(id).is_none());
        assert_eq!(recent.lock().weight, 0);
    }
}

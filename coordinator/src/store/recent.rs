//! Recent tasks in memory, as they were committed. Whoever offers a job or watches a task asks
//! about it again and again while it is new; here the answer costs neither a statement nor a
//! change of threads. A task is here whole, from its creation on, or not at all: then SQLite
//! is asked. What is here was written by [`Recent::commit`] only, in the order of commits.
//!
//! ```text
//!   command -> rows -> Written --COMMIT ok--> commit -> here
//!                             \--failed-----> forget_all
//! ```

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kage_core::attempt::Attempt;
use kage_core::event::Event;
use kage_core::id::{AttemptId, JobId, SessionId, TaskId};
use kage_core::job::Subject;
use kage_core::session::Session;
use kage_core::task::TaskSpec;

use super::query::{AttemptView, News, TaskEvent, TaskView, Watched, Work};
use super::rows::{AttemptNote, JobRow, TaskHead};

/// What all of them may weigh, in bytes of the text that is stored of them.
const MOST: usize = 32 << 20;
/// A heavier task is not kept, so that one does not drive out all others.
const MOST_OF_ONE: usize = 256 << 10;
/// A task with a longer spec is not kept: each look at it would copy that much.
const LONGEST_SPEC: usize = 32 << 10;
/// What a task weighs besides its texts, and each session, job and attempt of it.
const EACH: usize = 1 << 10;

/// Something that a command wrote about a task.
#[derive(Debug)]
pub(super) enum Written {
    /// A task that begins; with its row's number and the length of its spec.
    Task {
        head: Box<TaskHead>,
        spec: Box<TaskSpec>,
        n: i64,
        length: usize,
    },
    /// A task that changed.
    Head(Box<TaskHead>),
    /// A session, new or changed.
    Session(Box<Session>),
    /// A job, new or changed.
    Job(Box<JobRow>),
    /// An attempt that begins.
    Started(Box<Attempt>, AttemptNote),
    /// An attempt that changed.
    Attempt(Box<Attempt>),
    /// An event; with the length of its text.
    Event {
        task: TaskId,
        pos: u64,
        attempt: AttemptId,
        event: Box<Event>,
        length: usize,
    },
    /// A task that was dropped.
    Gone(TaskId),
}

impl Written {
    /// The one task that it is about.
    pub(super) fn task(&self) -> TaskId {
        match self {
            Self::Task { head, .. } | Self::Head(head) => head.id,
            Self::Event { task, .. } | Self::Gone(task) => *task,
            Self::Session(session) => session.task,
            Self::Job(row) => row.job.task,
            Self::Started(attempt, _) | Self::Attempt(attempt) => attempt.task,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Recent {
    most: usize,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    tasks: HashMap<TaskId, Whole>,
    /// By the number of its row: in the order of creation.
    order: BTreeMap<i64, TaskId>,
    attempts: HashMap<AttemptId, TaskId>,
    weight: usize,
}

/// Everything about a task.
#[derive(Debug)]
struct Whole {
    /// The number of its row.
    n: i64,
    head: TaskHead,
    spec: TaskSpec,
    sessions: Vec<Session>,
    jobs: Vec<JobRow>,
    /// In the order they were started.
    attempts: Vec<AttemptView>,
    /// All of them: the one at index `i` has position `i + 1`.
    events: Vec<TaskEvent>,
    weight: usize,
}

impl Recent {
    /// Keeps nothing yet.
    pub(super) fn new() -> Self {
        Self {
            most: MOST,
            kept: Mutex::default(),
        }
    }

    /// Never keeps anything, so that every question goes to SQLite.
    #[cfg(test)]
    pub(super) fn nothing() -> Self {
        Self {
            most: 0,
            kept: Mutex::default(),
        }
    }

    /// Takes over what was committed. Called by the writer alone, before it answers.
    pub(super) fn commit(&self, written: impl IntoIterator<Item = Written>) {
        let mut kept = self.lock();
        for written in written {
            kept.take(written);
        }
        while kept.weight > self.most {
            let Some((_, oldest)) = kept.order.pop_first() else {
                break;
            };
            kept.forget(oldest);
        }
    }

    /// Forgets everything: what is stored is not known any more.
    pub(super) fn forget_all(&self) {
        *self.lock() = Kept::default();
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
            spec: whole.spec.clone(),
            session: session.clone(),
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

    /// The number of a task's row.
    pub(super) fn number(&self, task: TaskId) -> Option<i64> {
        self.whole(task, |whole| whole.n)
    }

    /// The part of a task that changes.
    pub(super) fn head(&self, task: TaskId) -> Option<TaskHead> {
        self.whole(task, |whole| whole.head.clone())
    }

    /// A session. `Some(None)` when there is no such session.
    pub(super) fn session(&self, task: TaskId, id: SessionId) -> Option<Option<Session>> {
        self.whole(task, |whole| {
            whole.sessions.iter().find(|session| session.id == id).cloned()
        })
    }

    /// A job. `Some(None)` when there is no such job.
    pub(super) fn job(&self, task: TaskId, id: JobId) -> Option<Option<JobRow>> {
        self.whole(task, |whole| whole.jobs.iter().find(|row| row.job.id == id).cloned())
    }

    fn whole<T>(&self, id: TaskId, read: impl FnOnce(&Whole) -> T) -> Option<T> {
        self.lock().tasks.get(&id).map(read)
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(|broken| {
            // A panic may have left a task half changed. SQLite has them all.
            let mut kept = PoisonError::into_inner(broken);
            *kept = Kept::default();
            self.kept.clear_poison();
            kept
        })
    }
}

impl Kept {
    fn take(&mut self, written: Written) {
        let id = written.task();
        if let Written::Gone(_) = written {
            self.forget(id);
        } else if let Written::Task { head, spec, n, length } = written {
            if length <= LONGEST_SPEC {
                self.order.insert(n, id);
                self.weight += EACH + length;
                self.tasks.insert(id, Whole::new(*head, *spec, n, EACH + length));
            }
        } else if let Some(whole) = self.tasks.get_mut(&id) {
            let before = whole.weight;
            let started = if let Written::Started(attempt, _) = &written {
                Some(attempt.id)
            } else {
                None
            };
            let continues = whole.take(written);
            self.weight += whole.weight - before;
            if !continues || whole.weight > MOST_OF_ONE {
                self.forget(id);
            } else {
                self.attempts.extend(started.map(|attempt| (attempt, id)));
            }
        }
    }

    fn forget(&mut self, id: TaskId) {
        if let Some(whole) = self.tasks.remove(&id) {
            self.weight -= whole.weight;
            self.order.remove(&whole.n);
            for view in &whole.attempts {
                self.attempts.remove(&view.attempt.id);
            }
        }
    }
}

impl Whole {
    const fn new(head: TaskHead, spec: TaskSpec, n: i64, weight: usize) -> Self {
        Self {
            n,
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
            task: self.head.with(self.spec.clone()),
            sessions: self.sessions.clone(),
            last_event: self.head.last_event,
        }
    }

    /// False when it does not continue what is here.
    fn take(&mut self, written: Written) -> bool {
        match written {
            Written::Task { .. } | Written::Gone(_) => return false,
            Written::Head(head) => self.head = *head,
            Written::Session(new) => match self.sessions.iter_mut().find(|old| old.id == new.id) {
                Some(old) => *old = *new,
                None => {
                    self.weight += EACH;
                    self.sessions.push(*new);
                }
            },
            Written::Job(new) => match self.jobs.iter_mut().find(|old| old.job.id == new.job.id) {
                Some(old) => *old = *new,
                None => {
                    self.weight += EACH;
                    self.jobs.push(*new);
                }
            },
            Written::Started(attempt, note) => {
                self.weight += EACH;
                self.attempts.push(AttemptView::of(*attempt, note));
            }
            Written::Attempt(new) => {
                let old = self.attempts.iter_mut().find(|old| old.attempt.id == new.id);
                let Some(old) = old else { return false };
                old.attempt = *new;
            }
            Written::Event {
                pos,
                attempt,
                event,
                length,
                ..
            } => {
                let by = self.attempts.iter().find(|view| view.attempt.id == attempt);
                let (Some(by), true) = (by, pos == self.events.len() as u64 + 1) else {
                    return false;
                };
                self.weight += length;
                self.events.push(TaskEvent::of(pos, *event, by));
            }
        }
        true
    }

    fn events(&self, after: u64, limit: u32) -> Vec<TaskEvent> {
        let after = usize::try_from(after).unwrap_or(usize::MAX);
        let events = self.events.get(after..).unwrap_or_default();
        events.iter().take(limit as usize).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use kage_core::event::EventBody;
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
            labels: kage_core::task::Labels::new(),
        };
        Task::new(TaskId::from_random(n), spec, Timestamp::from_millis(1))
    }

    fn head(n: u128) -> TaskHead {
        TaskHead::new(&task(n), SessionId::from_random(n), &[])
    }

    fn begin(recent: &Recent, n: u8, length: usize) {
        recent.commit([Written::Task {
            head: Box::new(head(n.into())),
            spec: Box::new(task(n.into()).spec),
            n: n.into(),
            length,
        }]);
    }

    #[test]
    fn the_oldest_is_forgotten_first_and_a_large_one_is_not_kept() {
        let recent = Recent {
            most: 3 * EACH,
            kept: Mutex::default(),
        };
        let known = |n| recent.task(TaskId::from_random(n)).is_some();
        begin(&recent, 1, 0);
        begin(&recent, 2, LONGEST_SPEC + 1);
        begin(&recent, 3, 0);
        assert!(known(1) && !known(2) && known(3));
        begin(&recent, 4, EACH);
        assert!(!known(1) && known(3) && known(4));
        recent.forget_all();
        assert!(!known(3) && !known(4));
        assert_eq!(recent.lock().weight, 0);
    }

    #[test]
    fn a_task_that_is_not_known_whole_is_not_known() {
        let recent = Recent::new();
        let id = TaskId::from_random(1);
        let failed = || {
            Written::Head(Box::new(TaskHead {
                state: TaskState::Failed,
                ..head(1)
            }))
        };
        recent.commit([failed()]);
        assert!(recent.task(id).is_none());
        begin(&recent, 1, 0);
        recent.commit([failed()]);
        assert_eq!(recent.task(id).unwrap().task.state, TaskState::Failed);
        // An event of an attempt that was never heard of.
        recent.commit([Written::Event {
            task: id,
            pos: 1,
            attempt: AttemptId::from_random(1),
            event: Box::new(Event {
                seq: 1,
                at: Timestamp::from_millis(1),
                body: EventBody::Warning(String::new()),
            }),
            length: 1,
        }]);
        assert!(recent.task(id).is_none());
        assert_eq!(recent.lock().weight, 0);
    }
}

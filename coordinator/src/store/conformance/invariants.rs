//! The invariants I1 to I6, as far as a store can break them; they hold at every moment.

use std::collections::{BTreeMap, BTreeSet};

use kage_core::attempt::AttemptState;
use kage_core::checkpoint::Resumes;
use kage_core::id::{AttemptId, JobId, SessionId, TaskId};
use kage_core::job::{JobType, Subject};
use kage_core::session::{Session, SessionCheckpoints, SessionState, SessionStateKind};
use kage_core::task::{Task, TaskState};

use crate::store::{AttemptView, MAX_PAGE, QueuedJob, Store, TaskEvent, TaskFilter, TaskView};

/// Everything that can be read about tasks.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Seen {
    tasks: BTreeMap<TaskId, (TaskView, Vec<AttemptView>, Vec<TaskEvent>)>,
}

/// Reads everything, and checks it by itself and against earlier states.
pub(super) async fn check(store: &Store, before: &Seen) -> Seen {
    let mut seen = Seen::default();
    let page = store.tasks(&TaskFilter::default(), None, MAX_PAGE).await.unwrap();
    let queued = store.queued_jobs().await.unwrap();
    let live = store.live_attempts(None).await.unwrap();
    let mut tokens = BTreeSet::new();
    for view in page.tasks {
        let id = view.task.id;
        let attempts = store.attempts_of(id).await.unwrap();
        let events = store.events(id, 0, MAX_PAGE).await.unwrap();
        for attempt in &attempts {
            assert!(
                tokens.insert(attempt.attempt.token_hash.clone()),
                "I2: a token is used twice"
            );
        }
        one_live_attempt_per_session(&view, &attempts);
        numbers_rise(&attempts);
        for session in &view.sessions {
            let checkpoints = store.checkpoints(id, session.id).await.unwrap();
            let numbers: Vec<_> = checkpoints.iter().map(|checkpoint| checkpoint.number).collect();
            assert_eq!(
                numbers,
                (1..=session.checkpoints.taken).collect::<Vec<_>>(),
                "checkpoints have no gap"
            );
            if let Some(head) = &session.checkpoints.head {
                let commit = checkpoints
                    .get(head.number as usize - 1)
                    .map(|found| &found.taken.commit);
                assert_eq!(
                    commit,
                    Some(&head.commit),
                    "a session stands on a checkpoint of its own"
                );
            }
        }
        sequences_have_no_gap(&attempts, &events);
        assert_eq!(view.last_event, events.len() as u64);
        for (position, session) in view.sessions.iter().enumerate() {
            let own = |job: &&QueuedJob| job.subject == Subject::Session(session.id);
            let waits = queued.iter().filter(own).count();
            let works = attempts.iter().filter(|view| of_session(view, session)).count();
            // The coordinator itself does what is left.
            let saving = session.state.kind() == SessionStateKind::Saving;
            let open = usize::from(!session.state.is_terminal() && !saving);
            let may_wait = view.task.spec.policy.course.waits_for_turn(position) && session.attempts == 0;
            if may_wait && waits + works == 0 {
                continue;
            }
            assert_eq!(waits + works, open, "an open session has one open job: {session:?}");
        }
        let open = view.sessions.iter().any(|session| !session.state.is_terminal());
        assert_eq!(
            open,
            view.task.state == TaskState::Running,
            "a task ends with its last session"
        );
        seen.tasks.insert(id, (view, attempts, events));
    }
    assert_eq!(
        live.iter().map(|attempt| attempt.attempt).collect::<BTreeSet<_>>(),
        seen.live(),
        "the list of live attempts is that of the tasks"
    );
    seen.follows(before);
    seen
}

impl Seen {
    fn live(&self) -> BTreeSet<AttemptId> {
        let attempts = self.tasks.values().flat_map(|(_, attempts, _)| attempts);
        attempts
            .filter(|attempt| attempt.attempt.state == AttemptState::Live)
            .map(|attempt| attempt.attempt.id)
            .collect()
    }

    /// Forgets that a task had ended: a session of it was sent back.
    pub(super) fn reopened(&mut self, task: TaskId) {
        if let Some((view, _, _)) = self.tasks.get_mut(&task) {
            view.task.state = TaskState::Running;
            view.sessions.clear();
        }
    }

    /// Removes data that an older version did not store: who created a task, and from which points
    /// its sessions can resume.
    pub(super) fn as_of_an_older_version(&mut self) {
        for (view, _, _) in self.tasks.values_mut() {
            view.task.created_by = None;
            for session in &mut view.sessions {
                session.checkpoints = SessionCheckpoints::default();
                session.resumes = Resumes::None;
                session.contained = None;
            }
        }
    }

    /// Forgets a task: it was dropped.
    pub(super) fn dropped(&mut self, task: TaskId) {
        self.tasks.remove(&task);
    }

    /// Ends stay as they are, and events are only ever added.
    fn follows(&self, before: &Self) {
        for (id, (view, attempts, events)) in &before.tasks {
            let (now, attempts_now, events_now) = self.tasks.get(id).expect("a task is never forgotten");
            if view.task.state.is_terminal() {
                let was = Task {
                    // This may be found out later.
                    baseline: now.task.baseline.clone(),
                    // This is decided by people, at any time.
                    selection: now.task.selection.clone(),
                    ..view.task.clone()
                };
                assert_eq!(now.task, was, "I5: a task that ended changed");
                let known = view.task.baseline.is_some();
                assert!(
                    !known || now.task.baseline == view.task.baseline,
                    "a base is judged once"
                );
            }
            for session in view.sessions.iter().filter(|session| session.state.is_terminal()) {
                let same = now.sessions.iter().find(|now| now.id == session.id);
                assert_eq!(
                    same.map(|now| &now.state),
                    Some(&session.state),
                    "I5: a session that ended changed"
                );
            }
            for (was, is) in attempts.iter().zip(attempts_now) {
                assert_eq!(was.attempt.id, is.attempt.id);
                if was.attempt.state != AttemptState::Live {
                    assert_eq!(was, is, "I3: an attempt without authority changed");
                }
            }
            assert_eq!(
                events_now.get(..events.len()),
                Some(events.as_slice()),
                "I4: an event changed"
            );
        }
    }
}

/// True for a live attempt to work on the session, or to check its result.
fn of_session(view: &AttemptView, session: &Session) -> bool {
    view.attempt.session == session.id && view.attempt.state == AttemptState::Live && view.job != JobType::Baseline
}

fn one_live_attempt_per_session(view: &TaskView, attempts: &[AttemptView]) {
    let of_base = |view: &&AttemptView| view.job == JobType::Baseline && view.attempt.state == AttemptState::Live;
    assert!(
        attempts.iter().filter(of_base).count() <= 1,
        "I1: the base is checked twice"
    );
    for session in &view.sessions {
        let live = attempts.iter().filter(|view| of_session(view, session));
        let live: Vec<_> = live.map(|view| view.attempt.id).collect();
        assert!(live.len() <= 1, "I1: {} has live attempts {live:?}", session.id);
        assert_eq!(
            live.first().copied(),
            session.state.attempt(),
            "I1: {:?}",
            session.state
        );
        if let SessionState::Claimed { .. } = session.state {
            assert!(live.is_empty());
        }
    }
}

fn numbers_rise(attempts: &[AttemptView]) {
    // A session's attempts are numbered across its jobs.
    let mut last: BTreeMap<(SessionId, Option<JobId>), u32> = BTreeMap::new();
    for view in attempts {
        let check = (view.job != JobType::Session).then_some(view.attempt.job);
        let number = last.entry((view.attempt.session, check)).or_default();
        assert_eq!(view.attempt.number, *number + 1, "I2: numbers rise by one");
        *number += 1;
    }
}

fn sequences_have_no_gap(attempts: &[AttemptView], events: &[TaskEvent]) {
    let mut last: BTreeMap<AttemptId, u64> = BTreeMap::new();
    for (expected, event) in (1..).zip(events) {
        assert_eq!(event.pos, expected, "I4: positions have no gap");
        let seq = last.entry(event.attempt).or_default();
        assert_eq!(event.event.seq, *seq + 1, "I4: numbers have no gap");
        *seq += 1;
    }
    for view in attempts {
        let stored = last.get(&view.attempt.id).copied().unwrap_or_default();
        assert_eq!(view.attempt.acked_seq, stored, "I4: what is acknowledged is stored");
    }
}

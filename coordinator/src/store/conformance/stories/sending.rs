//! What people say to sessions: messages, answers, and forks that go on from a session's files.

use std::time::Duration;

use kage_core::attempt::{AttemptState, EndReason};
use kage_core::checkpoint::CheckpointReason;
use kage_core::event::{EventBody, VerdictKind};
use kage_core::fallback::AdapterLacks;
use kage_core::id::{JobId, SessionId};
use kage_core::session::{Answer, CannotAnswer, MessageState, Session, SessionState, SessionStateKind, Successor};
use kage_core::task::TaskState;

use super::checkpoints::{base, resume, taken};
use super::{CHECKED, begin, end, state, verify_job, view};
use crate::store::conformance::fixture::{
    appended, at, attempt_id, claimed, committed, crashed, event, request, started, task_id, told, verdict,
};
use crate::store::conformance::followed::{Changes, Followed as _, StopAttempt};
use crate::store::conformance::invariants::{Seen, check};
use crate::store::{AnswerQuestion, CancelTask, ForkSession, QueuedJob, SendMessage, Store, StoreError};

fn send(n: u128, session: SessionId, text: &str) -> SendMessage {
    SendMessage {
        request: request(n),
        task: task_id(1),
        session,
        text: text.to_owned(),
        next_job: JobId::from_random((1 << 90) + n),
        now: at(40_000 + n as u64),
    }
}

fn fork(n: u128, session: SessionId, adapter: &str) -> ForkSession {
    ForkSession {
        request: request(n),
        task: task_id(1),
        session,
        checkpoint: None,
        next: Successor {
            id: SessionId::from_random(5000 + n),
            name: format!("{adapter}-{n}").parse().unwrap(),
            adapter: adapter.parse().unwrap(),
            model: Some("large".to_owned()),
            fallbacks: Vec::new(),
            by: "user".to_owned(),
        },
        text: None,
        beside: 1,
        lacks: AdapterLacks::default(),
        lacks_verify: None,
        waits_for_agent: false,
        next_job: JobId::from_random((1 << 90) + n),
        now: at(50_000),
    }
}

async fn session(store: &Store, n: usize) -> Session {
    view(store).await.sessions[n].clone()
}

async fn states(store: &Store) -> Vec<MessageState> {
    let messages = session(store, 0).await.messages;
    messages.kept.iter().map(|message| message.state).collect()
}

/// What an offer of the job tells the model.
async fn told_with(store: &Store, job: &QueuedJob) -> String {
    let work = store.work(job.task, job.job).await.unwrap().unwrap();
    let told = work.session.instruction(&work.checkpoints, "true");
    told.map(|told| told.text).unwrap_or_default()
}

/// The only session has verified, and stands on checkpoint 1.
async fn verified(store: &Store) -> SessionId {
    let jobs = begin(store, 1, CHECKED).await;
    started(store, &jobs[0], 1, 1, 1).await;
    let checkpoint = EventBody::CheckpointTaken(taken(1, &base(), CheckpointReason::Final));
    let events = vec![event(1, checkpoint), committed(2), claimed(3)];
    let check = appended(store, 1, 1, events).await.queued.remove(0);
    started(store, &check, 2, 1, 2).await;
    told(store, 2, 2, vec![verdict(1, VerdictKind::Passed)]).await;
    assert_eq!(view(store).await.task.state, TaskState::Succeeded);
    jobs[0].subject.session().unwrap()
}

pub(in crate::store::conformance) async fn a_session_that_is_over_goes_on_with_what_it_is_told(store: Store) {
    let id = verified(&store).await;
    let changes = store.followed(send(60, id, "and the docs")).await;
    let again = changes.queued[0].clone();
    let now = view(&store).await;
    assert_eq!((now.task.state, now.task.ended_at), (TaskState::Running, None));
    assert_eq!(resume(&store, &again).await.number, 1);
    assert_eq!(told_with(&store, &again).await, "# Next instruction\n\nand the docs");
    let sent = &now.sessions[0].messages.kept[0];
    assert_eq!((sent.number, sent.by.as_str(), sent.at), (1, "user", at(40_060)));
    // The same call again says it once.
    assert_eq!(store.apply(send(60, id, "and the docs")).await.unwrap(), 1);
    let seen = check(&store, &Seen::default()).await;

    // More is told with the same attempt, and an offer that does not have it is void.
    let changes = store.followed(send(61, id, "in French")).await;
    assert_eq!(changes.withdrawn, [again.job]);
    let again = changes.queued[0].clone();
    assert_eq!(again.queued_at, at(40_060), "it does not lose its place");
    assert!(told_with(&store, &again).await.ends_with("and the docs\n\nin French"));
    started(&store, &again, 3, 2, 1).await;
    assert_eq!(states(&store).await, [MessageState::Given { attempt: 2, from: 1 }; 2]);
    check(&store, &seen).await;

    // It fails for good: the result that it had stands.
    told(&store, 3, 1, vec![crashed(1)]).await;
    let again = store.queued_jobs().await.unwrap().remove(0);
    assert!(
        told_with(&store, &again).await.ends_with("in French"),
        "no conversation has it"
    );
    started(&store, &again, 4, 3, 1).await;
    told(&store, 4, 1, vec![crashed(1)]).await;
    assert_eq!(state(&store, 0).await, SessionStateKind::Verified);
    assert_eq!(view(&store).await.task.state, TaskState::Succeeded);

    // A new result replaces it, and is verified.
    let again = store.followed(send(62, id, "try again")).await.queued.remove(0);
    started(&store, &again, 5, 4, 1).await;
    let check_again = appended(&store, 5, 1, vec![committed(1), claimed(2)])
        .await
        .queued
        .remove(0);
    assert_eq!(state(&store, 0).await, SessionStateKind::Claimed);
    started(&store, &check_again, 6, 1, 2).await;
    told(&store, 6, 2, vec![verdict(1, VerdictKind::Failed)]).await;
    assert_eq!(state(&store, 0).await, SessionStateKind::Rejected);
    let followed = |attempt| MessageState::Followed { attempt, from: 1 };
    assert_eq!(states(&store).await, [followed(2), followed(2), followed(4)]);
    end(&store).await;
}

pub(in crate::store::conformance) async fn what_is_said_meanwhile_comes_before_verify(store: Store) {
    let jobs = begin(&store, 1, CHECKED).await;
    let id = jobs[0].subject.session().unwrap();
    started(&store, &jobs[0], 1, 1, 1).await;
    let changes = store.followed(send(60, id, "and the docs")).await;
    assert_eq!((changes.queued.len(), changes.stop.len()), (0, 0), "it works on");
    assert_eq!(changes.tasks, [task_id(1)], "who watches sees it");
    let again = appended(&store, 1, 1, vec![committed(1), claimed(2)])
        .await
        .queued
        .remove(0);
    assert_eq!(state(&store, 0).await, SessionStateKind::Queued);
    assert_eq!(told_with(&store, &again).await, "# Next instruction\n\nand the docs");
    started(&store, &again, 2, 2, 1).await;
    let check = appended(&store, 2, 1, vec![committed(1), claimed(2)])
        .await
        .queued
        .remove(0);
    started(&store, &check, 3, 1, 2).await;

    // Nobody waits for the verdict on what is not the result any more.
    let changes = store.followed(send(61, id, "not like this")).await;
    let stop = StopAttempt {
        attempt: attempt_id(3),
        agent: crate::store::conformance::fixture::agent_id(2),
        keep_worktree: false,
    };
    assert_eq!(changes.stop, [stop]);
    let ended = store.attempt(attempt_id(3)).await.unwrap().unwrap().attempt.state;
    let reason = EndReason::Superseded;
    assert_eq!(ended, AttemptState::Ended { reason, at: at(40_061) });
    assert_eq!(changes.queued.len(), 1);

    // It is stopped: what it had claimed stands, and nothing more is told while it stops.
    started(&store, &changes.queued[0], 4, 3, 1).await;
    let cancel = CancelTask {
        request: request(70),
        task: task_id(1),
        now: at(50_000),
    };
    store.apply(cancel).await.unwrap();
    let refused = store.apply(send(62, id, "more")).await;
    assert!(matches!(refused, Err(StoreError::CannotSend(_))), "{refused:?}");
    told(&store, 4, 1, vec![claimed(1)]).await;
    let SessionState::Unverified {
        result: Some(_),
        verdict,
    } = session(&store, 0).await.state
    else {
        panic!("{:?}", session(&store, 0).await.state);
    };
    assert!(verdict.unwrap().message.contains("a message came"));
    end(&store).await;
}

pub(in crate::store::conformance) async fn a_message_takes_the_place_of_a_verify_that_waits(store: Store) {
    let verify = verify_job(&store).await;
    let id = verify.subject.session().unwrap();
    let changes = store.followed(send(60, id, "one more thing")).await;
    assert_eq!(changes.withdrawn, [verify.job]);
    assert_eq!(state(&store, 0).await, SessionStateKind::Queued);
    assert_eq!(store.queued_jobs().await.unwrap().len(), 1);
    end(&store).await;
}

pub(in crate::store::conformance) async fn another_adapter_goes_on_beside_from_the_same_files(store: Store) {
    let id = verified(&store).await;
    let changes = store.followed(fork(60, id, "other")).await;
    let job = changes.queued[0].clone();
    assert_eq!(job.adapter.as_str(), "other");
    let now = view(&store).await;
    assert_eq!((now.task.state, now.sessions.len()), (TaskState::Running, 2));
    let (from, forked) = (&now.sessions[0], &now.sessions[1]);
    assert_eq!(from.state.kind(), SessionStateKind::Verified, "it stays as it is");
    assert_eq!((forked.name.as_str(), forked.attempts), ("other-60", 0));
    assert_eq!(forked.requirements, from.requirements);
    assert_eq!(resume(&store, &job).await.number, 1);
    let own = store.checkpoints(task_id(1), forked.id).await.unwrap();
    assert_eq!((own.len(), own[0].attempt, own[0].session), (1, 0, forked.id));
    assert!(forked.note_to_model().contains("another tool"));
    assert_eq!(store.followed(fork(60, id, "other")).await, Changes::default());

    // Its own checkpoints follow, and it is verified like every session.
    started(&store, &job, 3, 1, 1).await;
    let next = EventBody::CheckpointTaken(taken(2, &own[0].taken.commit, CheckpointReason::Final));
    let events = vec![event(1, next), committed(2), claimed(3)];
    let check = appended(&store, 3, 1, events).await.queued.remove(0);
    started(&store, &check, 4, 1, 2).await;
    told(&store, 4, 2, vec![verdict(1, VerdictKind::Passed)]).await;
    let now = view(&store).await;
    assert_eq!(now.task.state, TaskState::Succeeded);
    assert_eq!(now.sessions[1].checkpoints.taken, 2);

    let refused = store.apply(fork(61, id, "third")).await;
    assert!(
        matches!(refused, Err(StoreError::SessionsChanged { .. })),
        "{refused:?}"
    );
    let mut lacking = fork(62, id, "third");
    (lacking.beside, lacking.lacks) = (2, AdapterLacks(vec![Some("no agent has it".to_owned())]));
    let refused = store.apply(lacking.clone()).await;
    assert!(matches!(refused, Err(StoreError::NoAgent(_))), "{refused:?}");
    let mut unchecked = fork(63, id, "third");
    (unchecked.beside, unchecked.lacks_verify) = (2, Some("no agent may verify results".to_owned()));
    let refused = store.apply(unchecked).await;
    assert!(
        matches!(&refused, Err(error @ StoreError::NoAgent(_)) if error.to_string().starts_with("its results")),
        "{refused:?}"
    );
    lacking.waits_for_agent = true;
    lacking.text = Some("only the docs".to_owned());
    let job = store.followed(lacking).await.queued.remove(0);
    assert!(told_with(&store, &job).await.ends_with("only the docs"));
    end(&store).await;
}

pub(in crate::store::conformance) async fn a_question_is_answered_while_it_waits(store: Store) {
    let job = begin(&store, 1, CHECKED).await.remove(0);
    let id = job.subject.session().unwrap();
    let answer = |number, allow| AnswerQuestion {
        task: task_id(1),
        session: id,
        number,
        answer: Answer {
            allow,
            by: "user".to_owned(),
        },
    };
    let refused = async |number, allow| match store.apply(answer(number, allow)).await.unwrap_err() {
        StoreError::CannotAnswer(why) => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(1, true).await, CannotAnswer::NotOpen(1));
    started(&store, &job, 1, 1, 1).await;
    let asked = EventBody::PermissionAsked {
        number: 1,
        about: "run x".to_owned(),
        wait: Duration::from_secs(600),
    };
    told(&store, 1, 1, vec![event(1, asked)]).await;
    assert_eq!(refused(7, true).await, CannotAnswer::NotOpen(7));
    // The same answer again changes nothing, another one comes too late.
    for _ in 0..2 {
        let answered = store.apply(answer(1, true)).await.unwrap();
        assert!(
            answered.open_questions()[0]
                .answer
                .as_ref()
                .is_some_and(|answer| answer.allow)
        );
    }
    assert!(matches!(
        refused(1, false).await,
        CannotAnswer::Answered {
            number: 1,
            allowed: true,
            ..
        }
    ));
    let decided = EventBody::PermissionDecided {
        number: 1,
        allowed: true,
        by: "by user".to_owned(),
    };
    told(&store, 1, 1, vec![event(2, decided)]).await;
    assert!(session(&store, 0).await.open_questions().is_empty());
    check(&store, &Seen::default()).await;
}

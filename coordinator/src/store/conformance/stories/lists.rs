//! Lookups, lists and counts.

use std::path::Path;

use kage_core::id::{Digest, ProjectId};
use kage_core::task::{Labels, TaskOrigin, TaskState};

use crate::store::conformance::fixture::{agent, agent_id, at, create, request, spec, task_id, two_agents};
use crate::store::{
    CancelTask, ContextPut, ContextSent, Named, PutContext, RecordAgent, RecordContextSent, SetCordoned, SetDraining,
    Store, StoreError, TaskFilter, TaskOrder,
};

fn labels(pairs: &[(&str, &str)]) -> Labels {
    let owned = pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    owned.collect()
}

pub(in crate::store::conformance) async fn pages_are_newest_first_and_stay_put(store: Store) {
    for n in 1..=5 {
        let mut command = create(n, spec(1, None), at(0));
        if n == 3 {
            command.spec.project = "other".parse().unwrap();
        }
        store.apply(command).await.unwrap();
    }
    let all = TaskFilter::default();
    let first = store.tasks(&all, None, 2).await.unwrap();
    let ids = |page: &crate::store::TaskPage| page.tasks.iter().map(|view| view.task.id).collect::<Vec<_>>();
    assert_eq!(ids(&first), [task_id(5), task_id(4)]);
    assert_eq!(first.tasks[0].sessions.len(), 1);
    // Rows stored in between do not shift the next page, and the token survives as text.
    store.apply(create(6, spec(1, None), at(0))).await.unwrap();
    let token = first.next.unwrap().to_string().parse().unwrap();
    let second = store.tasks(&all, Some(token), 2).await.unwrap();
    assert_eq!((ids(&second), second.next), (vec![task_id(2), task_id(1)], None));
    let other = TaskFilter::all(&"other".parse().unwrap());
    let other = store.tasks(&other, None, 2).await.unwrap();
    assert_eq!((ids(&other), other.next), (vec![task_id(3)], None));
    for text in ["", "t", "1", "t01", "tFF", "tffffffffffffffff"] {
        assert!(text.parse::<crate::store::PageToken>().is_err(), "{text}");
    }
}

pub(in crate::store::conformance) async fn pages_are_of_what_a_filter_takes(store: Store) {
    let place = |tree: &str| {
        let (home, root) = (Path::new("/home"), Path::new(tree));
        TaskOrigin::of("machine", home, root, Some("c".repeat(40).parse().unwrap()))
    };
    let elsewhere = TaskOrigin::of("other machine", Path::new("/home"), Path::new("/home"), None);
    let origins = [
        Some(place("/home")),
        Some(place("/linked")),
        Some(elsewhere.clone()),
        None,
        Some(place("/home")),
        Some(place("/linked")),
    ];
    for (n, origin) in (1..).zip(&origins) {
        let mut command = create(n, spec(1, None), at(u64::try_from(n).unwrap()));
        command.origin.clone_from(origin);
        if n == 2 || n == 5 {
            command.spec.labels = labels(if n == 2 {
                &[("team", "a")]
            } else {
                &[("team", "a"), ("x", "y")]
            });
        }
        if let (4, Some(repository)) = (n, &mut command.spec.repository) {
            repository.name = "lib".parse().unwrap();
        }
        command.request.principal = if n < 5 { "me" } else { "somebody" }.to_owned();
        if n == 6 {
            command.spec.project = "other".parse().unwrap();
        }
        store.apply(command).await.unwrap();
    }
    let cancel = CancelTask {
        request: request(7),
        task: task_id(3),
        now: at(9),
    };
    store.apply(cancel).await.unwrap();
    let projects = store.projects().await.unwrap();
    let projects: Vec<_> = projects.iter().map(|p| (p.project.as_str(), p.tasks, p.open)).collect();
    assert_eq!(projects, [("default", 5, 4), ("other", 1, 1)]);
    let all = TaskFilter::default();
    let labelled = |pairs| TaskFilter {
        labels: labels(pairs),
        ..TaskFilter::default()
    };
    let of_states = |states: &[TaskState]| TaskFilter {
        states: Some(states.to_vec()),
        ..TaskFilter::default()
    };
    let (home, linked) = (place("/home"), place("/linked"));
    let repository = Some(home.repository.clone());
    let (mine, project) = (Some("me".to_owned()), "other".parse().unwrap());
    let cases: [(TaskFilter, &[u128]); 17] = [
        (all.clone(), &[5, 4, 3, 2, 1]),
        (labelled(&[("team", "a")]), &[5, 2]),
        (labelled(&[("team", "a"), ("x", "y")]), &[5]),
        (labelled(&[("team", "b")]), &[]),
        (of_states(&[TaskState::Cancelled]), &[3]),
        (of_states(&[TaskState::Running, TaskState::Succeeded]), &[5, 4, 2, 1]),
        (
            TaskFilter {
                works_on: Some("lib".parse().unwrap()),
                ..all.clone()
            },
            &[4],
        ),
        (
            TaskFilter {
                created_from: Some(at(2)),
                created_before: Some(at(4)),
                ..all.clone()
            },
            &[3, 2],
        ),
        (
            TaskFilter {
                order: TaskOrder::OldestFirst,
                ..all.clone()
            },
            &[1, 2, 3, 4, 5],
        ),
        (
            TaskFilter {
                repository: repository.clone(),
                order: TaskOrder::OldestFirst,
                ..all.clone()
            },
            &[1, 2, 5],
        ),
        (
            TaskFilter {
                repository: repository.clone(),
                ..all.clone()
            },
            &[5, 2, 1],
        ),
        (
            TaskFilter {
                repository: repository.clone(),
                created_by: mine.clone(),
                ..all.clone()
            },
            &[2, 1],
        ),
        (
            TaskFilter {
                worktree: Some(home.worktree),
                ..all.clone()
            },
            &[5, 1],
        ),
        (
            TaskFilter {
                worktree: Some(linked.worktree.clone()),
                created_by: mine.clone(),
                ..all.clone()
            },
            &[2],
        ),
        (
            TaskFilter {
                repository: Some(elsewhere.repository),
                worktree: Some(linked.worktree),
                ..all.clone()
            },
            &[],
        ),
        (
            TaskFilter {
                created_by: mine,
                ..all.clone()
            },
            &[4, 3, 2, 1],
        ),
        (
            TaskFilter {
                repository,
                project,
                ..all
            },
            &[6],
        ),
    ];
    for (filter, expected) in cases {
        // One at a time, so that the page token works with the filter too.
        let (mut found, mut token) = (Vec::new(), None);
        loop {
            let page = store.tasks(&filter, token, 1).await.unwrap();
            found.extend(page.tasks.into_iter().map(|view| view.task));
            token = page.next;
            if token.is_none() {
                break;
            }
        }
        let expected: Vec<_> = expected.iter().map(|n| task_id(*n)).collect();
        assert_eq!(
            found.iter().map(|task| task.id).collect::<Vec<_>>(),
            expected,
            "{filter:?}"
        );
        for task in found {
            let place = (1..).map(task_id).zip(0..6).find(|(id, _)| *id == task.id).unwrap().1;
            assert_eq!(task.origin, origins[place]);
            assert_eq!(
                task.created_by.as_deref(),
                Some(if place < 4 { "me" } else { "somebody" })
            );
        }
    }
}

pub(in crate::store::conformance) async fn tasks_are_found_by_a_prefix(store: Store) {
    for n in [0x1234_5678, 0x1234_5679, 0xabcd_0000] {
        store.apply(create(n, spec(1, None), at(0))).await.unwrap();
    }
    let full = task_id(0x1234_5678).to_string();
    let cases = [
        (full.as_str(), Named::One(task_id(0x1234_5678))),
        ("12345678", Named::One(task_id(0x1234_5678))),
        ("1234567", Named::Ambiguous),
        ("ABCD", Named::One(task_id(0xabcd_0000))),
        ("abc", Named::NotFound),
        ("ffff", Named::NotFound),
        ("12345678-", Named::NotFound),
        ("zzzz", Named::NotFound),
    ];
    for (text, expected) in cases {
        assert_eq!(store.find_task(text).await.unwrap(), expected, "{text}");
    }
}

pub(in crate::store::conformance) async fn agents_are_remembered_with_their_drain(store: Store) {
    two_agents(&store).await;
    let drain = |request| SetDraining {
        request,
        agent: agent_id(1),
        draining: true,
        now: at(1),
    };
    store.apply(drain(Some(request(1)))).await.unwrap();
    store.apply(RecordAgent { agent: agent(1, 1) }).await.unwrap();
    assert!(store.agents().await.unwrap()[0].draining, "the same start drains on");
    store.apply(RecordAgent { agent: agent(1, 2) }).await.unwrap();
    assert_eq!(store.agents().await.unwrap(), [agent(1, 2), agent(2, 1)]);
    // The repeat of an old request must not drain the new start, and reports so.
    assert!(!store.apply(drain(Some(request(1)))).await.unwrap().draining);
    assert!(!store.agents().await.unwrap()[0].draining);
    store.apply(drain(None)).await.unwrap();
    assert!(store.agents().await.unwrap()[0].draining);
    let nobody = SetDraining {
        agent: agent_id(9),
        ..drain(None)
    };
    let error = store.apply(nobody).await.unwrap_err();
    assert!(matches!(error, StoreError::NotFound { what: "agent", .. }), "{error}");
}

pub(in crate::store::conformance) async fn a_cordon_outlives_every_start_of_its_agent(store: Store) {
    two_agents(&store).await;
    let cordon = |n, agent, cordoned| SetCordoned {
        request: request(n),
        agent: agent_id(agent),
        cordoned,
        now: at(1),
    };
    store.apply(cordon(1, 1, true)).await.unwrap();
    store.apply(RecordAgent { agent: agent(1, 2) }).await.unwrap();
    let cordoned = async || {
        store
            .agents()
            .await
            .unwrap()
            .iter()
            .map(|agent| agent.cordoned)
            .collect::<Vec<_>>()
    };
    assert_eq!(cordoned().await, [true, false]);
    store.apply(cordon(2, 1, false)).await.unwrap();
    // The repeat of an old request must not cordon it again, and reports so.
    assert!(!store.apply(cordon(1, 1, true)).await.unwrap().cordoned);
    assert_eq!(cordoned().await, [false, false]);
    let error = store.apply(cordon(3, 9, true)).await.unwrap_err();
    assert!(matches!(error, StoreError::NotFound { what: "agent", .. }), "{error}");
}

pub(in crate::store::conformance) async fn contexts_count_puts_uses_and_sends(store: Store) {
    two_agents(&store).await;
    let (project, digest) = (ProjectId::default(), Digest::of(b"{}"));
    let put = |n| PutContext {
        request: request(n),
        project: project.clone(),
        digest: digest.clone(),
        size: 1000,
        now: at(1),
    };
    assert_eq!(store.context_stats(&project, &digest).await.unwrap(), None);
    let mut command = create(1, spec(2, None), at(1));
    command.spec.context_base = Some(digest.clone());
    command.spec.assignments[1].context_delta = Some("12345".to_owned());
    let error = store.apply(command.clone()).await.unwrap_err();
    assert!(matches!(error, StoreError::NotFound { what: "context", .. }), "{error}");

    assert_eq!(store.apply(put(10)).await.unwrap(), ContextPut { created: true });
    assert_eq!(store.apply(put(10)).await.unwrap(), ContextPut { created: true });
    assert_eq!(store.apply(put(11)).await.unwrap(), ContextPut { created: false });
    store.apply(command.clone()).await.unwrap();
    store.apply(command).await.unwrap();
    for bytes in [1000, 500] {
        let sent = RecordContextSent {
            project: project.clone(),
            digest: digest.clone(),
            agent: agent_id(2),
            bytes,
        };
        store.apply(sent).await.unwrap();
    }
    let stats = store.context_stats(&project, &digest).await.unwrap().unwrap();
    assert_eq!(
        (stats.size, stats.times_put, stats.sessions, stats.delta_bytes),
        (1000, 2, 2, 5)
    );
    let sent = ContextSent {
        agent: agent_id(2),
        agent_name: "agent-2".to_owned(),
        times: 2,
        bytes: 1500,
    };
    assert_eq!(stats.sent, [sent]);
    assert_eq!(store.context_size(&project, &digest).await.unwrap(), Some(1000));
    assert_eq!(store.context_size(&"p".parse().unwrap(), &digest).await.unwrap(), None);
}

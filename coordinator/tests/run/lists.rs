//! Lists, errors about wrong requests, and the coordinator's description of itself.

use std::collections::BTreeMap;

use kage_proto::status::ApiError;
use kage_proto::v1;

use crate::cluster::{Cluster, spec};
use crate::retention::pushed;

async fn create(cluster: &Cluster, change: impl FnOnce(&mut v1::TaskSpec)) -> v1::Task {
    let mut spec = v1::TaskSpec::from(spec(&["one"]));
    change(&mut spec);
    let request = v1::CreateTaskRequest {
        spec: Some(spec),
        wait_for_agent: true,
        ..Default::default()
    };
    let created = cluster.client.tasks().create_task(request).await.unwrap();
    created.into_inner().task.unwrap()
}

async fn listed(cluster: &Cluster, request: v1::ListTasksRequest) -> Result<Vec<String>, ApiError> {
    let page = cluster.client.tasks().list_tasks(request).await?.into_inner();
    Ok(page.tasks.into_iter().map(|task| task.id).collect())
}

fn filtered(filter: v1::TaskFilter) -> v1::ListTasksRequest {
    v1::ListTasksRequest {
        filter: Some(filter),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_are_found_by_what_was_put_on_them_and_what_became_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path()).await;
    let labels = || BTreeMap::from([("team".to_owned(), "a".to_owned())]);
    let plain = create(&cluster, |_| {}).await.id;
    let labelled = create(&cluster, |spec| spec.labels = labels()).await;
    assert_eq!(labelled.spec.as_ref().unwrap().labels, labels());
    let cancel = v1::CancelTaskRequest {
        request_id: String::new(),
        task_id: plain.clone(),
    };
    cluster.client.tasks().cancel_task(cancel).await.unwrap();
    let both = [labelled.id.clone(), plain.clone()];

    let by = |change: fn(&mut v1::TaskFilter)| {
        let mut filter = v1::TaskFilter::default();
        change(&mut filter);
        filtered(filter)
    };
    let mut oldest = by(|_| {});
    oldest.order = v1::TaskOrder::OldestFirst.into();
    let cases = [
        (by(|_| {}), both.to_vec()),
        (oldest, vec![plain.clone(), labelled.id.clone()]),
        (by(|filter| filter.mine = true), both.to_vec()),
        (by(|filter| filter.created_by = "owner".to_owned()), both.to_vec()),
        (by(|filter| filter.created_by = "token:0".to_owned()), vec![]),
        (
            by(|filter| filter.labels = [("team".to_owned(), "a".to_owned())].into()),
            vec![labelled.id.clone()],
        ),
        (
            by(|filter| filter.states = vec![v1::TaskState::Cancelled.into()]),
            vec![plain.clone()],
        ),
        (by(|filter| filter.repository = "none".to_owned()), vec![]),
        (by(|filter| filter.created_before = Some(Default::default())), vec![]),
    ];
    for (request, expected) in cases {
        assert_eq!(listed(&cluster, request.clone()).await, Ok(expected), "{request:?}");
    }

    let wrong = v1::ListTasksRequest {
        order: 99,
        ..by(|filter| {
            filter.mine = true;
            filter.created_by = "owner".to_owned();
            filter.states = vec![0];
            filter.origin_worktree = "/home".to_owned();
            filter.repository = "No Such".to_owned();
        })
    };
    let expected = [
        "order",
        "filter.created_by",
        "filter.states",
        "filter.origin_worktree",
        "filter.repository",
    ];
    assert_eq!(wrong_fields(listed(&cluster, wrong).await), expected);
    cluster.stop().await;
}

fn wrong_fields<T>(answer: Result<T, ApiError>) -> Vec<String> {
    match answer {
        Err(ApiError::InvalidArgument { violations }) => violations.into_iter().map(|wrong| wrong.field).collect(),
        Err(error) => panic!("{error}"),
        Ok(_) => Vec::new(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_wrong_field_of_a_task_is_told_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path()).await;
    let mut wrong = v1::TaskSpec::from(spec(&["one", "one"]));
    wrong.prompt.clear();
    wrong.assignments[0].adapter = "No Such".to_owned();
    wrong.policy = Some(v1::Policy {
        priority: 99,
        timeout: Some(Default::default()),
        ..Default::default()
    });
    let request = v1::CreateTaskRequest {
        spec: Some(wrong),
        origin: Some(v1::TaskOrigin {
            worktree: "/home".to_owned(),
            repository: "0".repeat(64),
            head: String::new(),
        }),
        ..Default::default()
    };
    let refused = cluster
        .client
        .tasks()
        .create_task(request)
        .await
        .map_err(ApiError::from);
    let expected = [
        "spec.assignments[0].adapter",
        "spec.policy.timeout",
        "spec.policy.priority",
        "spec.prompt",
        "spec.assignments[1].name",
        "origin.worktree",
    ];
    assert_eq!(wrong_fields(refused), expected);
    let nothing = v1::CreateTaskRequest::default();
    let refused = cluster
        .client
        .tasks()
        .create_task(nothing)
        .await
        .map_err(ApiError::from);
    assert_eq!(wrong_fields(refused), ["spec"]);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn projects_and_repositories_are_listed_and_the_coordinator_tells_of_itself() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(&dir.path().join("coordinator")).await;
    pushed(&cluster, &dir.path().join("repo")).await;
    create(&cluster, |spec| spec.project = "other".to_owned()).await;
    let mut service = cluster.client.projects();
    let mut request = v1::ListProjectsRequest {
        page_size: 1,
        ..Default::default()
    };
    let mut found = Vec::new();
    loop {
        let page = service.list_projects(request.clone()).await.unwrap().into_inner();
        found.extend(page.projects.into_iter().map(|p| (p.name, p.tasks, p.open_tasks)));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(found, [("default".to_owned(), 0, 0), ("other".to_owned(), 1, 1)]);
    let of = |project: &str| v1::ListRepositoriesRequest {
        project: project.to_owned(),
        ..Default::default()
    };
    let repositories = service.list_repositories(of("default")).await.unwrap().into_inner();
    let paths: Vec<_> = repositories.repositories.iter().map(|r| r.git_path.as_str()).collect();
    assert_eq!(paths, ["/git/default/repo"]);
    let none = service.list_repositories(of("other")).await.unwrap().into_inner();
    assert_eq!(none.repositories, []);

    let info = cluster
        .client
        .server()
        .get_server_info(v1::GetServerInfoRequest {})
        .await;
    let info = info.unwrap().into_inner();
    assert_eq!((info.protocol_min, info.protocol_max, info.tls), (1, 1, false));
    assert!(!info.version.is_empty() && info.now.is_some());
    assert_eq!(info.limits.unwrap().prompt_bytes, 16 << 20);
    cluster.stop().await;
}

//! Origins and creators of tasks: stored as sent, and used in filters.

use std::path::Path;

use kage_core::task::TaskOrigin;
use kage_proto::client::Client;
use kage_proto::status::ApiError;
use kage_proto::v1;

use crate::admission::{person_of, request_id, start};
use crate::cluster::spec;

async fn create(client: &Client, origin: Option<&TaskOrigin>) -> Result<v1::Task, ApiError> {
    let request = v1::CreateTaskRequest {
        request_id: request_id(),
        spec: Some(spec(&["s"]).into()),
        wait_for_agent: true,
        origin: origin.cloned().map(Into::into),
    };
    let response = client.tasks().create_task(request).await?;
    Ok(response.into_inner().task.unwrap())
}

async fn listed(client: &Client, filter: v1::TaskFilter) -> Result<Vec<String>, ApiError> {
    let request = v1::ListTasksRequest {
        filter: Some(filter),
        ..Default::default()
    };
    let page = client.tasks().list_tasks(request).await?.into_inner();
    Ok(page.tasks.into_iter().map(|task| task.id).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_are_asked_for_by_place_and_by_who_created_them() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = start(dir.path()).await;
    let owner = &cluster.client;
    let person = person_of(&cluster, owner, v1::Role::Submit, "default").await.unwrap();
    let at = |tree| TaskOrigin::of("machine", Path::new("/home"), Path::new(tree), None);
    let (main, linked) = (at("/home"), at("/linked"));

    let first = create(owner, Some(&main)).await.unwrap();
    let theirs = create(&person.client, Some(&main)).await.unwrap();
    let nowhere = create(owner, None).await.unwrap();
    assert_eq!(first.origin, Some(main.clone().into()));
    assert_eq!(nowhere.origin, None);
    // The coordinator identifies the creator; a caller's claim does not count.
    assert_eq!(first.created_by, "owner");
    assert_eq!(theirs.created_by, format!("token:{}", person.token.id));
    let got = v1::GetTaskRequest {
        task_id: theirs.id.clone(),
        view: v1::TaskView::Full.into(),
    };
    let got = owner.tasks().get_task(got).await.unwrap().into_inner().task.unwrap();
    assert_eq!((got.created_by, got.origin), (theirs.created_by, theirs.origin));

    let of = |mine, worktree: &TaskOrigin| v1::TaskFilter {
        origin_repository: worktree.repository.to_string(),
        origin_worktree: worktree.worktree.to_string(),
        mine,
        ..Default::default()
    };
    let (first, theirs) = (first.id, theirs.id);
    assert_eq!(
        listed(owner, of(false, &main)).await.unwrap(),
        [theirs.as_str(), first.as_str()]
    );
    assert_eq!(listed(owner, of(true, &main)).await.unwrap(), [first.as_str()]);
    assert_eq!(
        listed(&person.client, of(true, &main)).await.unwrap(),
        [theirs.as_str()]
    );
    assert_eq!(listed(owner, of(false, &linked)).await.unwrap(), [""; 0]);
    let of_repository = v1::TaskFilter {
        origin_worktree: String::new(),
        ..of(true, &linked)
    };
    assert_eq!(listed(owner, of_repository).await.unwrap(), [first.as_str()]);
    let wrong = v1::TaskFilter {
        origin_repository: "/home".into(),
        ..Default::default()
    };
    let error = listed(owner, wrong).await.unwrap_err();
    assert!(error.to_string().contains("filter.origin_repository"), "{error}");
}

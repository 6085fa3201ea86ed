//! Repositories that are deleted: only those that no task is of, also when tasks are being made.

use kage_proto::status::ApiError;
use kage_proto::v1;

use crate::admission::{member, person_of, request_id, start};
use crate::cluster::{Cluster, spec};
use crate::retention::pushed;

/// A task of the repository `repo`, in which this base is.
async fn create(cluster: &Cluster, base: &str) -> Result<String, ApiError> {
    let mut spec = v1::TaskSpec::from(spec(&["one"]));
    spec.repository = Some(v1::Repository {
        name: "repo".to_owned(),
        base_commit: base.to_owned(),
        ..v1::Repository::default()
    });
    let request = v1::CreateTaskRequest {
        spec: Some(spec),
        wait_for_agent: true,
        ..Default::default()
    };
    let created = cluster.client.tasks().create_task(request).await?;
    Ok(created.into_inner().task.unwrap().id)
}

/// The reason why it was refused.
async fn delete(cluster: &Cluster, id: &str) -> Result<(), &'static str> {
    let request = v1::DeleteRepositoryRequest {
        request_id: id.to_owned(),
        project: String::new(),
        name: "repo".to_owned(),
    };
    let deleted = cluster.client.projects().delete_repository(request).await;
    deleted.map(drop).map_err(|status| ApiError::from(status).reason())
}

async fn remove(cluster: &Cluster, task: &str) {
    let cancel = v1::CancelTaskRequest {
        request_id: request_id(),
        task_id: task.to_owned(),
    };
    cluster.client.tasks().cancel_task(cancel).await.unwrap();
    let remove = v1::RemoveTaskRequest {
        request_id: request_id(),
        task_id: task.to_owned(),
        now: true,
    };
    cluster.client.tasks().remove_task(remove).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_is_deleted_when_no_task_is_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("coordinator");
    let cluster = Cluster::start(&data).await;
    assert_eq!(delete(&cluster, "none").await, Err("NOT_FOUND"));
    let (base, _) = pushed(&cluster, &dir.path().join("repo")).await;
    let task = create(&cluster, base.as_str()).await.unwrap();
    assert_eq!(delete(&cluster, "early").await, Err("FAILED_PRECONDITION"));
    remove(&cluster, &task).await;
    for _ in 0..2 {
        assert_eq!(delete(&cluster, "once").await, Ok(()), "also when it is repeated");
    }
    assert!(!data.join("repos/default/repo.git").exists());
    let batch = std::fs::read_dir(data.join("quarantine"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap();
    assert!(
        batch.path().join("repos/default/repo.git/HEAD").exists(),
        "a person can bring it back"
    );
    assert_eq!(delete(&cluster, "again").await, Err("NOT_FOUND"));
    let gone = create(&cluster, base.as_str()).await.unwrap_err();
    assert_eq!(gone.reason(), "FAILED_PRECONDITION");

    // A push makes it anew, and the old call does not take that one away from its task.
    pushed(&cluster, &dir.path().join("anew")).await;
    assert_eq!(delete(&cluster, "other").await, Ok(()));
    let (base, _) = pushed(&cluster, &dir.path().join("third")).await;
    create(&cluster, base.as_str()).await.unwrap();
    assert_eq!(delete(&cluster, "once").await, Ok(()));
    assert!(data.join("repos/default/repo.git").exists());
    cluster.stop().await;
}

/// Tasks are made while the repository is deleted: whichever is first, none is without it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_task_loses_its_repository_to_a_deletion() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("coordinator");
    let cluster = Cluster::start(&data).await;
    for round in 0..20 {
        let (base, _) = pushed(&cluster, &dir.path().join(format!("repo-{round}"))).await;
        let id = request_id();
        let (created, other, deleted) = tokio::join!(
            create(&cluster, base.as_str()),
            create(&cluster, base.as_str()),
            delete(&cluster, &id)
        );
        let made: Vec<String> = [created, other].into_iter().flatten().collect();
        let there = data.join("repos/default/repo.git").exists();
        assert_eq!(there, deleted.is_err(), "{deleted:?}");
        assert!(there || made.is_empty(), "a task is without its repository");
        for task in made {
            remove(&cluster, &task).await;
        }
        if there {
            assert_eq!(delete(&cluster, "").await, Ok(()));
        }
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn admins_of_its_project_delete_it_and_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = start(dir.path()).await;
    let _agent = member(&cluster, "mine").await;
    let cases = [
        (v1::Role::Submit, "mine", "PERMISSION_DENIED"),
        (v1::Role::Admin, "theirs", "PERMISSION_DENIED"),
        (v1::Role::Admin, "mine", "NOT_FOUND"),
    ];
    for (role, project, expected) in cases {
        let person = person_of(&cluster, &cluster.client, role, project).await.unwrap();
        let request = v1::DeleteRepositoryRequest {
            request_id: String::new(),
            project: "mine".to_owned(),
            name: "repo".to_owned(),
        };
        let refused = person.client.projects().delete_repository(request).await.unwrap_err();
        assert_eq!(ApiError::from(refused).reason(), expected, "{role:?} of {project}");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_works_only_in_folders_that_its_base_has() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(&dir.path().join("coordinator")).await;
    let repo = dir.path().join("repo");
    std::fs::create_dir_all(repo.join("packages/web")).unwrap();
    std::fs::write(repo.join("packages/web/a"), "a").unwrap();
    let (base, _) = pushed(&cluster, &repo).await;
    let mut refused = Vec::new();
    for folder in ["packages/web", "packages/api", "packages/web/a"] {
        for field in [
            "repository.folder",
            "policy.verify.setup_folder",
            "policy.verify.verify_folder",
        ] {
            let mut spec = v1::TaskSpec::from(spec(&["one"]));
            let mut repository = v1::Repository {
                name: "repo".to_owned(),
                base_commit: base.to_string(),
                ..v1::Repository::default()
            };
            let checks = spec.policy.get_or_insert_default().verify.get_or_insert_default();
            match field {
                "repository.folder" => folder.clone_into(&mut repository.folder),
                "policy.verify.setup_folder" => folder.clone_into(&mut checks.setup_folder),
                _ => folder.clone_into(&mut checks.verify_folder),
            }
            spec.repository = Some(repository);
            let request = v1::CreateTaskRequest {
                spec: Some(spec),
                wait_for_agent: true,
                ..Default::default()
            };
            match cluster.client.tasks().create_task(request).await {
                Ok(_) => assert_eq!(folder, "packages/web"),
                Err(status) => {
                    let text = format!("no folder {folder};");
                    assert!(status.message().contains(&text), "{status}");
                    assert!(status.message().contains(field), "{status}");
                    refused.push((folder, field));
                }
            }
        }
    }
    assert_eq!(refused.len(), 6);
}

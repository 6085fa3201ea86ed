//! Tokens of one project: what they allow there, and that other projects do not exist for them.

use kage_proto::client::Client;
use kage_proto::status::ApiError;
use kage_proto::v1;
use kage_proto::v1::watch_tasks_response::Item;
use tonic::{Response, Status};

use crate::admission::{call, hello_of, member, person_of, request_id, start};
use crate::cluster::{FakeAgent, soon, spec};

async fn create(client: &Client, project: &str) -> Result<v1::Task, Status> {
    let mut spec: v1::TaskSpec = spec(&["s"]).into();
    spec.project = project.to_owned();
    let request = v1::CreateTaskRequest {
        request_id: request_id(),
        spec: Some(spec),
        wait_for_agent: true,
        origin: None,
    };
    let response = client.tasks().create_task(request).await?;
    Ok(response.into_inner().task.unwrap())
}

/// The reason why a call was refused.
fn reason<T>(answer: Result<T, Status>) -> &'static str {
    match answer {
        Ok(_) => "none",
        Err(status) => ApiError::from(status).reason(),
    }
}

async fn get(client: &Client, task: &str) -> Result<Response<v1::GetTaskResponse>, Status> {
    let task_id = task.to_owned();
    client
        .tasks()
        .get_task(v1::GetTaskRequest {
            task_id,
            view: v1::TaskView::Full.into(),
        })
        .await
}

/// What a watch of many tasks sends until it has caught up, and its cursor then.
async fn watched(client: &Client, cursor: &str) -> (Vec<String>, String) {
    let request = v1::WatchTasksRequest {
        cursor: cursor.to_owned(),
        ..Default::default()
    };
    let mut stream = client.tasks().watch_tasks(request).await.unwrap().into_inner();
    let mut told = Vec::new();
    loop {
        let response = soon("an item", stream.message()).await.unwrap().unwrap();
        told.push(match response.item.unwrap() {
            Item::Task(task) => task.id,
            Item::Gone(gone) => format!("-{}", gone.task_id),
            Item::Reset(_) => "reset".to_owned(),
            Item::CaughtUp(_) => return (told, response.cursor),
            Item::Agent(_) | Item::Hold(_) => panic!("nobody asked"),
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_of_a_project_says_nothing_of_tasks_of_others() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = start(dir.path()).await;
    let person = person_of(&cluster, &cluster.client, v1::Role::Submit, "mine")
        .await
        .unwrap();
    let own = create(&person.client, "").await.unwrap().id;
    let other = create(&cluster.client, "").await.unwrap().id;
    let (told, cursor) = watched(&person.client, "").await;
    assert_eq!(told, ["reset".to_owned(), own.clone()]);
    let cancel = v1::CancelTaskRequest {
        request_id: request_id(),
        task_id: other.clone(),
    };
    cluster.client.tasks().cancel_task(cancel).await.unwrap();
    assert_eq!(watched(&person.client, &cursor).await.0, Vec::<String>::new());
    let remove = v1::RemoveTaskRequest {
        request_id: request_id(),
        task_id: other.clone(),
        now: true,
    };
    let (_, everywhere) = watched(&cluster.client, "").await;
    cluster.client.tasks().remove_task(remove).await.unwrap();
    // Whose it was nobody knows any more: it may have been one of theirs.
    assert_eq!(watched(&person.client, &cursor).await.0, ["reset".to_owned(), own]);
    assert_eq!(watched(&cluster.client, &everywhere).await.0, [format!("-{other}")]);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_a_project_opens_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = start(dir.path()).await;
    let person = person_of(&cluster, &cluster.client, v1::Role::Submit, "mine")
        .await
        .unwrap();
    assert_eq!(person.token.project, "mine");
    let submit = person.client;
    let other = create(&cluster.client, "").await.unwrap();

    let own = create(&submit, "").await.unwrap();
    assert_eq!(
        own.spec.as_ref().unwrap().project,
        "mine",
        "its own where none is named"
    );
    assert_eq!(reason(create(&submit, "default").await), "PERMISSION_DENIED");
    assert_eq!(reason(get(&submit, &own.id).await), "none");
    assert_eq!(reason(get(&submit, &own.id[..8]).await), "none");
    // For its holder other tasks do not exist, in any call.
    assert_eq!(reason(get(&submit, &other.id).await), "NOT_FOUND");
    let report = v1::GetReportRequest {
        task_id: other.id.clone(),
    };
    assert_eq!(reason(submit.tasks().get_report(report).await), "NOT_FOUND");
    let watch = v1::WatchTaskRequest {
        task_id: other.id.clone(),
        ..Default::default()
    };
    assert_eq!(reason(submit.tasks().watch_task(watch).await), "NOT_FOUND");
    let cancel = v1::CancelTaskRequest {
        request_id: request_id(),
        task_id: other.id.clone(),
    };
    assert_eq!(reason(submit.tasks().cancel_task(cancel).await), "NOT_FOUND");
    let diff = v1::GetDiffRequest {
        task_id: other.id.clone(),
        ..Default::default()
    };
    assert_eq!(reason(submit.tasks().get_diff(diff).await), "NOT_FOUND");
    let select = v1::SelectResultRequest {
        task_id: other.id.clone(),
        ..Default::default()
    };
    assert_eq!(reason(submit.tasks().select_result(select).await), "NOT_FOUND");
    let (own_ids, cursor) = watched(&submit, "").await;
    assert_eq!(own_ids, ["reset".to_owned(), own.id.clone()]);
    assert_eq!(watched(&submit, &cursor).await.0, Vec::<String>::new());
    let listed = submit
        .tasks()
        .list_tasks(v1::ListTasksRequest::default())
        .await
        .unwrap();
    assert_eq!(listed.into_inner().tasks.len(), 1);
    let projects = submit
        .projects()
        .list_projects(v1::ListProjectsRequest::default())
        .await;
    let projects = projects.unwrap().into_inner().projects;
    assert_eq!(projects.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["mine"]);
    let elsewhere = v1::ListRepositoriesRequest {
        project: "default".to_owned(),
        ..Default::default()
    };
    assert_eq!(
        reason(submit.projects().list_repositories(elsewhere).await),
        "PERMISSION_DENIED"
    );
    let there = v1::ListTasksRequest {
        project: "default".to_owned(),
        ..Default::default()
    };
    assert_eq!(reason(submit.tasks().list_tasks(there).await), "PERMISSION_DENIED");
    let there = v1::WatchTasksRequest {
        project: "default".to_owned(),
        ..Default::default()
    };
    assert_eq!(reason(submit.tasks().watch_tasks(there).await), "PERMISSION_DENIED");
    let context = v1::GetContextRequest {
        project: "default".to_owned(),
        digest: "0".repeat(64),
    };
    assert_eq!(
        reason(submit.contexts().get_context(context).await),
        "PERMISSION_DENIED"
    );
    for (project, status) in [("default", 403), ("mine", 404)] {
        let blob = format!("/v1/blobs/{project}/{}", "0".repeat(64));
        assert_eq!(call(&submit, "GET", &blob, &[]).await.0, status, "{blob}");
        let git = format!("/git/{project}/repo/info/refs?service=git-upload-pack");
        assert_eq!(call(&submit, "GET", &git, &[]).await.0, status, "{git}");
    }

    // It is the same after a restart.
    cluster.stop().await;
    let cluster = start(dir.path()).await;
    let back = Client::connect_as(&cluster.url, &person.credentials).await.unwrap();
    assert_eq!(reason(get(&back, &other.id).await), "NOT_FOUND");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_admin_of_a_project_looks_after_that_project() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = start(dir.path()).await;
    let admin = person_of(&cluster, &cluster.client, v1::Role::Admin, "mine")
        .await
        .unwrap()
        .client;
    let foreign = person_of(&cluster, &cluster.client, v1::Role::View, "")
        .await
        .unwrap()
        .token;

    // A caller cannot give more rights than it has.
    let own = person_of(&cluster, &admin, v1::Role::View, "").await.unwrap().token;
    assert_eq!(own.project, "mine");
    let more = person_of(&cluster, &admin, v1::Role::View, "default").await;
    assert_eq!(reason(more), "PERMISSION_DENIED");
    let listed = admin
        .access()
        .list_tokens(v1::ListTokensRequest::default())
        .await
        .unwrap();
    assert!(listed.into_inner().tokens.iter().all(|token| token.project == "mine"));
    let revoke = |token: &v1::Token| v1::RevokeTokenRequest {
        request_id: request_id(),
        token_id: token.id.clone(),
    };
    assert_eq!(reason(admin.access().revoke_token(revoke(&foreign)).await), "NOT_FOUND");
    assert_eq!(reason(admin.access().revoke_token(revoke(&own)).await), "none");
    let join = |project: &str| v1::CreateJoinTokenRequest {
        request_id: request_id(),
        project: project.to_owned(),
        ..v1::CreateJoinTokenRequest::default()
    };
    assert_eq!(reason(admin.fleet().create_join_token(join("")).await), "none");
    assert_eq!(
        reason(admin.fleet().create_join_token(join("default")).await),
        "PERMISSION_DENIED"
    );

    let (mine, theirs) = (member(&cluster, "mine").await, member(&cluster, "theirs").await);
    let _mine = FakeAgent::connect_by(&mine.client, hello_of(&mine)).await;
    let _theirs = FakeAgent::connect_by(&theirs.client, hello_of(&theirs)).await;
    let seen = admin
        .fleet()
        .list_agents(v1::ListAgentsRequest::default())
        .await
        .unwrap();
    let seen: Vec<_> = seen.into_inner().agents.into_iter().map(|agent| agent.id).collect();
    assert_eq!(seen, [mine.id.to_string()]);
    let mut pages = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListAgentsRequest {
            page_size: 1,
            page_token,
        };
        let page = cluster.client.fleet().list_agents(request).await.unwrap().into_inner();
        pages.push(page.agents.len());
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(pages, [1, 1]);
    let cordon = |agent: &str| v1::CordonAgentRequest {
        request_id: request_id(),
        agent: agent.to_owned(),
    };
    let revoke = |agent: &str| v1::RevokeAgentRequest {
        request_id: request_id(),
        agent: agent.to_owned(),
    };
    let (mine, theirs) = (mine.id.to_string(), theirs.id.to_string());
    for (agent, expected) in [(&theirs, "PERMISSION_DENIED"), (&mine, "none")] {
        assert_eq!(reason(admin.fleet().cordon_agent(cordon(agent)).await), expected);
        assert_eq!(reason(admin.fleet().revoke_agent(revoke(agent)).await), expected);
    }
    cluster.stop().await;
}

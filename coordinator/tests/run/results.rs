//! What sessions changed, as a reviewer gets it, and which result is to be landed.

use std::fs;

use kage_core::checkpoint::CheckpointReason;
use kage_core::event::{AttemptOutcome, EventBody};
use kage_proto::status::ApiError;
use kage_proto::v1;
use kage_proto::v1::get_diff_response::Item;

use crate::checkpoints::{Repo, start};
use crate::claims::unsaid;
use crate::cluster::{Cluster, FakeAgent, hello, soon};

/// What a difference is, once its stream came to its end.
#[derive(Debug, Default)]
struct Diff {
    header: v1::DiffHeader,
    files: Vec<(v1::FileDiff, Vec<u8>)>,
    totals: Option<v1::DiffTotals>,
}

async fn diff(cluster: &Cluster, request: v1::GetDiffRequest) -> Result<Diff, ApiError> {
    let mut stream = cluster.client.tasks().get_diff(request).await?.into_inner();
    let mut diff = Diff::default();
    while let Some(response) = soon("the difference", stream.message()).await? {
        match response.item.unwrap() {
            Item::Header(header) => diff.header = header,
            Item::File(file) => diff.files.push((file, Vec::new())),
            Item::Patch(bytes) => {
                assert!(bytes.len() <= kage_proto::MAX_INLINE);
                diff.files.last_mut().unwrap().1.extend(bytes);
            }
            Item::Totals(totals) => diff.totals = Some(totals),
        }
    }
    Ok(diff)
}

fn named(diff: &Diff) -> Vec<(&str, v1::FileStatus)> {
    let files = diff.files.iter();
    files
        .map(|(file, _)| (file.display_path.as_str(), file.status()))
        .collect()
}

async fn report(cluster: &Cluster, task_id: &str) -> v1::Best {
    let request = v1::GetReportRequest {
        task_id: task_id.to_owned(),
    };
    let report = cluster.client.tasks().get_report(request).await.unwrap().into_inner();
    report.report.unwrap().best.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_difference_is_streamed_file_by_file_and_a_result_is_selected() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(&dir.path().join("coordinator")).await;
    let repo = Repo::pushed(&cluster, &dir.path().join("repo")).await;
    let task = start(&cluster, &repo).await;
    let mut agent = FakeAgent::connect(&cluster, hello(1, 1)).await;
    let granted = agent.take().await;
    let asked = |from: &str, to: &str| v1::GetDiffRequest {
        task_id: task.id.clone(),
        from: from.to_owned(),
        to: to.to_owned(),
        ..Default::default()
    };
    // Nothing is there yet: the base is what it stands on.
    let nothing = diff(&cluster, asked("", "head")).await.unwrap();
    assert_eq!(
        (nothing.files.len(), nothing.totals),
        (0, Some(v1::DiffTotals::default()))
    );
    let error = diff(&cluster, asked("", "")).await.unwrap_err();
    let told = "a result of session one, which is running (with `to` = `head` its newest checkpoint is compared), \
                was not found";
    assert_eq!((error.reason(), error.to_string().as_str()), ("NOT_FOUND", told));
    let select = |session: &str| v1::SelectResultRequest {
        task_id: task.id.clone(),
        session: session.to_owned(),
        ..Default::default()
    };
    let early = cluster.client.tasks().select_result(select("one")).await;
    let early = ApiError::from(early.unwrap_err());
    assert_eq!(early.reason(), "FAILED_PRECONDITION");
    assert_eq!(early.to_string(), "session one has no result to select: it is running");

    let large: String = (0..20_000).map(|n| format!("line {n}\n")).collect();
    fs::write(repo.path.join("large.txt"), &large).unwrap();
    let first = repo
        .checkpoint(&cluster, &repo.base, CheckpointReason::FilesChanged)
        .await;
    fs::write(repo.path.join("a.txt"), "solved\n").unwrap();
    fs::rename(repo.path.join("large.txt"), repo.path.join("moved.txt")).unwrap();
    let second = repo.checkpoint(&cluster, &first.commit, CheckpointReason::Final).await;
    // The result: the same tree, right on the base.
    let last = repo.checkpoint(&cluster, &repo.base, CheckpointReason::Final).await;
    let result = unsaid(&last.commit);
    let told = vec![
        EventBody::CheckpointTaken(first.clone()),
        EventBody::CheckpointTaken(second.clone()),
        EventBody::ResultCommitted {
            result,
            pack: last.pack.clone().unwrap(),
        },
        EventBody::Finished(AttemptOutcome::Claimed),
    ];
    agent.send_events(&granted.key, 1, told).await;
    agent.acked(4).await;

    let whole = diff(&cluster, asked("", "")).await.unwrap();
    assert_eq!(
        (whole.header.session.as_str(), &whole.header.from_commit),
        ("one", &repo.base.to_string())
    );
    assert_eq!(whole.header.to_commit, last.commit.to_string());
    let (added, modified, renamed) = (v1::FileStatus::Added, v1::FileStatus::Modified, v1::FileStatus::Renamed);
    assert_eq!(named(&whole), [("a.txt", modified), ("moved.txt", added)]);
    for (file, patch) in &whole.files {
        assert_eq!((file.patch_size, file.is_truncated), (patch.len() as u64, false));
        assert!(patch.starts_with(b"diff --git a/"));
    }
    assert!(whole.files[1].1.len() > large.len(), "in several pieces");
    let totals = v1::DiffTotals {
        files: 2,
        additions: 20_001,
        deletions: 1,
        truncated: 0,
    };
    assert_eq!(whole.totals, Some(totals));

    let between = diff(&cluster, asked("1", second.commit.as_str())).await.unwrap();
    assert_eq!(named(&between), [("a.txt", modified), ("moved.txt", renamed)]);
    assert_eq!(between.files[1].0.old_display_path, "large.txt");
    let mut only = asked("", "head");
    only.paths = vec![b"moved.txt".to_vec()];
    only.max_file_bytes = 1000;
    let cut = diff(&cluster, only.clone()).await.unwrap();
    assert_eq!(named(&cut), [("moved.txt", added)]);
    let (file, patch) = &cut.files[0];
    assert!(file.is_truncated && patch.len() <= 1000 && patch.ends_with(b"\n"));
    assert_eq!((file.additions, cut.totals.unwrap().truncated), (Some(20_000), 1));
    only.files_only = true;
    let listed = diff(&cluster, only.clone()).await.unwrap();
    assert_eq!((listed.files[0].1.len(), listed.files[0].0.is_truncated), (0, false));

    only.paths = vec![b"/etc".to_vec(), b"ok".to_vec(), b"\0".to_vec(), Vec::new()];
    let ApiError::InvalidArgument { violations } = diff(&cluster, only).await.unwrap_err() else {
        panic!("paths are checked");
    };
    let fields: Vec<_> = violations.iter().map(|wrong| wrong.field.as_str()).collect();
    assert_eq!(fields, ["paths[0]", "paths[2]", "paths[3]"]);
    let unknown = diff(&cluster, asked("7", "")).await.unwrap_err();
    assert_eq!(unknown.to_string(), "checkpoint 7 was not found");

    // Without a word the ranking says which.
    let best = report(&cluster, &task.id).await;
    assert_eq!(
        (best.reason(), best.session.as_str()),
        (v1::BestReason::Unchecked, "one")
    );
    let selected = cluster.client.tasks().select_result(select("one")).await.unwrap();
    let selected = selected.into_inner().task.unwrap();
    let selection = selected.selection.clone().unwrap();
    assert_eq!(
        (selected.view(), selection.session.as_str()),
        (v1::TaskView::Basic, "one")
    );
    assert_eq!(selection.selected_by, "owner");
    let best = report(&cluster, &task.id).await;
    assert_eq!(
        (best.reason(), best.session_id),
        (v1::BestReason::Selected, selection.session_id)
    );
    assert_eq!(best.message, "one was selected by owner");
    let nobody = cluster.client.tasks().select_result(select("two")).await;
    assert_eq!(ApiError::from(nobody.unwrap_err()).reason(), "NOT_FOUND");
    let back = cluster.client.tasks().select_result(select("")).await.unwrap();
    assert_eq!(back.into_inner().task.unwrap().selection, None);
    assert_eq!(report(&cluster, &task.id).await.reason(), v1::BestReason::Unchecked);
    cluster.stop().await;
}

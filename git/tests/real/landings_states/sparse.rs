//! Files that a person does not have on the disk: a sparse checkout.

use super::*;

const CHANGED: &str = "1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n11\ntwelve\n";

/// Of the folders only `inside` is on the disk.
fn sparse(sandbox: &Sandbox, top: &Path) {
    sandbox.git(top, &["sparse-checkout", "set", "--cone", "inside"]);
}

/// With an index that has folders where nothing of them is on the disk.
fn sparse_index(sandbox: &Sandbox, top: &Path) {
    sandbox.git(top, &["sparse-checkout", "set", "--cone", "--sparse-index", "inside"]);
}

fn changes_outside(top: &Path) {
    edit(&top.join("folder/file"), "12\n", "twelve\n");
    edit(&top.join("text"), "12\n", "twelve\n");
}

#[tokio::test]
async fn what_is_not_on_the_disk_is_merged_in_the_index() {
    for before in [sparse, sparse_index] {
        let story = Story::new(before, changes_outside).await;
        assert!(!story.source.join("folder").exists());
        let merged = story.merge(Strategy::Auto).await;
        assert!(matches!(merged, Ok(Merged::Committed(_))), "{merged:?}");
        assert_eq!(
            (story.show("folder/file"), story.show("text")),
            (CHANGED.to_owned(), CHANGED.to_owned())
        );
        assert_eq!(story.git(&["status", "--porcelain"]), "");
        assert_eq!(story.git(&["ls-files", "-t", "folder"]), "S folder/file");
        assert!(!story.source.join("folder").exists());
        assert_eq!(story.read("text"), CHANGED);

        let story = Story::new(before, |top| fs::remove_dir_all(top.join("folder")).unwrap()).await;
        let merged = story.merge(Strategy::Auto).await;
        assert!(matches!(merged, Ok(Merged::Committed(_))), "{merged:?}");
        assert_eq!(story.git(&["diff", "--name-status", "HEAD^"]), "D\tfolder/file");
        assert_eq!(story.git(&["status", "--porcelain"]), "");
    }
}

#[tokio::test]
async fn a_conflict_outside_a_sparse_checkout_is_put_on_the_disk() {
    let story = Story::new(sparse, changes_outside).await;
    let mine = LINES.replace("12\n", "mine\n");
    let blob = story
        .sandbox
        .git_with_input(&story.source, &["hash-object", "-w", "--stdin"], mine.as_bytes());
    let blob = String::from_utf8(blob).unwrap();
    let entry = format!("100644,{},folder/file", blob.trim());
    story.git(&["update-index", "--cacheinfo", &entry]);
    story.git(&["update-index", "--skip-worktree", "folder/file"]);
    story.git(&["commit", "-qm", "mine"]);
    assert_eq!(story.git(&["status", "--porcelain"]), "");
    assert!(matches!(
        story.merge(Strategy::Auto).await,
        Err(LandingError::Conflicts { .. })
    ));
    assert_eq!(story.merge(Strategy::Manual).await.unwrap(), Merged::LeftConflicts);
    assert_eq!(story.git(&["status", "--porcelain"]), "UU folder/file\nM  text");
    assert!(
        story
            .read("folder/file")
            .contains("<<<<<<< HEAD\nmine\n=======\ntwelve\n>>>>>>> result")
    );
}

#[tokio::test]
async fn files_that_are_applied_are_put_on_the_disk() {
    let story = Story::new(sparse, changes_outside).await;
    story.apply().await.unwrap();
    assert_eq!(
        (story.read("folder/file"), story.read("text")),
        (CHANGED.to_owned(), CHANGED.to_owned())
    );
}

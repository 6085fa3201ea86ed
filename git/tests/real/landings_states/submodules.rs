//! Results that change what is recorded for a submodule.

use kage_git::landing::MovedSubmodule;

use super::*;

fn with_submodule(sandbox: &Sandbox, top: &Path) {
    let other = sandbox.repository("part", &[("p", "p\n")]);
    let add = ["-c", "protocol.file.allow=always", "submodule", "add", "-q"];
    sandbox.git(top, &[&add[..], &[&url(&other), "sub"]].concat());
    sandbox.commit(top, "with a submodule");
}

fn edits_a_file(top: &Path) {
    edit(&top.join("text"), "12\n", "twelve\n");
}

const ELSEWHERE: &str = "1111111111111111111111111111111111111111";

impl Story {
    /// The result records this commit at a path; `None`: nothing is there any more.
    fn records(&mut self, path: &str, commit: Option<&str>) {
        let repository = git2::Repository::open(self.mirror.path()).unwrap();
        let result = git2::Oid::from_str(self.result.as_str()).unwrap();
        let result = repository.find_commit(result).unwrap();
        let mut tree = repository.treebuilder(Some(&result.tree().unwrap())).unwrap();
        match commit {
            Some(commit) => {
                let commit = git2::Oid::from_str(commit).unwrap();
                tree.insert(path, commit, 0o160_000).unwrap();
            }
            None => tree.remove(path).unwrap(),
        }
        let tree = repository.find_tree(tree.write().unwrap()).unwrap();
        let (who, parent) = (result.author(), result.parent(0).unwrap());
        let made = repository
            .commit(None, &who, &who, "result", &tree, &[&parent])
            .unwrap();
        self.result = made.to_string().parse().unwrap();
    }

    /// The submodule at a path in HEAD; empty = there is none.
    fn recorded(&self, path: &str) -> String {
        self.git(&["ls-tree", "HEAD", "--format=%(objectmode) %(objectname)", "--", path])
    }

    fn status(&self) -> String {
        self.git(&["status", "--porcelain", "--ignore-submodules=none"])
    }

    async fn moved(&self) -> Vec<MovedSubmodule> {
        let repository = UserRepo::discover(&self.source).await.unwrap();
        let (base, result) = (&self.base, &self.result);
        let plan = plan_merge(&repository, &self.mirror, base, result, Strategy::Auto, &message()).await;
        plan.unwrap().submodules().to_vec()
    }
}

#[tokio::test]
async fn another_commit_of_a_submodule_lands_and_what_is_checked_out_stays() {
    let mut story = Story::new(with_submodule, edits_a_file).await;
    story.records("sub", Some(ELSEWHERE));
    let checked_out = story.git(&["-C", "sub", "rev-parse", "HEAD"]);
    let moved = MovedSubmodule {
        path: "sub".into(),
        commit: Some(ELSEWHERE.parse().unwrap()),
    };
    assert_eq!(story.moved().await, [moved]);
    let merged = story.merge(Strategy::Auto).await;
    assert!(matches!(merged, Ok(Merged::Committed(_))), "{merged:?}");
    assert_eq!(story.recorded("sub"), format!("160000 {ELSEWHERE}"));
    assert!(story.read("text").contains("twelve"));
    assert_eq!(story.git(&["-C", "sub", "rev-parse", "HEAD"]), checked_out);
    assert_eq!(story.status(), " M sub", "as after git's own merge");
    // Files alone do not change it.
    story.git(&["reset", "-q", "--hard", "HEAD^"]);
    let refused = story.apply().await;
    let Err(LandingError::Unsupported { paths }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!((paths[0].path.as_str(), paths[0].reason), ("sub", "it is a submodule"));
}

#[tokio::test]
async fn a_submodule_comes_with_its_folder_and_an_empty_folder_goes_with_it() {
    let mut story = Story::new(with_submodule, edits_a_file).await;
    story.records("more", Some(ELSEWHERE));
    story.merge(Strategy::Auto).await.unwrap();
    assert_eq!(story.recorded("more"), format!("160000 {ELSEWHERE}"));
    assert!(story.source.join("more").is_dir());
    assert_eq!(story.status(), "");

    let mut story = Story::new(with_submodule, edits_a_file).await;
    story.records("sub", None);
    story.merge(Strategy::Auto).await.unwrap();
    assert_eq!(story.recorded("sub"), "");
    assert_eq!(story.status(), "?? sub/", "what is checked out there stays");

    let mut story = Story::new(with_submodule, edits_a_file).await;
    story.records("sub", None);
    fs::remove_dir_all(story.source.join("sub")).unwrap();
    fs::create_dir(story.source.join("sub")).unwrap();
    story.merge(Strategy::Auto).await.unwrap();
    assert!(!story.source.join("sub").exists());
    assert_eq!(story.status(), "");
}

#[tokio::test]
async fn a_commit_that_the_person_staged_for_a_submodule_is_in_the_way() {
    let mut story = Story::new(with_submodule, edits_a_file).await;
    story.records("sub", Some(ELSEWHERE));
    let cacheinfo = format!("160000,{},sub", "2".repeat(40));
    story.git(&["update-index", "--cacheinfo", &cacheinfo]);
    let before = fingerprint(&story.source);
    let refused = story.merge(Strategy::Auto).await;
    let Err(LandingError::Dirty { paths, .. }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(
        (paths[0].path.as_str(), paths[0].reason),
        ("sub", "it has staged changes")
    );
    assert_eq!(fingerprint(&story.source), before);
    // Both sides moved it.
    story.git(&["commit", "-q", "-m", "mine"]);
    let refused = story.merge(Strategy::Auto).await;
    assert!(matches!(&refused, Err(LandingError::Conflicts { conflicts }) if conflicts[0].path == "sub"));
    let left = story.merge(Strategy::Manual).await;
    assert!(matches!(left, Ok(Merged::LeftConflicts)), "{left:?}");
    assert_eq!(story.status(), "UU sub\nM  text");
}

#[tokio::test]
async fn a_file_in_place_of_a_submodule_is_left_to_git() {
    let story = Story::new(with_submodule, |top| {
        fs::remove_dir_all(top.join("sub")).ok();
        write(&top.join("sub"), "a file now\n");
    })
    .await;
    for refused in [
        story.merge(Strategy::Theirs).await.map(drop),
        story.apply().await.map(drop),
    ] {
        let Err(LandingError::Unsupported { paths }) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!((paths[0].path.as_str(), paths[0].reason), ("sub", "it is a submodule"));
    }
}

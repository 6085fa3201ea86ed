//! Folders that one side renamed. Where the other side's new files belong is not always clear, and
//! git reports that without a path that has two versions.

use super::*;

/// Four files in a folder, with different content.
fn four(sandbox: &Sandbox, top: &Path) {
    for name in ["f1", "f2", "f3", "f4"] {
        write(&top.join("src").join(name), format!("{name}\n{LINES}"));
    }
    sandbox.commit(top, "four files");
}

fn adds_inside(top: &Path) {
    write(&top.join("src/new"), "n\n");
}

fn moves(top: &Path, names: &[&str], to: &str) {
    fs::create_dir_all(top.join(to)).unwrap();
    for name in names {
        fs::rename(top.join("src").join(name), top.join(to).join(name)).unwrap();
    }
}

fn adds_two(top: &Path) {
    adds_inside(top);
    write(&top.join("a/new"), "other\n");
}

struct Case {
    name: &'static str,
    session: Session,
    person: Session,
    /// The places that a refusal names.
    places: &'static [&'static str],
    /// The paths that the result adds.
    added: &'static [&'static str],
}

const CASES: [Case; 2] = [
    Case {
        name: "the folder became two",
        session: adds_inside,
        person: |top| {
            moves(top, &["f1", "f2"], "a");
            moves(top, &["f3", "f4"], "b");
        },
        places: &["src"],
        added: &["src/new"],
    },
    Case {
        name: "another file of the result is where the new one belongs",
        session: adds_two,
        person: |top| moves(top, &["f1", "f2", "f3", "f4"], "a"),
        places: &["a/new", "src/new"],
        added: &["a/new", "src/new"],
    },
];

fn lines(of: &[&str], before: &str) -> String {
    let lines: Vec<_> = of.iter().map(|path| format!("{before}{path}")).collect();
    lines.join("\n")
}

#[tokio::test]
async fn a_new_file_in_a_folder_that_was_renamed_is_a_conflict_where_git_says_so() {
    for Case {
        name,
        session,
        person,
        places,
        ..
    } in CASES
    {
        for commits in [true, false] {
            let story = Story::new(four, session).await;
            person(&story.source);
            if commits {
                story.sandbox.commit(&story.source, "moved");
            }
            let before = fingerprint(&story.source);
            let mut refusals = vec![story.apply().await.map(drop)];
            if commits {
                refusals.push(story.merge(Strategy::Auto).await.map(drop));
            }
            for refused in refusals {
                let Err(LandingError::Conflicts { conflicts }) = refused else {
                    panic!("{name}, {commits}: {refused:?}");
                };
                let found: Vec<_> = conflicts.iter().map(|it| it.path.as_str()).collect();
                assert_eq!(found, places, "{name}");
                assert!(
                    conflicts.iter().all(|it| it.reason.contains("renamed the folder")),
                    "{name}"
                );
            }
            assert_eq!(fingerprint(&story.source), before, "{name}");
        }
    }
}

#[tokio::test]
async fn the_results_side_has_its_new_file_where_it_made_it() {
    for Case {
        name,
        session,
        person,
        added,
        ..
    } in CASES
    {
        let story = Story::new(four, session).await;
        person(&story.source);
        story.sandbox.commit(&story.source, "moved");
        let merged = story.merge(Strategy::Theirs).await;
        assert!(matches!(merged, Ok(Merged::Committed(_))), "{name}: {merged:?}");
        assert_eq!(
            story.git(&["diff", "--name-status", "HEAD^"]),
            lines(added, "A\t"),
            "{name}"
        );
        assert_eq!(story.git(&["status", "--porcelain"]), "", "{name}");
    }
}

#[tokio::test]
async fn a_conflict_without_content_is_left_to_the_person_as_git_leaves_it() {
    for Case {
        name,
        session,
        person,
        places,
        added,
    } in CASES
    {
        let story = Story::new(four, session).await;
        person(&story.source);
        story.sandbox.commit(&story.source, "moved");
        let head = story.sandbox.head(&story.source);
        let repository = UserRepo::discover(&story.source).await.unwrap();
        let (base, result) = (&story.base, &story.result);
        let message = message();
        let plan = plan_merge(&repository, &story.mirror, base, result, Strategy::Manual, &message);
        let plan = plan.await.unwrap();
        let conflicted = plan.paths().iter().filter(|it| it.landed_as == LandedAs::Conflicted);
        let conflicted: Vec<_> = conflicted.map(|it| it.path.to_str().unwrap()).collect();
        assert_eq!(conflicted, places, "{name}");
        assert_eq!(plan.execute().await.unwrap(), Merged::LeftConflicts, "{name}");
        assert_eq!(story.sandbox.head(&story.source), head, "{name}");
        assert_eq!(story.git(&["status", "--porcelain"]), lines(added, "A  "), "{name}");
        story.git(&["mv", "src/new", "elsewhere"]);
        story.git(&["commit", "-q", "--no-edit"]);
        let committed = story.git(&["diff", "--name-only", "HEAD^"]);
        assert!(
            committed.contains("elsewhere") && !committed.contains("src/new"),
            "{name}: {committed}"
        );
        story.git(&["fsck", "--strict"]);
    }
}

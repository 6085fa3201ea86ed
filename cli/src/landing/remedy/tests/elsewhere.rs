//! The same for a branch that is not checked out here, and for hooks.

use std::os::unix::fs::PermissionsExt as _;

use super::*;

/// A state: before, session, since; the branch; words of the refusal.
type Case = (&'static str, [&'static str; 3], &'static str, &'static [&'static str]);

const CASES: &[Case] = &[
    (
        "it conflicts",
        [
            "true",
            "sed -i s/5/five/ text",
            "git switch -qc side; sed -i s/5/FIVE/ text; git commit -qam mine; git switch -q main; echo mine >>text",
        ],
        "side",
        &[
            "the result conflicts with side",
            "worktree add",
            "--strategy manual",
            "--strategy theirs --into side",
        ],
    ),
    (
        "it is checked out here",
        ["true", "echo its >new", "true"],
        "main",
        &["the branch main is checked out in", "merge it there: `kage merge"],
    ),
    (
        "it is checked out here, with work in the way",
        ["true", "sed -i s/9/nine/ text", "sed -i s/1/one/ text"],
        "main",
        &[
            "the branch main is checked out in",
            "there, paths of the result have uncommitted changes",
            "stash pop",
        ],
    ),
    (
        "it is checked out in another working tree, and conflicts",
        [
            "true",
            "sed -i s/5/five/ text",
            "git worktree add -qb side ../side; cd ../side; sed -i s/5/FIVE/ text; git commit -qam mine",
        ],
        "side",
        &[
            "the branch side is checked out in",
            "--strategy manual --unverified --repo",
            "--strategy theirs",
        ],
    ),
    (
        "its working tree is gone",
        [
            "true",
            "echo its >new",
            "git worktree add -qb side ../side; rm -r ../side",
        ],
        "side",
        &["in a working tree that is gone", "worktree prune && kage merge"],
    ),
    (
        "it is being rebased",
        [
            "true",
            "echo its >new",
            "git worktree add -qb side ../side; cd ../side; echo 1 >>text; git commit -qam a; cd - >/dev/null; echo 2 >>text; \
             git commit -qam b; cd ../side; git rebase -q main; true",
        ],
        "side",
        &["the branch side is being rebased in", "rebase --abort && kage merge"],
    ),
];

/// Without the options of `ls` and colours, so that commands are between backticks.
async fn refusal(story: &Story, asked: Asked<'_>, name: &str) -> String {
    let refused = story.ask(asked).await.unwrap_err();
    let refused = refused.downcast::<Refusal>();
    refused.unwrap_or_else(|error| panic!("{name}: {error:#}")).message
}

#[tokio::test]
async fn whatever_a_refusal_names_for_another_branch_works() {
    for (name, [before, session, since], branch, words) in CASES {
        let story = Story::new(before, session, since).await;
        let onto = Onto {
            branch: landing::Branch::parse(branch).unwrap(),
            start: None,
        };
        let place = |story: &Story| story.folder.path().to_str().unwrap().to_owned();
        let first = place(&story);
        let message = refusal(&story, Asked::Into(Strategy::Auto, &onto), name).await;
        for word in *words {
            assert!(message.contains(word), "{name}: no {word:?} in {message}");
        }
        let named = commands(&message);
        assert!(!named.is_empty(), "{name}: {message}");
        let mut untouched = Some(story);
        for command in named {
            let story = match untouched.take() {
                Some(story) => story,
                None => Story::new(before, session, since).await,
            };
            let ran = story.run(&command.replace(&first, &place(&story))).await;
            assert!(ran.is_ok(), "{name}: {command}: {ran:?}");
        }
    }
}

#[tokio::test]
async fn whatever_a_refusal_about_hooks_names_works() {
    let fails = "printf '#!/bin/sh\nexit 1\n' >.git/hooks/pre-commit; chmod +x .git/hooks/pre-commit";
    let empties = "printf '#!/bin/sh\n: >\"$1\"\n' >.git/hooks/commit-msg; chmod +x .git/hooks/commit-msg";
    let differs = "git config core.hooksPath hooks; mkdir hooks; printf '#!/bin/sh\n' >hooks/pre-commit; chmod +x hooks/pre-commit";
    for (since, words) in [
        (
            fails,
            "your pre-commit hook failed (exit status: 1), so nothing was changed",
        ),
        (empties, "your hooks left no message"),
        (differs, "hooks/pre-commit: your hooks are made of it"),
    ] {
        let mut story = Story::new("true", "echo its >new", since).await;
        story.fetched.merge_flags.push("--hooks");
        let message = refusal(&story, AUTO, words).await;
        assert!(message.contains(words), "{message}");
        let commands = commands(&message);
        assert_eq!(commands.len(), 1, "{message}");
        assert!(!story.root.join("new").exists());
        story.run(&commands[0]).await.unwrap();
        assert!(story.root.join("new").exists());
    }

    // On a branch that has no files here there is nothing for hooks to look at.
    let passes =
        "git branch side; printf '#!/bin/sh\n[ -e new ]\n' >.git/hooks/pre-commit; chmod +x .git/hooks/pre-commit";
    let mut story = Story::new("true", "echo its >new", passes).await;
    story.fetched.merge_flags.push("--hooks");
    let onto = Onto {
        branch: landing::Branch::parse("side").unwrap(),
        start: None,
    };
    let hook = fs::metadata(story.root.join(".git/hooks/pre-commit")).unwrap();
    assert_ne!(hook.permissions().mode() & 0o111, 0);
    let error = LandingError::HooksNeedFiles { branch: "side".into() };
    let asked = Asked::Into(Strategy::Auto, &onto);
    let refused = told::<()>(&story.repository, &story.fetched, asked, Err(error))
        .await
        .unwrap_err();
    let commands = commands(&refused.to_string());
    assert_eq!(commands.len(), 1, "{refused}");
    story.run(&commands[0]).await.unwrap();
    assert!(sh(&story.root, "git show side:new"));
}

#[tokio::test]
async fn what_was_applied_in_part_is_asked_for_again_in_part() {
    let mut story = Story::new("true", "echo its >new; sed -i s/9/nine/ text", "true").await;
    story.fetched.only = vec!["a b/c".into(), "new".into()];
    let way = Way {
        repository: &story.repository,
        fetched: &story.fetched,
        here: story.root.clone(),
    };
    let again = way.kage(Asked::Apply);
    assert_eq!(
        again,
        "kage apply 01234567 --session w-1 --unverified --path 'a b/c' --path new"
    );
    let paths = land(&story.repository, &story.fetched).await.unwrap();
    let undo = crate::landing::undo_apply(&story.repository, &story.fetched, &paths).unwrap();
    assert!(undo.contains(" --undo") && undo.contains("new"), "{undo}");
    assert_eq!(fs::read_to_string(story.root.join("text")).unwrap(), LINES);
}

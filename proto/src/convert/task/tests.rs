use kage_core::priority::Priority;
use prost::Message as _;

use super::*;

fn spec() -> TaskSpec {
    let labels = |k: &str| [(k.to_owned(), "v".to_owned())].into();
    TaskSpec {
        project: "p1".parse().unwrap(),
        prompt: "fix it".into(),
        prompt_blob: None,
        repository: Some(RepositoryRef {
            name: "repo".parse().unwrap(),
            base: "b".repeat(64).parse().unwrap(),
            folder: Some("packages/web".parse().unwrap()),
            names: Some("d".repeat(40).parse().unwrap()),
        }),
        context_base: Some(Digest::of(b"{}")),
        assignments: vec![
            Assignment {
                name: "one".parse().unwrap(),
                adapter: "claude-api".parse().unwrap(),
                model: Some("m".into()),
                context_delta: Some("{\"a\":1}".into()),
                requirements: labels("gpu"),
                fallbacks: vec![Fallback {
                    adapter: "codex".parse().unwrap(),
                    model: Some("n".into()),
                }],
                timeout: Some(Duration::from_secs(8)),
            },
            Assignment {
                name: "two".parse().unwrap(),
                adapter: "shell".parse().unwrap(),
                model: None,
                context_delta: None,
                requirements: Default::default(),
                fallbacks: Vec::new(),
                timeout: None,
            },
        ],
        policy: Policy {
            verify: VerifyPolicy {
                setup: Some("make".into()),
                setup_folder: Some("packages".parse().unwrap()),
                verify: Some("make test".into()),
                verify_folder: Some("packages/api".parse().unwrap()),
                protect: vec!["tests/**".into()],
                leave_named: true,
                check_verify: true,
                timeout: Duration::from_secs(3),
            },
            timeout: Duration::from_secs(4),
            idle_timeout: Duration::from_secs(5),
            max_attempts: 6,
            course: kage_core::task::Course::FirstVerified(std::num::NonZeroU32::MIN),
            max_reworks: Some(7),
            session_setup: Some("make deps".into()),
            session_setup_folder: Some("packages".parse().unwrap()),
            results: ResultRules {
                excludes: ".idea/\n".into(),
                max_file_bytes: 1,
                ..ResultRules::default()
            },
            mcp: Some(Digest::of(b"mcp")),
            permissions: Some(Permissions {
                policy: PermissionPolicy::Ask,
                wait: Duration::from_secs(90),
            }),
            budget: TaskBudget {
                task: Limit {
                    money: Some(PicoUsd(2_500_000_000_000)),
                    tokens: Some(9),
                },
                session: Limit {
                    money: Some(PicoUsd(0)),
                    tokens: None,
                },
            },
            requirements: labels("os"),
            contain: kage_core::contain::Tier::T2,
            priority: Priority::HIGH,
        },
        fresh_baseline: true,
        labels: labels("team"),
        environment: TaskEnvironment {
            pass: ["DATABASE_URL".to_owned()].into(),
            set: [("RUST_LOG".to_owned(), "debug".to_owned())].into(),
            home: [".npmrc".to_owned()].into(),
            handed: Some(Digest::of(b"one")),
            files: Some("f".repeat(40).parse().unwrap()),
        },
    }
}

#[test]
fn specs_survive_the_wire() {
    let full = spec();
    assert_eq!(TaskSpec::try_from(v1::TaskSpec::from(full.clone())), Ok(full));
}

#[test]
fn origins_survive_the_wire_and_are_checked() {
    let path = std::path::Path::new("/p");
    for head in [None, Some("a".repeat(40).parse().unwrap())] {
        let origin = TaskOrigin::of("m", path, path, head);
        assert_eq!(TaskOrigin::try_from(v1::TaskOrigin::from(origin.clone())), Ok(origin));
    }
    let wire = v1::TaskOrigin {
        worktree: "/home/me".into(),
        ..v1::TaskOrigin::from(TaskOrigin::of("m", path, path, None))
    };
    assert_eq!(TaskOrigin::try_from(wire).unwrap_err().0[0].field, "worktree");
}

#[test]
fn what_is_not_set_is_the_default() {
    let wire = v1::TaskSpec {
        prompt: "x".into(),
        ..Default::default()
    };
    let spec = TaskSpec::try_from(wire).unwrap();
    assert_eq!(spec.policy, Policy::default());
    assert_eq!(spec.project, ProjectId::default());
    assert_eq!((spec.repository, spec.context_base), (None, None));
    let wire = v1::TaskSpec {
        policy: Some(v1::Policy {
            verify: Some(v1::VerifyPolicy::default()),
            ..Default::default()
        }),
        ..Default::default()
    };
    let policy = TaskSpec::try_from(wire).map(|spec| spec.policy);
    assert_eq!(policy, Ok(Policy::default()));
}

#[test]
fn a_basic_task_says_so_and_has_nothing_that_may_be_large() {
    let mut large = spec();
    large.prompt = format!("a{}", "ä".repeat(1 << 20));
    let domain = Task::new(kage_core::id::TaskId::from_random(1), large.clone(), Default::default());
    let session = || v1::Session {
        result: Some(v1::ResultCommit {
            diff: Some(v1::DiffStat {
                files: 1,
                ..Default::default()
            }),
            paths: vec!["a".into()],
            deleted: vec!["b".into()],
            ..Default::default()
        }),
        ..Default::default()
    };
    let basic = task(domain.clone(), [session()], TaskDetail::Basic);
    assert_eq!(basic.view(), v1::TaskView::Basic);
    let excerpt = basic.prompt_excerpt.len();
    assert_eq!(
        (excerpt, basic.prompt_size),
        (MAX_EXCERPT - 1, large.prompt.len() as u64)
    );
    let result = basic.sessions[0].result.as_ref().unwrap();
    assert!(result.paths.is_empty() && result.deleted.is_empty() && result.diff.is_some());
    let shown = basic.spec.unwrap();
    assert_eq!(shown.prompt, "");
    assert!(
        shown
            .assignments
            .iter()
            .all(|assignment| assignment.context_delta.is_empty())
    );
    assert!(shown.encoded_len() < 4096);

    let full = task(domain, [session()], TaskDetail::Full);
    assert_eq!((full.view(), full.prompt_size), (v1::TaskView::Full, basic.prompt_size));
    assert_eq!(full.spec, Some(large.into()));
    assert_eq!(full.sessions, [session()]);
}

#[test]
fn names_every_field_that_is_wrong() {
    let mut wire = v1::TaskSpec::from(spec());
    wire.project = "No Such".into();
    wire.prompt.clear();
    wire.context_base = "x".into();
    wire.assignments[0].name.clear();
    wire.assignments[0].fallbacks[0].adapter.clear();
    wire.assignments[1].adapter = "No Such".into();
    let nothing = Some(v1::VerifyPolicy {
        timeout: Some(super::super::time::Span::default()),
        ..Default::default()
    });
    wire.policy = wire.policy.map(|policy| v1::Policy {
        priority: 11,
        verify: nothing,
        ..policy
    });
    wire.repository = wire.repository.map(|repository| v1::Repository {
        base_commit: "HEAD".into(),
        folder: "../up".into(),
        names_commit: "HEAD".into(),
        ..repository
    });
    let told = |wrong: InvalidFields| -> Vec<String> { wrong.0.into_iter().map(|wrong| wrong.field).collect() };
    let unreadable = [
        "project",
        "repository.base_commit",
        "repository.folder",
        "repository.names_commit",
        "context_base",
        "assignments[0].name",
        "assignments[0].fallbacks[0].adapter",
        "assignments[1].adapter",
        "policy.verify.timeout",
        "policy.priority",
    ];
    assert_eq!(told(TaskSpec::try_from(wire.clone()).unwrap_err()), unreadable);
    // What stands in for them is within all bounds, so what is told besides is the person's.
    let all = told(checked_spec(wire).unwrap_err());
    assert_eq!(
        (&all[..unreadable.len()], &all[unreadable.len()..]),
        (
            &unreadable.map(str::to_owned)[..],
            // Without a verify command there is no first verified result.
            &["prompt".to_owned(), "policy.course".to_owned()][..]
        )
    );
}

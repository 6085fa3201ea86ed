//! What agents are sent and send: read as it was written, and refused when it is wrong.

use super::*;
use kage_core::checkpoint::WorktreeChoice;
use kage_core::session::PermissionPolicy;

fn session_work(prompt: PromptText) -> WorkKind {
    WorkKind::Session(SessionWork {
        name: "one".parse().unwrap(),
        adapter: "shell".parse().unwrap(),
        model: Some("m".into()),
        prompt,
        context_base: Some(Digest::of(b"base")),
        context_delta: Some("{}".into()),
        overridden: vec!["/a/b".into()],
        timeout: Duration::from_secs(1),
        idle_timeout: Duration::from_secs(2),
        resume: Some(Box::new(Resume {
            commit: "a".repeat(40).parse().unwrap(),
            tree: "b".repeat(40).parse().unwrap(),
            number: 1,
            packs: Vec::new(),
            segments: Vec::new(),
            position: 0,
            repeated_calls: 0,
            note: String::new(),
            instruction: "fix it".into(),
            instruction_known: false,
            instruction_anew: String::new(),
            worktree: WorktreeChoice::New,
        })),
        setup: Some("make deps".into()),
        setup_folder: Some("packages/web".parse().unwrap()),
        instruction: "and the docs".into(),
        mcp: Some(Digest::of(b"mcp")),
        permissions: Some(Permissions {
            policy: PermissionPolicy::Deny,
            wait: Duration::from_secs(1),
        }),
        results: ResultRules {
            excludes: ".idea/\n".into(),
            max_new_files: 7,
            ..ResultRules::default()
        },
    })
}

#[test]
fn work_survives_the_wire() {
    let kinds = [
        session_work(PromptText::Inline("do it".into())),
        session_work(PromptText::Blob(Digest::of(b"long"))),
        WorkKind::Verify(VerifyWork {
            commit: "c".repeat(40).parse().unwrap(),
            policy: VerifyPolicy::default(),
            left_alone: vec!["test.sh".into()],
        }),
    ];
    for kind in kinds {
        let work = Work {
            task: TaskId::from_random(1),
            session: SessionId::from_random(2),
            attempt: 3,
            project: ProjectId::default(),
            repository: None,
            environment: TaskEnvironment {
                pass: ["DATABASE_URL".to_owned()].into(),
                ..TaskEnvironment::default()
            },
            contain: Tier::T2,
            kind,
        };
        assert_eq!(Work::try_from(v1::Work::from(work.clone())), Ok(work));
    }
}

#[test]
fn unknown_work_names_its_kind() {
    let work = v1::Work {
        task_id: TaskId::from_random(1).to_string(),
        session_id: SessionId::from_random(1).to_string(),
        ..Default::default()
    };
    assert_eq!(Work::try_from(work).unwrap_err().field, "kind");
}

#[test]
fn work_of_a_tier_that_is_not_known_is_refused() {
    let work = v1::Work {
        task_id: TaskId::from_random(1).to_string(),
        session_id: SessionId::from_random(1).to_string(),
        contain: 99,
        ..Default::default()
    };
    assert_eq!(Work::try_from(work).unwrap_err().field, "contain");
}

#[test]
fn hello_survives_the_wire() {
    let hello = Hello {
        agent: AgentId::from_random(1),
        boot: BootId::from_random(2),
        protocols: 1..=2,
        name: "worker".into(),
        slots: 4,
        labels: [("os".to_owned(), "linux".to_owned())].into(),
        adapters: vec![AdapterInfo {
            name: "shell".parse().unwrap(),
            version: "1".into(),
            unavailable: Some("no sh".into()),
            resumes: Resumes::Position,
            access: Some(AdapterAccess::Login(LoginState {
                account: Some("max".into()),
                until: Some(kage_core::time::Timestamp::from_millis(1_764_000_000_000)),
                renewable: true,
                exclusive: false,
            })),
            slots: 0,
            hears: false,
        }],
        running: vec![AttemptKey {
            attempt: AttemptId::from_random(3),
            token: AttemptToken::from_random(4),
        }],
        pid: 77,
        version: "0.1.0".into(),
        answers_pings: true,
        machine: Some(Digest::of(b"machine")),
        contained: Containment {
            tier: Tier::T1,
            short_of: "no user namespaces".to_owned(),
        },
        context_deltas: 2,
    };
    assert_eq!(Hello::try_from(v1::Hello::from(hello.clone())), Ok(hello.clone()));
    let mut older = v1::Hello::from(hello.clone());
    older.contained = None;
    assert_eq!(Hello::try_from(older).unwrap().contained, Containment::NOTHING);
    let mut nameless = v1::Hello::from(hello);
    nameless.name.clear();
    assert_eq!(Hello::try_from(nameless).unwrap_err().field, "name");
}

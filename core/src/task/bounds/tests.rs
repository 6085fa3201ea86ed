//! Each bound of a spec, at it and beyond it.

use std::time::Duration;

use super::*;
use crate::id::{Digest, ProjectId};
use crate::task::{Assignment, Policy, RepositoryRef, VerifyPolicy};

/// The only problem of a spec, if it has one.
fn first(spec: &TaskSpec) -> Result<(), InvalidSpec> {
    match spec.problems().as_slice() {
        [] => Ok(()),
        [only] => Err(only.problem.clone()),
        several => panic!("{several:?}"),
    }
}

#[test]
fn takes_deltas_that_can_be_applied() {
    let spec = |base: Option<&[u8]>, delta: &str| TaskSpec {
        project: ProjectId::default(),
        prompt: "do it".to_owned(),
        prompt_blob: None,
        repository: None,
        context_base: base.map(Digest::of),
        assignments: vec![Assignment {
            name: "one".parse().unwrap(),
            adapter: "echo".parse().unwrap(),
            model: None,
            context_delta: Some(delta.to_owned()),
            requirements: Labels::new(),
            fallbacks: Vec::new(),
            timeout: None,
        }],
        policy: Policy::default(),
        fresh_baseline: false,
        labels: Labels::new(),
        environment: Default::default(),
    };
    let session: SessionName = "one".parse().unwrap();
    let invalid = |problem| {
        Err(InvalidSpec::InvalidDelta {
            session: session.clone(),
            problem,
        })
    };
    let cases = [
        (None, "{}", Err(InvalidSpec::DeltaWithoutBase(session.clone()))),
        (Some(&b"{}"[..]), r#"{"a":null}"#, Ok(())),
        (Some(b"{}"), r#"[2,{"a":["text",-1]}]"#, Ok(())),
        (Some(b"{}"), "[]", invalid(InvalidContext::NotADelta)),
        (
            Some(b"{}"),
            r#"{"a":[null]}"#,
            invalid(InvalidContext::Null("/a/0".parse().unwrap())),
        ),
    ];
    for (base, delta, expected) in cases {
        assert_eq!(first(&spec(base, delta)), expected, "{delta}");
    }
}

/// Labels of that many bytes.
fn labels(bytes: usize) -> Labels {
    Labels::from([("k".to_owned(), "v".repeat(bytes - 1))])
}

#[test]
fn a_spec_fits_into_the_offers_of_its_sessions() {
    type Change = fn(&mut TaskSpec);
    let delta = |session: usize| {
        let members = (0..100).map(|n| format!(r#""{session}-{n}-{}":1"#, "k".repeat(100)));
        format!("{{{}}}", members.collect::<Vec<_>>().join(","))
    };
    let good = TaskSpec {
        project: ProjectId::default(),
        prompt: "do it".to_owned(),
        prompt_blob: None,
        repository: Some(RepositoryRef {
            name: "repo".parse().unwrap(),
            base: "a".repeat(40).parse().unwrap(),
            folder: None,
            names: None,
        }),
        context_base: Some(Digest::of(b"{}")),
        assignments: (0..40)
            .map(|session| Assignment {
                name: format!("s-{session}").parse().unwrap(),
                adapter: "claude-api".parse().unwrap(),
                model: Some("m".repeat(MAX_MODEL_BYTES)),
                context_delta: (session < 20).then(|| delta(session)),
                requirements: labels(MAX_LABEL_BYTES),
                fallbacks: Vec::new(),
                timeout: None,
            })
            .collect(),
        policy: Policy {
            requirements: labels(MAX_LABEL_BYTES),
            verify: VerifyPolicy {
                verify: Some("v".repeat(MAX_COMMAND_BYTES)),
                ..VerifyPolicy::default()
            },
            ..Policy::default()
        },
        fresh_baseline: false,
        labels: Labels::new(),
        environment: Default::default(),
    };
    assert_eq!(good.problems(), []);
    let cases: [(Change, &str); 9] = [
        (|spec| spec.labels = labels(MAX_LABEL_BYTES + 1), "the list of labels"),
        (
            |spec| {
                let long = format!(r#"{{"a":"{}"}}"#, "x".repeat(MAX_DELTA_BYTES));
                spec.assignments[3].context_delta = Some(long);
            },
            "a context delta",
        ),
        (
            |spec| spec.policy.requirements = labels(MAX_LABEL_BYTES + 1),
            "the list of required labels",
        ),
        (
            |spec| spec.assignments[39].requirements = labels(MAX_LABEL_BYTES + 1),
            "the list of required labels",
        ),
        (
            |spec| spec.policy.verify.setup = Some("s".repeat(MAX_COMMAND_BYTES + 1)),
            "the set-up command",
        ),
        (
            |spec| spec.policy.verify.verify = Some("v".repeat(MAX_COMMAND_BYTES + 1)),
            "the verify command",
        ),
        (
            |spec| spec.policy.verify.protect = vec!["p".repeat(100); MAX_COMMAND_BYTES / 100 + 1],
            "the list of protected paths",
        ),
        (
            |spec| spec.assignments[39].model = Some("m".repeat(MAX_MODEL_BYTES + 1)),
            "the name of a model",
        ),
        (
            |spec| {
                for session in 20..40 {
                    let taken = spec.assignments[session - 20].context_delta.clone();
                    let other = taken.map(|delta| delta.replace("kkk", &format!("k{session}k")));
                    spec.assignments[session].context_delta = other;
                }
            },
            "the list of what the context deltas change",
        ),
    ];
    for (change, expected) in cases {
        let mut spec = good.clone();
        change(&mut spec);
        let found = first(&spec);
        assert!(
            matches!(&found, Err(InvalidSpec::TooLong { what, .. }) if *what == expected),
            "{expected}: {found:?}"
        );
    }
}

#[test]
fn a_spec_is_refused_for_what_no_type_can_rule_out() {
    type Change = fn(&mut TaskSpec);
    let assignment = |name: &str| Assignment {
        name: name.parse().unwrap(),
        adapter: "claude-api".parse().unwrap(),
        model: None,
        context_delta: None,
        requirements: Labels::new(),
        fallbacks: Vec::new(),
        timeout: None,
    };
    let good = TaskSpec {
        project: ProjectId::default(),
        prompt: "do it".to_owned(),
        prompt_blob: None,
        repository: None,
        context_base: None,
        assignments: vec![assignment("a"), assignment("b")],
        policy: Policy::default(),
        fresh_baseline: false,
        labels: Labels::new(),
        environment: Default::default(),
    };
    let cases: [(Change, Result<(), InvalidSpec>); 9] = [
        (|_| {}, Ok(())),
        (
            |spec| spec.labels = Labels::from([(String::new(), "v".to_owned())]),
            Err(InvalidSpec::EmptyLabel),
        ),
        (|spec| spec.prompt = " \n".to_owned(), Err(InvalidSpec::EmptyPrompt)),
        (|spec| spec.assignments.clear(), Err(InvalidSpec::NoAssignment)),
        (
            |spec| spec.assignments[1].name = spec.assignments[0].name.clone(),
            Err(InvalidSpec::DuplicateName("a".parse().unwrap())),
        ),
        (
            |spec| spec.policy.verify.verify = Some("true".to_owned()),
            Err(InvalidSpec::VerifyWithoutRepository),
        ),
        (
            |spec| spec.assignments[1].context_delta = Some("{}".to_owned()),
            Err(InvalidSpec::DeltaWithoutBase("b".parse().unwrap())),
        ),
        (
            |spec| spec.policy.verify.protect = vec!["tests".to_owned(), "a[".to_owned()],
            Err(InvalidSpec::ProtectPattern("a[".to_owned())),
        ),
        (
            |spec| spec.policy.idle_timeout = Duration::ZERO,
            Err(InvalidSpec::ZeroLimit("the idle time-out")),
        ),
    ];
    for (change, expected) in cases {
        let mut spec = good.clone();
        change(&mut spec);
        assert_eq!(first(&spec), expected);
    }
}

#[test]
fn no_more_results_stop_a_task_than_it_has_sessions() {
    let assignment = |name: &str| Assignment {
        name: name.parse().unwrap(),
        adapter: "claude-api".parse().unwrap(),
        model: None,
        context_delta: None,
        requirements: Labels::new(),
        fallbacks: Vec::new(),
        timeout: None,
    };
    let spec = |enough: u32| TaskSpec {
        project: ProjectId::default(),
        prompt: "do it".to_owned(),
        prompt_blob: None,
        repository: Some(RepositoryRef {
            name: "repo".parse().unwrap(),
            base: "a".repeat(40).parse().unwrap(),
            folder: None,
            names: None,
        }),
        context_base: None,
        assignments: vec![assignment("a"), assignment("b")],
        policy: Policy {
            verify: VerifyPolicy {
                verify: Some("true".to_owned()),
                ..VerifyPolicy::default()
            },
            course: Course::FirstVerified(std::num::NonZeroU32::new(enough).unwrap()),
            ..Policy::default()
        },
        fresh_baseline: false,
        labels: Labels::new(),
        environment: Default::default(),
    };
    assert_eq!(first(&spec(2)), Ok(()));
    let refused = first(&spec(3)).unwrap_err();
    assert_eq!(refused, InvalidSpec::TooFewToVerify { enough: 3, sessions: 2 });
    assert_eq!(
        refused.to_string(),
        "stopping at 3 verified results needs as many sessions; the task has 2"
    );
}

#[test]
fn all_that_is_wrong_is_told_at_once_with_its_place() {
    let assignment = |name: &str, model: usize| Assignment {
        name: name.parse().unwrap(),
        adapter: "claude-api".parse().unwrap(),
        model: Some("m".repeat(model)),
        context_delta: Some("{}".to_owned()),
        requirements: Labels::new(),
        fallbacks: Vec::new(),
        timeout: None,
    };
    let spec = TaskSpec {
        project: ProjectId::default(),
        prompt: String::new(),
        prompt_blob: None,
        repository: None,
        context_base: None,
        assignments: vec![assignment("a", 1), assignment("a", MAX_MODEL_BYTES + 1)],
        policy: Policy {
            timeout: Duration::ZERO,
            max_attempts: 0,
            verify: VerifyPolicy {
                verify: Some("true".to_owned()),
                protect: vec!["a[".to_owned()],
                ..VerifyPolicy::default()
            },
            ..Policy::default()
        },
        fresh_baseline: false,
        labels: Labels::new(),
        environment: Default::default(),
    };
    let problems = spec.problems();
    let fields: Vec<_> = problems.iter().map(|part| part.field.as_str()).collect();
    let expected = [
        "prompt",
        "repository",
        "policy.verify.protect",
        "policy.timeout",
        "policy.max_attempts",
        "assignments[0].context_delta",
        "assignments[1].model",
        "assignments[1].name",
        "assignments[1].context_delta",
    ];
    assert_eq!(fields, expected);
}

use super::*;

fn oid(number: u32) -> Oid {
    format!("{number:040x}").parse().unwrap()
}

const BASE: u32 = 0xba5e;

fn segment(from: u64, to: u64) -> Option<TranscriptSegment> {
    let blob = Digest::of(format!("{from}-{to}").as_bytes());
    Some(TranscriptSegment { blob, from, to })
}

/// Checkpoint `number` after `parent`; its commit has the same number.
fn checkpoint(number: u32, parent: u32, transcript: Option<TranscriptSegment>) -> Checkpoint {
    Checkpoint {
        session: SessionId::from_random(1),
        number,
        attempt: 1,
        adapter: "adapter".parse().unwrap(),
        agent: "a".to_owned(),
        position: transcript.as_ref().map_or(0, |segment| segment.to),
        taken: TakenCheckpoint {
            commit: oid(number),
            parent: oid(parent),
            tree: oid(number),
            reason: CheckpointReason::FilesChanged,
            note: String::new(),
            files_changed: 1,
            pack: Some(pack(number)),
            transcript,
            calls: None,
            told: 0,
        },
        calls: 0,
        safety: Safety::Unknown,
        taken_at: Timestamp::from_millis(1),
        stored_at: Timestamp::from_millis(1),
    }
}

fn pack(number: u32) -> Digest {
    Digest::of(&number.to_be_bytes())
}

/// Nothing differs from the base yet: the checkpoint is the base itself.
fn baseline(number: u32) -> Checkpoint {
    let mut first = checkpoint(number, BASE, None);
    first.taken.commit = oid(BASE);
    first.taken.pack = None;
    first.taken.reason = CheckpointReason::Baseline;
    first
}

fn with(mut checkpoint: Checkpoint, reason: CheckpointReason, safety: Safety) -> Checkpoint {
    checkpoint.taken.reason = reason;
    checkpoint.safety = safety;
    checkpoint
}

#[test]
fn a_chain_leads_from_the_base_through_every_parent() {
    let all = [
        baseline(1),
        checkpoint(2, BASE, segment(0, 3)),
        checkpoint(3, 2, None),
        checkpoint(4, 2, segment(3, 5)),
        checkpoint(5, 4, segment(5, 9)),
    ];
    let chain = |n: usize| Chain::of(&all[n - 1], &all, &oid(BASE)).unwrap();
    assert_eq!(chain(1), Chain::default());
    assert_eq!(chain(3).packs, [pack(2), pack(3)]);
    assert_eq!(
        (chain(3).position(), chain(4).position(), chain(5).position()),
        (3, 5, 9)
    );
    assert_eq!(chain(5).packs, [pack(2), pack(4), pack(5)], "3 is on another line");
    assert_eq!(chain(5).segments.len(), 3);
}

#[test]
fn a_new_conversation_leaves_the_old_one_out() {
    let all = [
        checkpoint(1, BASE, segment(0, 3)),
        checkpoint(2, 1, segment(3, 4)),
        checkpoint(3, 2, segment(0, 2)),
        checkpoint(4, 3, segment(2, 6)),
    ];
    let chain = Chain::of(&all[3], &all, &oid(BASE)).unwrap();
    assert_eq!(chain.packs.len(), 4, "the files still need every pack");
    assert_eq!(chain.segments, [segment(0, 2).unwrap(), segment(2, 6).unwrap()]);
}

#[test]
fn what_was_said_since_is_in_the_conversation_that_goes_on() {
    let of = |adapter: &str, mut checkpoint: Checkpoint| {
        checkpoint.adapter = adapter.parse().unwrap();
        checkpoint
    };
    let silent = |number, parent, position| Checkpoint {
        position,
        ..checkpoint(number, parent, None)
    };
    let all = [
        checkpoint(1, BASE, segment(0, 3)),
        silent(2, 1, 3),
        checkpoint(3, 2, segment(3, 5)),
        silent(4, 3, 5),
        // Another line, with another adapter.
        silent(5, 1, 3),
        of("other", checkpoint(6, 3, segment(0, 2))),
        of("other", silent(7, 6, 2)),
        of("other", silent(8, 3, 0)),
    ];
    let adapter = |name: &str| name.parse::<AdapterName>().unwrap();
    let cases = [
        (1, 1, "adapter", false),
        (2, 1, "adapter", false),
        (3, 1, "adapter", true),
        (4, 1, "adapter", true),
        (4, 3, "adapter", false),
        (5, 1, "adapter", false),
        (6, 3, "other", true),
        (7, 6, "other", false),
        // It begins a conversation of its own, without the other adapter's.
        (4, 1, "other", false),
        (8, 1, "other", false),
        (9, 1, "adapter", false),
    ];
    for (head, from, name, expected) in cases {
        let head = Head {
            number: head,
            commit: oid(head),
            worktree: WorktreeChoice::New,
        };
        let found = talked_since(&head, from, &all, &adapter(name));
        assert_eq!(found, expected, "{} since {from} by {name}", head.number);
    }
}

#[test]
fn a_missing_link_is_named() {
    let all = [
        checkpoint(1, BASE, segment(0, 3)),
        checkpoint(2, 77, None),
        checkpoint(3, 1, segment(4, 5)),
    ];
    assert_eq!(
        Chain::of(&all[1], &all, &oid(BASE)),
        Err(BrokenChain::UnknownParent {
            number: 2,
            parent: oid(77)
        })
    );
    let gap = BrokenChain::Gap {
        number: 3,
        from: 4,
        end: 3,
    };
    assert_eq!(Chain::of(&all[2], &all, &oid(BASE)), Err(gap));
}

#[test]
fn one_goes_on_from_what_one_stands_on() {
    use CheckpointReason::{BeforeRetry, FilesChanged, Final};
    let all = [
        with(checkpoint(1, BASE, None), FilesChanged, Safety::Safe),
        with(checkpoint(2, 1, None), FilesChanged, Safety::Unknown),
        with(checkpoint(3, 2, None), Final, Safety::Unsafe),
        with(checkpoint(4, 1, None), FilesChanged, Safety::Unknown),
        with(checkpoint(5, 4, None), BeforeRetry, Safety::Unknown),
        with(checkpoint(6, BASE, None), FilesChanged, Safety::Unknown),
    ];
    let cases = [
        (None, [None, None, None]),
        (Some(99), [None, None, None]),
        (Some(3), [Some(3), Some(3), Some(1)]),
        // A checkpoint on another line is newer, but was abandoned.
        (Some(2), [Some(2), Some(2), Some(1)]),
        (Some(5), [Some(5), Some(4), Some(1)]),
        (Some(6), [Some(6), Some(6), None]),
    ];
    for (head, expected) in cases {
        let head = head.map(|number| Head {
            number,
            commit: oid(number),
            worktree: WorktreeChoice::New,
        });
        let points = Points::of(head.as_ref(), &all);
        let half_done = points.half_done();
        let found = [points.newest, points.settled, points.safe].map(|point| point.map(|head| head.number));
        assert_eq!(found, expected, "{head:?}");
        assert_eq!(half_done, expected[0] != expected[1]);
    }
}

#[test]
fn what_is_needed_to_go_on_is_named_in_order() {
    let mut all = [
        checkpoint(1, BASE, segment(0, 3)),
        checkpoint(2, 1, segment(3, 4)),
        checkpoint(3, 99, None),
    ];
    all[1].calls = 2;
    let resume = |number, adapter: &str| {
        let head = Head {
            number,
            commit: oid(number),
            worktree: WorktreeChoice::Previous,
        };
        Resume::of(&head, &all, &oid(BASE), &adapter.parse().unwrap(), 5)
    };
    let whole = resume(2, "adapter").unwrap();
    assert_eq!(whole.packs, [pack(1), pack(2)]);
    assert_eq!((whole.segments.len(), whole.position, whole.repeated_calls), (2, 4, 3));
    assert_eq!(whole.worktree, WorktreeChoice::Previous);
    let other = resume(2, "another").unwrap();
    assert_eq!((other.packs.len(), other.segments.len(), other.position), (2, 0, 0));
    assert_eq!(resume(9, "adapter"), Err(BrokenChain::Unknown(9)));
    assert!(resume(3, "adapter").is_err());
}

#[test]
fn words_are_read_as_they_are_written() {
    for reason in CheckpointReason::ALL {
        assert_eq!(reason.as_str().parse(), Ok(reason));
    }
    for safety in Safety::ALL {
        assert_eq!(safety.to_string().parse(), Ok(safety));
    }
    assert!("baseline\n".parse::<CheckpointReason>().is_err());
    assert!("Safe".parse::<Safety>().is_err());
}

#[test]
fn one_adapter_does_not_go_on_with_what_another_one_said() {
    let by = |mut checkpoint: Checkpoint, adapter: &str| {
        checkpoint.adapter = adapter.parse().unwrap();
        checkpoint
    };
    let first = by(checkpoint(1, BASE, segment(0, 4)), "one");
    let silent = by(checkpoint(2, 1, None), "two");
    let began = by(checkpoint(3, 2, segment(0, 2)), "two");
    let all = [first, silent, began];
    let resume = |number: usize, adapter: &str| {
        let head = Head::of(&all[number - 1]);
        let resume = Resume::of(&head, &all, &oid(BASE), &adapter.parse().unwrap(), 0).unwrap();
        (resume.packs.len(), resume.position)
    };
    assert_eq!(resume(1, "one"), (1, 4));
    assert_eq!(resume(1, "two"), (1, 0));
    assert_eq!(resume(2, "two"), (2, 0), "nothing was said by it yet");
    assert_eq!(resume(3, "two"), (3, 2));
    assert_eq!(resume(3, "one"), (3, 0));
}

#[test]
fn work_is_what_changed_since_the_files_that_the_session_began_with() {
    use CheckpointReason::{Baseline, FilesChanged};
    let first = with(checkpoint(1, BASE, None), Baseline, Safety::Unknown);
    let second = with(checkpoint(2, 1, None), FilesChanged, Safety::Unknown);
    let mut back = with(checkpoint(3, 2, None), FilesChanged, Safety::Unknown);
    back.taken.tree = first.taken.tree.clone();
    let no_first = with(checkpoint(4, BASE, None), FilesChanged, Safety::Unknown);
    let all = [first, second, back, no_first];
    let head = |n: u32| Head::of(&all[n as usize - 1]);
    for (number, from, changed) in [(1, 1, false), (2, 1, true), (3, 1, false), (4, BASE, true)] {
        let head = head(number);
        assert_eq!(Points::of(Some(&head), &all).changed, changed, "{number}");
        let work = Work::of(Some(&head), &all, &oid(BASE)).unwrap().unwrap();
        assert_eq!((work.from, work.to), (oid(from), head.commit), "{number}");
    }
    assert_eq!(Work::of(None, &all, &oid(BASE)), Ok(None));
    assert!(!Points::default().changed);
}

//! Every decoder of foreign data, over its corpus and over mutations of it. The targets are those
//! of `fuzz/`, which runs them with coverage feedback and a second build of everything
//! (`scripts/test long`); here they share the build of the other tests.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use kage_tests::tier::Tier;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};

/// The longest input that is tried, in bytes; the fuzzer stops there too.
const LONGEST: usize = 4096;

/// The name of a target, and its function.
type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 15] = [
    ("base_names", kage_git::decoders::names),
    ("claude_stream", kage_agent::decoders::claude_stream),
    ("context", kage_core::decoders::context),
    ("cursor", kage_coordinator::decoders::cursor),
    ("event_stream", kage_agent::decoders::event_stream),
    ("failure_rules", kage_core::decoders::failure_rules),
    ("join_token", kage_core::decoders::join_token),
    ("manifest", kage_agent::decoders::manifest),
    ("message", kage_proto::decoders::message),
    ("names", kage_core::decoders::names),
    ("page_token", kage_coordinator::decoders::page_token),
    ("prices", kage_core::decoders::prices),
    ("push", kage_git::decoders::push),
    ("range_header", kage_coordinator::decoders::range_header),
    ("text_stream", kage_agent::decoders::text_stream),
];

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The files in a folder with this extension, or all of them.
fn files(folder: &str, extension: Option<&str>) -> Vec<Vec<u8>> {
    let folder = top().join(folder);
    let Ok(entries) = fs::read_dir(&folder) else {
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
        .into_iter()
        .filter(|path| extension.is_none_or(|wanted| path.extension().is_some_and(|it| it == wanted)))
        .map(|path| fs::read(path).unwrap())
        .collect()
}

/// The inputs from which the mutations of a target start: its seeds, and files read elsewhere.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let mut inputs = files(&format!("fuzz/seeds/{target}"), None);
    inputs.extend(match target {
        "claude_stream" => files("agent/fixtures/claude", Some("jsonl")),
        "event_stream" => files("agent/fixtures/programs", Some("stdout")),
        "manifest" => files("agent/data", Some("toml")),
        "prices" => vec![fs::read(top().join("core/data/prices.toml")).unwrap()],
        "failure_rules" => vec![fs::read(top().join("core/data/failures.toml")).unwrap()],
        _ => Vec::new(),
    });
    inputs
}

#[derive(Debug, Clone)]
enum Mutation {
    Flip(Index, u8),
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, Index),
    Repeat(Index, Index),
    Cut(Index),
    Append(Vec<u8>),
}

impl Mutation {
    fn apply(self, bytes: &mut Vec<u8>) {
        let len = bytes.len();
        let part = |from: Index, length: Index| {
            let from = from.index(len);
            from..from + 1 + length.index((len - from).min(64))
        };
        match self {
            Self::Append(more) => bytes.extend(more),
            Self::Insert(at, more) => {
                let at = at.index(len + 1);
                bytes.splice(at..at, more);
            }
            // The other mutations need at least one byte.
            _ if bytes.is_empty() => {}
            Self::Flip(at, bit) => bytes[at.index(len)] ^= 1 << (bit % 8),
            Self::Set(at, byte) => bytes[at.index(len)] = byte,
            Self::Remove(from, length) => drop(bytes.drain(part(from, length))),
            Self::Repeat(from, length) => {
                let part = part(from, length);
                let copy = bytes[part.clone()].to_vec();
                bytes.splice(part.end..part.end, copy);
            }
            Self::Cut(at) => bytes.truncate(at.index(len)),
        }
    }
}

fn mutation() -> impl Strategy<Value = Mutation> {
    // Bytes with a meaning in texts, lengths and numbers are frequent.
    let telling = || {
        prop_oneof![
            any::<u8>(),
            prop::sample::select(b"\0\x01\x7f\x80\xff\r\n\t \"'\\{}[]=:,.-/0_".to_vec())
        ]
    };
    let more = || prop::collection::vec(telling(), 1..9);
    prop_oneof![
        (any::<Index>(), any::<u8>()).prop_map(|(at, bit)| Mutation::Flip(at, bit)),
        (any::<Index>(), telling()).prop_map(|(at, byte)| Mutation::Set(at, byte)),
        (any::<Index>(), more()).prop_map(|(at, bytes)| Mutation::Insert(at, bytes)),
        any::<(Index, Index)>().prop_map(|(from, length)| Mutation::Remove(from, length)),
        any::<(Index, Index)>().prop_map(|(from, length)| Mutation::Repeat(from, length)),
        any::<Index>().prop_map(Mutation::Cut),
        more().prop_map(Mutation::Append),
    ]
}

#[test]
fn every_fuzz_target_is_run_here() {
    let manifest = fs::read_to_string(top().join("fuzz/Cargo.toml")).unwrap();
    let declared: BTreeSet<&str> = manifest
        .lines()
        .filter_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'))
        .filter(|name| *name != "kage-fuzz")
        .collect();
    assert_eq!(declared, TARGETS.iter().map(|(name, _)| *name).collect());
}

#[test]
fn decoders_take_or_refuse_their_corpora_and_mutations_of_them() {
    let cases = Tier::now().pick(200, 2_000, 20_000);
    for (name, decode) in TARGETS {
        let mut inputs = corpus(name);
        assert!(!inputs.is_empty(), "{name} has no corpus");
        inputs.iter().for_each(|input| decode(input));
        inputs.push(Vec::new());
        let strategy = (prop::sample::select(inputs), prop::collection::vec(mutation(), 1..9));
        let strategy = strategy.prop_map(|(mut input, mutations)| {
            mutations.into_iter().for_each(|mutation| mutation.apply(&mut input));
            input.truncate(LONGEST);
            input
        });
        let mut runner = TestRunner::new(Config {
            cases,
            failure_persistence: None,
            ..Config::default()
        });
        runner
            .run(&strategy, |input| {
                decode(&input);
                Ok(())
            })
            .unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

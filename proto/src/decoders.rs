//! Reads messages of peers, and checks what must hold for any bytes: nothing panics, and understood
//! values survive another round of encoding and reading. The tests below and the fuzz target in
//! `fuzz/` call it.

use std::any::type_name;
use std::fmt::Debug;

use kage_core::checkpoint::{Resume, TakenCheckpoint};
use kage_core::event::Event;
use kage_core::task::TaskSpec;
use prost::Message;

use crate::convert::agent::{AttemptKey, Hello, Work};
use crate::v1;

/// A message of any kind: the first byte selects the kind.
pub fn message(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else {
        return;
    };
    let (_, read) = KINDS[usize::from(*kind) % KINDS.len()];
    read(bytes);
}

/// The name of a message's type, and its reader.
type Kind = (fn() -> &'static str, fn(&[u8]));

/// What is converted into the domain from any message, and every request.
const KINDS: [Kind; 53] = [
    converted::<v1::TaskSpec, TaskSpec>(),
    converted::<v1::Hello, Hello>(),
    converted::<v1::AttemptKey, AttemptKey>(),
    converted::<v1::Work, Work>(),
    converted::<v1::Event, Event>(),
    converted::<v1::CheckpointTaken, TakenCheckpoint>(),
    converted::<v1::Resume, Resume>(),
    decoded::<v1::ConnectRequest>(),
    decoded::<v1::ConnectResponse>(),
    decoded::<v1::AppendRequest>(),
    decoded::<v1::PutContextRequest>(),
    decoded::<v1::GetContextRequest>(),
    decoded::<v1::GetContextStatsRequest>(),
    decoded::<v1::DrainAgentRequest>(),
    decoded::<v1::CreateJoinTokenRequest>(),
    decoded::<v1::RevokeAgentRequest>(),
    decoded::<v1::CreateTokenRequest>(),
    decoded::<v1::RevokeTokenRequest>(),
    decoded::<v1::CreateTaskRequest>(),
    decoded::<v1::GetTaskRequest>(),
    decoded::<v1::ListTasksRequest>(),
    decoded::<v1::CancelTaskRequest>(),
    decoded::<v1::RemoveTaskRequest>(),
    decoded::<v1::WatchTaskRequest>(),
    decoded::<v1::WatchTasksRequest>(),
    decoded::<v1::GetReportRequest>(),
    decoded::<v1::GetDiffRequest>(),
    decoded::<v1::SelectResultRequest>(),
    decoded::<v1::SendMessageRequest>(),
    decoded::<v1::ForkSessionRequest>(),
    decoded::<v1::EnrollRequest>(),
    decoded::<v1::RenewRequest>(),
    decoded::<v1::ListAgentsRequest>(),
    decoded::<v1::CordonAgentRequest>(),
    decoded::<v1::UncordonAgentRequest>(),
    decoded::<v1::ListTokensRequest>(),
    decoded::<v1::ListCheckpointsRequest>(),
    decoded::<v1::GetCheckpointRequest>(),
    decoded::<v1::RestoreSessionRequest>(),
    decoded::<v1::CreateCheckpointRequest>(),
    decoded::<v1::GetServerInfoRequest>(),
    decoded::<v1::ListProjectsRequest>(),
    decoded::<v1::ListRepositoriesRequest>(),
    decoded::<v1::DeleteRepositoryRequest>(),
    decoded::<v1::VerifyResultRequest>(),
    decoded::<v1::ReserveRequest>(),
    decoded::<v1::StartedRequest>(),
    decoded::<v1::CommitRequest>(),
    decoded::<v1::ReleaseRequest>(),
    decoded::<v1::GetCostsRequest>(),
    decoded::<v1::ListCallsRequest>(),
    decoded::<v1::MayStartRequest>(),
    decoded::<v1::AnswerQuestionRequest>(),
];

const fn decoded<W: Message + Default + PartialEq>() -> Kind {
    (type_name::<W>, read::<W>)
}

const fn converted<W, D>() -> Kind
where
    W: Message + Default + PartialEq + From<D>,
    D: TryFrom<W> + Clone + PartialEq + Debug,
{
    (type_name::<W>, convert::<W, D>)
}

fn read<W: Message + Default + PartialEq>(bytes: &[u8]) {
    if let Ok(wire) = W::decode(bytes) {
        let again = W::decode(wire.encode_to_vec().as_slice()).expect("what was encoded can be decoded");
        // A number that is none is not equal to itself, so bytes are compared.
        assert_eq!(again.encode_to_vec(), wire.encode_to_vec());
    }
}

fn convert<W, D>(bytes: &[u8])
where
    W: Message + Default + PartialEq + From<D>,
    D: TryFrom<W> + Clone + PartialEq + Debug,
{
    read::<W>(bytes);
    let Some(domain) = W::decode(bytes).ok().and_then(|wire| D::try_from(wire).ok()) else {
        return;
    };
    let again = D::try_from(W::from(domain.clone()));
    assert_eq!(again.ok(), Some(domain));
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use kage_core::time::Timestamp;
    use proptest::prelude::*;
    use prost_types::FileDescriptorSet;

    use super::*;
    use crate::FILE_DESCRIPTOR_SET;
    use crate::convert::time::{span, stamp};

    /// Messages that are understood.
    fn good() -> Vec<Vec<u8>> {
        let id = "0123456789abcdef0123456789abcdef".to_owned();
        let second = Duration::from_secs(1);
        let spec = v1::TaskSpec {
            project: "default".to_owned(),
            prompt: "do it".to_owned(),
            assignments: vec![v1::Assignment {
                name: "one".to_owned(),
                adapter: "noop".to_owned(),
                ..v1::Assignment::default()
            }],
            policy: Some(v1::Policy {
                max_attempts: 2,
                timeout: Some(span(second)),
                ..v1::Policy::default()
            }),
            ..v1::TaskSpec::default()
        };
        let hello = v1::Hello {
            agent_id: id.clone(),
            boot_id: id.clone(),
            protocol_min: 1,
            protocol_max: 1,
            name: "a".to_owned(),
            slots: 4,
            ..v1::Hello::default()
        };
        let key = v1::AttemptKey {
            attempt_id: id.clone(),
            token: "f".repeat(32),
        };
        let event = v1::Event {
            seq: 1,
            at: Some(stamp(Timestamp::from_millis(5))),
            body: Some(v1::event::Body::Activity(v1::Activity {
                summary: "reads".to_owned(),
            })),
        };
        let (commit, tree, blob) = ("1".repeat(40), "2".repeat(40), "a".repeat(64));
        let segment = v1::TranscriptSegment {
            blob: blob.clone(),
            from: 0,
            to: 5,
        };
        let taken = v1::CheckpointTaken {
            commit: commit.clone(),
            parent: "3".repeat(40),
            tree: tree.clone(),
            reason: v1::CheckpointReason::FilesChanged.into(),
            pack: blob.clone(),
            transcript: Some(segment.clone()),
            ..v1::CheckpointTaken::default()
        };
        let resume = v1::Resume {
            commit,
            tree,
            number: 1,
            packs: vec![blob],
            segments: vec![segment],
            position: 5,
            ..v1::Resume::default()
        };
        let work = v1::Work {
            task_id: id.clone(),
            session_id: id.clone(),
            attempt: 1,
            project: "default".to_owned(),
            kind: Some(v1::work::Kind::Session(v1::SessionWork {
                name: "one".to_owned(),
                adapter: "noop".to_owned(),
                prompt: "do it".to_owned(),
                timeout: Some(span(second)),
                idle_timeout: Some(span(second)),
                resume: Some(Box::new(resume.clone())),
                ..v1::SessionWork::default()
            })),
            ..v1::Work::default()
        };
        let tagged = |kind: u8, bytes: Vec<u8>| [vec![kind], bytes].concat();
        vec![
            tagged(0, spec.encode_to_vec()),
            tagged(1, hello.encode_to_vec()),
            tagged(2, key.encode_to_vec()),
            tagged(3, work.encode_to_vec()),
            tagged(4, event.encode_to_vec()),
            tagged(5, taken.encode_to_vec()),
            tagged(6, resume.encode_to_vec()),
        ]
    }

    #[test]
    fn the_good_ones_are_understood() {
        let good = good();
        assert!(TaskSpec::try_from(v1::TaskSpec::decode(&good[0][1..]).unwrap()).is_ok());
        assert!(Hello::try_from(v1::Hello::decode(&good[1][1..]).unwrap()).is_ok());
        assert!(AttemptKey::try_from(v1::AttemptKey::decode(&good[2][1..]).unwrap()).is_ok());
        assert!(Work::try_from(v1::Work::decode(&good[3][1..]).unwrap()).is_ok());
        assert!(Event::try_from(v1::Event::decode(&good[4][1..]).unwrap()).is_ok());
        assert!(TakenCheckpoint::try_from(v1::CheckpointTaken::decode(&good[5][1..]).unwrap()).is_ok());
        assert!(Resume::try_from(v1::Resume::decode(&good[6][1..]).unwrap()).is_ok());
        good.iter().for_each(|bytes| message(bytes));
    }

    #[test]
    fn every_request_is_read() {
        let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
        let services = set.file.iter().flat_map(|file| &file.service);
        let requests: BTreeSet<String> = services
            .flat_map(|service| &service.method)
            .map(|method| method.input_type().replace(".kage.v1.", ""))
            .collect();
        let last = |path: &'static str| path.rsplit("::").next().unwrap().to_owned();
        let read: BTreeSet<String> = KINDS.iter().map(|(name, _)| last(name())).collect();
        assert_eq!(read.len(), KINDS.len(), "one stands twice");
        let missing: Vec<_> = requests.difference(&read).collect();
        assert!(missing.is_empty() && !requests.is_empty(), "{missing:?}");
    }

    proptest! {
        #[test]
        fn whatever_a_peer_sends_is_read_or_refused(
            bytes: Vec<u8>,
            kind: u8,
            good in prop::sample::select(good()),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            message(&[vec![kind], bytes].concat());
            let mut changed = good;
            for (at, byte) in changes {
                let at = at.index(changed.len());
                changed[at] = byte;
            }
            message(&changed);
        }
    }
}

//! What is read of messages that a peer sends, with what must hold whatever it sends: nothing
//! panics, and what was understood survives being sent and read again. The tests below and the
//! fuzz target in `fuzz/` call it.

use std::fmt::Debug;

use kage_core::checkpoint::{Resume, TakenCheckpoint};
use kage_core::event::Event;
use kage_core::task::TaskSpec;
use prost::Message;

use crate::convert::agent::{AttemptKey, Hello, Work};
use crate::v1;

/// A message of any kind: the first byte says which.
pub fn message(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else {
        return;
    };
    KINDS[usize::from(*kind) % KINDS.len()](bytes);
}

/// Every request, and what is converted into the domain from any message.
const KINDS: [fn(&[u8]); 26] = [
    converted::<v1::TaskSpec, TaskSpec>,
    converted::<v1::Hello, Hello>,
    converted::<v1::AttemptKey, AttemptKey>,
    converted::<v1::Work, Work>,
    converted::<v1::Event, Event>,
    converted::<v1::CheckpointTaken, TakenCheckpoint>,
    converted::<v1::Resume, Resume>,
    decoded::<v1::ConnectRequest>,
    decoded::<v1::ConnectResponse>,
    decoded::<v1::AppendRequest>,
    decoded::<v1::PutContextRequest>,
    decoded::<v1::GetContextRequest>,
    decoded::<v1::GetContextStatsRequest>,
    decoded::<v1::DrainAgentRequest>,
    decoded::<v1::CreateJoinTokenRequest>,
    decoded::<v1::RevokeAgentRequest>,
    decoded::<v1::CreateTokenRequest>,
    decoded::<v1::RevokeTokenRequest>,
    decoded::<v1::CreateTaskRequest>,
    decoded::<v1::GetTaskRequest>,
    decoded::<v1::ListTasksRequest>,
    decoded::<v1::CancelTaskRequest>,
    decoded::<v1::WatchTaskRequest>,
    decoded::<v1::GetReportRequest>,
    decoded::<v1::EnrollRequest>,
    decoded::<v1::RenewRequest>,
];

fn decoded<W: Message + Default + PartialEq>(bytes: &[u8]) {
    if let Ok(wire) = W::decode(bytes) {
        let again = W::decode(wire.encode_to_vec().as_slice()).expect("what was encoded can be decoded");
        // A number that is none is not equal to itself, so bytes are compared.
        assert_eq!(again.encode_to_vec(), wire.encode_to_vec());
    }
}

fn converted<W, D>(bytes: &[u8])
where
    W: Message + Default + PartialEq + From<D>,
    D: TryFrom<W> + Clone + PartialEq + Debug,
{
    decoded::<W>(bytes);
    let Some(domain) = W::decode(bytes).ok().and_then(|wire| D::try_from(wire).ok()) else {
        return;
    };
    let again = D::try_from(W::from(domain.clone()));
    assert_eq!(again.ok(), Some(domain));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Messages that are understood.
    fn good() -> Vec<Vec<u8>> {
        let id = "0123456789abcdef0123456789abcdef".to_owned();
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
                timeout_ms: 1000,
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
            attempt_id: id,
            token: "f".repeat(32),
        };
        let event = v1::Event {
            seq: 1,
            at_ms: 5,
            body: Some(v1::event::Body::Activity(v1::Activity {
                summary: "reads".to_owned(),
            })),
        };
        let tagged = |kind: u8, bytes: Vec<u8>| [vec![kind], bytes].concat();
        vec![
            tagged(0, spec.encode_to_vec()),
            tagged(1, hello.encode_to_vec()),
            tagged(2, key.encode_to_vec()),
            tagged(4, event.encode_to_vec()),
        ]
    }

    #[test]
    fn the_good_ones_are_understood() {
        let good = good();
        assert!(TaskSpec::try_from(v1::TaskSpec::decode(&good[0][1..]).unwrap()).is_ok());
        assert!(Hello::try_from(v1::Hello::decode(&good[1][1..]).unwrap()).is_ok());
        assert!(AttemptKey::try_from(v1::AttemptKey::decode(&good[2][1..]).unwrap()).is_ok());
        assert!(Event::try_from(v1::Event::decode(&good[3][1..]).unwrap()).is_ok());
        good.iter().for_each(|bytes| message(bytes));
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

//! Messages as JSON, for programs that do not speak gRPC: ProtoJSON with fields named as in the
//! `.proto` files. A message is read by its descriptor, so a field that is added there is in the JSON.
//!
//! 64-bit integers are numbers and not strings, since scripts count with them. Readers that keep
//! numbers as floating point are exact below 2^53.

use std::sync::LazyLock;

use prost::{Message, Name};
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde::{Serialize, Serializer};

use crate::FILE_DESCRIPTOR_SET;

pub mod schema;

/// The descriptors of this build's messages and services.
pub(crate) static DESCRIPTORS: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(FILE_DESCRIPTOR_SET).expect("the build wrote the descriptors"));

/// A message of `kage.v1` that serde writes as JSON.
#[derive(Debug, Clone)]
pub struct JsonMessage(DynamicMessage);

impl JsonMessage {
    /// Everything of the message that is set.
    pub fn of<M: Message + Name>(message: &M) -> Self {
        let descriptor = DESCRIPTORS
            .get_message_by_name(&M::full_name())
            .expect("the types are generated from the same descriptors");
        let mut json = DynamicMessage::new(descriptor);
        json.transcode_from(message)
            .expect("what was encoded can be decoded with the same descriptor");
        Self(json)
    }
}

/// A message that is known by its descriptor only.
pub(crate) const fn of_dynamic(message: DynamicMessage) -> JsonMessage {
    JsonMessage(message)
}

impl Serialize for JsonMessage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let options = SerializeOptions::new()
            .use_proto_field_name(true)
            .stringify_64_bit_integers(false);
        self.0.serialize_with_options(serializer, &options)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kage_core::time::Timestamp;

    use super::*;
    use crate::convert::time::{span, stamp};
    use crate::v1;

    fn json<M: Message + Name>(message: &M) -> String {
        serde_json::to_string(&JsonMessage::of(message)).unwrap()
    }

    #[test]
    fn what_is_set_is_written_by_the_names_of_the_proto_files() {
        let session = v1::Session {
            name: "one".into(),
            state: v1::SessionState::Verified.into(),
            usage: Some(v1::Usage {
                cache_write_5m: 1 << 60,
                ..v1::Usage::default()
            }),
            money: vec![v1::Money {
                pico: Some(-9_007_199_254_740_993),
                currency: "USD".into(),
                provenance: v1::Provenance::Billed.into(),
            }],
            started_at: Some(stamp(Timestamp::from_millis(1_700_000_000_120))),
            ran: Some(span(Duration::from_millis(61_250))),
            ..v1::Session::default()
        };
        assert_eq!(
            json(&session),
            r#"{"name":"one","state":"SESSION_STATE_VERIFIED","usage":{"cache_write_5m":1152921504606846976},"#
                .to_owned()
                + r#""money":[{"pico":-9007199254740993,"currency":"USD","provenance":"PROVENANCE_BILLED"}],"#
                + r#""started_at":"2023-11-14T22:13:20.120Z","ran":"61.250s"}"#
        );
    }

    #[test]
    fn zero_is_written_where_it_is_not_the_same_as_nothing() {
        let verdict = |exit_code| v1::Verdict {
            exit_code,
            ..v1::Verdict::default()
        };
        assert_eq!(json(&verdict(Some(0))), r#"{"exit_code":0}"#);
        assert_eq!(json(&verdict(None)), "{}");
    }

    #[test]
    fn a_path_has_its_bytes_and_a_text() {
        let plan = v1::PathPlan {
            path: b"a\xff".to_vec(),
            display_path: "a\u{fffd}".into(),
            action: v1::PathAction::Create.into(),
            ..v1::PathPlan::default()
        };
        let expected = r#"{"path":"Yf8=","action":"PATH_ACTION_CREATE","display_path":"a�"}"#;
        assert_eq!(json(&plan), expected);
    }

    #[test]
    fn a_value_of_a_newer_coordinator_is_its_number() {
        let task = v1::Task {
            state: 99,
            ..v1::Task::default()
        };
        assert_eq!(json(&task), r#"{"state":99}"#);
    }

    #[test]
    fn an_event_has_its_body_by_name() {
        let event = v1::SessionEvent {
            event: Some(v1::Event {
                seq: 7,
                body: Some(v1::event::Body::Activity(v1::Activity {
                    summary: "reads".into(),
                })),
                ..v1::Event::default()
            }),
            ..v1::SessionEvent::default()
        };
        assert_eq!(json(&event), r#"{"event":{"seq":7,"activity":{"summary":"reads"}}}"#);
    }
}

//! Where a watcher is: the last event it got and how far it is in each output stream.
//! Opaque to clients: a protobuf message in URL-safe base64.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kage_core::event::OutputStream;
use kage_core::id::{AttemptId, TaskId};
use kage_proto::convert::InvalidField;
use kage_proto::convert::event::output_stream;
use kage_proto::v1;
use prost::Message as _;

/// Everything before this has been delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cursor {
    pub(crate) task: TaskId,
    /// Position of the last event among all events of the task.
    pub(crate) event: u64,
    /// Bytes delivered of each stream that any were delivered of.
    pub(crate) output: BTreeMap<(AttemptId, OutputStream), u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Wire {
    #[prost(string, tag = "1")]
    task: String,
    #[prost(uint64, tag = "2")]
    event: u64,
    #[prost(message, repeated, tag = "3")]
    output: Vec<WireOffset>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WireOffset {
    #[prost(string, tag = "1")]
    attempt: String,
    #[prost(int32, tag = "2")]
    stream: i32,
    #[prost(uint64, tag = "3")]
    offset: u64,
}

impl Cursor {
    pub(crate) const fn start(task: TaskId) -> Self {
        Self {
            task,
            event: 0,
            output: BTreeMap::new(),
        }
    }

    /// The text that a client gets.
    pub(crate) fn encode(&self) -> String {
        let output = self.output.iter().map(|((attempt, stream), offset)| WireOffset {
            attempt: attempt.to_string(),
            stream: v1::OutputStream::from(*stream).into(),
            offset: *offset,
        });
        let wire = Wire {
            task: self.task.to_string(),
            event: self.event,
            output: output.collect(),
        };
        URL_SAFE_NO_PAD.encode(wire.encode_to_vec())
    }

    /// Reads the text that a client sends back for this task; empty means the beginning.
    pub(crate) fn decode(text: &str, task: TaskId) -> Result<Self, InvalidField> {
        if text.is_empty() {
            return Ok(Self::start(task));
        }
        let invalid = || InvalidField::new("cursor", "is not one that a watch of this task returned");
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| invalid())?;
        let wire = Wire::decode(bytes.as_slice()).map_err(|_| invalid())?;
        if wire.task.parse() != Ok(task) {
            return Err(invalid());
        }
        let mut output = BTreeMap::new();
        for offset in wire.output {
            let attempt = offset.attempt.parse().map_err(|_| invalid())?;
            let stream = output_stream("cursor", offset.stream).map_err(|_| invalid())?;
            output.insert((attempt, stream), offset.offset);
        }
        Ok(Self {
            task,
            event: wire.event,
            output,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stream() -> impl Strategy<Value = OutputStream> {
        prop::sample::select(OutputStream::ALL.to_vec())
    }

    proptest! {
        #[test]
        fn a_cursor_survives_its_text(
            task: u128,
            event: u64,
            output in prop::collection::btree_map((any::<u128>(), stream()), any::<u64>(), 0..5),
        ) {
            let task = TaskId::from_random(task);
            let output = output
                .into_iter()
                .map(|((attempt, stream), offset)| ((AttemptId::from_random(attempt), stream), offset))
                .collect();
            let cursor = Cursor { task, event, output };
            prop_assert_eq!(Cursor::decode(&cursor.encode(), task), Ok(cursor));
        }

        #[test]
        fn no_text_is_trusted(text: String) {
            let task = TaskId::from_random(1);
            if let Ok(cursor) = Cursor::decode(&text, task) {
                prop_assert_eq!(cursor.task, task);
            }
        }
    }

    #[test]
    fn a_cursor_of_another_task_is_refused() {
        let text = Cursor::start(TaskId::from_random(1)).encode();
        assert!(Cursor::decode(&text, TaskId::from_random(2)).is_err());
        assert!(Cursor::decode("", TaskId::from_random(2)).is_ok());
    }
}

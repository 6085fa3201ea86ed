//! Where a watcher of many tasks is. Opaque to clients: a protobuf message in URL-safe base64.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kage_core::id::Digest;
use kage_proto::convert::InvalidField;
use kage_proto::v1;
use prost::Message as _;

use crate::topics::changes::Position;

/// Everything before this has been sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TasksCursor {
    /// The run of the coordinator: positions of another one mean nothing.
    run: u128,
    /// What is watched: tasks of another project or filter are missing.
    watched: Digest,
    pub(crate) position: Position,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Wire {
    #[prost(bytes = "vec", tag = "1")]
    run: Vec<u8>,
    #[prost(string, tag = "2")]
    watched: String,
    #[prost(uint64, tag = "3")]
    position: u64,
}

impl TasksCursor {
    /// The first one of a watch of these tasks, for the caller of this name.
    pub(crate) fn begin(run: u128, caller: &str, project: &str, filter: Option<&v1::TaskFilter>) -> Self {
        let filter = filter.cloned().unwrap_or_default();
        // "Mine" are others' tasks to another caller.
        let who = if filter.mine { caller } else { "" };
        let watched = v1::WatchTasksRequest {
            project: project.to_owned(),
            filter: Some(filter),
            cursor: who.to_owned(),
            ..v1::WatchTasksRequest::default()
        };
        Self {
            run,
            watched: Digest::of(&watched.encode_to_vec()),
            position: 0,
        }
    }

    /// The same watch, this far.
    pub(crate) fn at(&self, position: Position) -> Self {
        Self {
            position,
            ..self.clone()
        }
    }

    /// Whether it is of the same run as the first one of the watch.
    pub(crate) fn is_after(&self, begin: &Self) -> bool {
        self.run == begin.run
    }

    /// The text that a client gets.
    pub(crate) fn encode(&self) -> String {
        let wire = Wire {
            run: self.run.to_be_bytes().to_vec(),
            watched: self.watched.to_string(),
            position: self.position,
        };
        URL_SAFE_NO_PAD.encode(wire.encode_to_vec())
    }

    /// Reads the text that a client brings back for this watch; an empty one is none.
    pub(crate) fn decode(&self, text: &str) -> Result<Option<Self>, InvalidField> {
        if text.is_empty() {
            return Ok(None);
        }
        let invalid = || InvalidField::new("cursor", "is not one that a watch of these tasks returned");
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| invalid())?;
        let wire = Wire::decode(bytes.as_slice()).map_err(|_| invalid())?;
        let read = Self {
            run: u128::from_be_bytes(wire.run.try_into().map_err(|_| invalid())?),
            watched: wire.watched.parse().map_err(|_| invalid())?,
            position: wire.position,
        };
        if read.watched == self.watched {
            Ok(Some(read))
        } else {
            Err(invalid())
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn begin(run: u128, mine: bool, caller: &str, project: &str) -> TasksCursor {
        let filter = v1::TaskFilter {
            mine,
            ..v1::TaskFilter::default()
        };
        TasksCursor::begin(run, caller, project, Some(&filter))
    }

    proptest! {
        #[test]
        fn a_cursor_survives_its_text(run: u128, position: u64) {
            let cursor = begin(run, false, "a", "p").at(position);
            let read = begin(1, false, "b", "p").decode(&cursor.encode());
            prop_assert_eq!(read, Ok(Some(cursor)));
        }

        #[test]
        fn no_text_is_trusted(text: String) {
            if let Ok(Some(cursor)) = begin(1, false, "a", "p").decode(&text) {
                prop_assert_eq!(cursor.watched, begin(1, false, "a", "p").watched);
            }
        }
    }

    #[test]
    fn a_cursor_is_good_for_what_it_watched() {
        let text = begin(1, true, "a", "p").at(7).encode();
        let this = begin(2, true, "a", "p");
        let read = this.decode(&text).unwrap().unwrap();
        assert_eq!((read.position, read.is_after(&this)), (7, false));
        for other in [
            begin(1, true, "b", "p"),
            begin(1, true, "a", "q"),
            begin(1, false, "a", "p"),
        ] {
            assert!(other.decode(&text).is_err());
            assert_eq!(other.decode(""), Ok(None));
        }
    }
}

//! The events of a stream, in the provider's form. Pure. `stream` builds messages from them.

use serde::Deserialize;
use serde_json::Value;

use super::super::ApiError;
use super::Item;

/// An event of a stream, by its `type`. Not a tagged enum: raw JSON does not survive one.
pub(super) enum Event {
    MessageStart(MessageStart),
    BlockStart(BlockStart),
    BlockDelta(BlockDelta),
    BlockStop(BlockStop),
    MessageDelta(MessageDelta),
    MessageStop,
    Error(ErrorEvent),
    /// A ping, or something newer than this program.
    Other,
}

#[derive(Deserialize)]
pub(super) struct MessageStart {
    pub(super) message: Start,
}

#[derive(Deserialize)]
pub(super) struct Start {
    pub(super) id: String,
    pub(super) model: String,
    #[serde(default)]
    pub(super) usage: Value,
}

/// A message without a stream.
#[derive(Deserialize)]
pub(super) struct Whole {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) id: String,
    pub(super) model: String,
    pub(super) content: Vec<Item>,
    #[serde(default)]
    pub(super) stop_reason: Option<String>,
    #[serde(default)]
    pub(super) usage: Value,
}

#[derive(Deserialize)]
pub(super) struct BlockStart {
    pub(super) index: u64,
    pub(super) content_block: Item,
}

#[derive(Deserialize)]
pub(super) struct BlockDelta {
    pub(super) index: u64,
    pub(super) delta: Delta,
}

#[derive(Deserialize)]
pub(super) struct BlockStop {
    pub(super) index: u64,
}

#[derive(Deserialize)]
pub(super) struct MessageDelta {
    pub(super) delta: End,
    #[serde(default)]
    pub(super) usage: Value,
}

#[derive(Deserialize)]
pub(super) struct End {
    #[serde(default)]
    pub(super) stop_reason: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct ErrorEvent {
    pub(super) error: ApiError,
}

#[derive(Deserialize)]
#[serde(tag = "type")]
pub(super) enum Delta {
    #[serde(rename = "text_delta")]
    Text { text: String },
    #[serde(rename = "input_json_delta")]
    InputJson { partial_json: String },
    #[serde(rename = "thinking_delta")]
    Thinking { thinking: String },
    #[serde(rename = "signature_delta")]
    Signature { signature: String },
    /// The whole summary at once; `None`: there is none.
    #[serde(rename = "compaction_delta")]
    Compaction {
        #[serde(default)]
        content: Option<String>,
    },
    #[serde(rename = "citations_delta")]
    Citations { citation: Value },
    #[serde(other)]
    Other,
}

impl Event {
    pub(super) fn parse(data: &str) -> serde_json::Result<Self> {
        #[derive(Deserialize)]
        struct Kind {
            #[serde(rename = "type")]
            kind: String,
        }
        let kind = serde_json::from_str::<Kind>(data)?.kind;
        Ok(match kind.as_str() {
            "message_start" => Self::MessageStart(serde_json::from_str(data)?),
            "content_block_start" => Self::BlockStart(serde_json::from_str(data)?),
            "content_block_delta" => Self::BlockDelta(serde_json::from_str(data)?),
            "content_block_stop" => Self::BlockStop(serde_json::from_str(data)?),
            "message_delta" => Self::MessageDelta(serde_json::from_str(data)?),
            "message_stop" => Self::MessageStop,
            "error" => Self::Error(serde_json::from_str(data)?),
            _ => Self::Other,
        })
    }
}

//! One turn of a conversation: what one side says until the other side says something.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::answer::Item;
use crate::adapters::tools::image::Image;

/// One part of a user message, in the form of the transcript.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Told {
    Text { text: String },
    ToolResult(ToolAnswer),
}

/// The result of one tool call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ToolAnswer {
    /// Id of the tool call.
    #[serde(rename = "tool_use_id")]
    pub(super) id: String,
    #[serde(rename = "content")]
    pub(super) text: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) is_error: bool,
    /// What the tool shows beside its text; only for dialects with a form for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) image: Option<Image>,
}

impl ToolAnswer {
    /// Its text, for dialects that have no mark for failures.
    pub(super) fn said(&self) -> Cow<'_, str> {
        if self.is_error {
            Cow::Owned(format!("error: {}", self.text))
        } else {
            Cow::Borrowed(&self.text)
        }
    }

    /// Its text, for dialects without images.
    pub(super) fn said_without_image(&self) -> Cow<'_, str> {
        match self.image {
            Some(_) => Cow::Owned(format!("{} (this model is not shown images)", self.said())),
            None => self.said(),
        }
    }

    /// Takes its image away, and says so in its text. Returns whether there was one.
    pub(super) fn hide_image(&mut self) -> bool {
        let had = self.image.take().is_some();
        if had {
            self.text.push_str(" (not shown)");
        }
        had
    }
}

/// All messages of one side until the other side's next one.
#[derive(Debug, Clone)]
pub(super) enum Turn {
    User(Vec<Told>),
    /// The model's own items, as they came.
    Model(Vec<Item>),
}

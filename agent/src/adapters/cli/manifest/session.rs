//! Where a program keeps its session, so that another attempt can go on with it.

use kage_core::json::JsonPointer;
use serde::{Deserialize, Deserializer, de};

use crate::adapters::session_file::CONVERSATION;

/// Where a program keeps its session: a file to which it appends lines.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionRule {
    /// The variable of its environment that names the folder.
    pub folder: String,
    /// The file in the folder; may contain placeholders.
    pub file: String,
    /// How to find the file of a program that chooses its name: its place below the folder, with `*` for any
    /// part of a name and `{conversation}` for the conversation's id.
    #[serde(default)]
    pub find: Option<String>,
    /// Where the id is in the file's first line. Without it a conversation goes on under an id of ours.
    #[serde(default, deserialize_with = "pointer")]
    pub id: Option<JsonPointer>,
}

impl SessionRule {
    pub(super) fn check(&self) -> Result<(), String> {
        let named = |text: &str| text.contains(CONVERSATION);
        match (&self.find, &self.id) {
            (None, None) if named(&self.file) => {
                Err("[session] file has {conversation}, and needs `find` and `id`".to_owned())
            }
            (None, None) => Ok(()),
            (Some(find), Some(_)) if named(find) && named(&self.file) => Ok(()),
            (Some(find), None) if !named(find) && !named(&self.file) => Ok(()),
            (Some(_), Some(_)) => {
                Err("[session] file and find need {conversation}, the id that the program chooses".to_owned())
            }
            (Some(_), None) => Err("[session] {conversation}, the id that the program chooses, needs `id`".to_owned()),
            (None, Some(_)) => Err("[session] id needs `find`".to_owned()),
        }
    }
}

fn pointer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<JsonPointer>, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map(Some).map_err(de::Error::custom)
}

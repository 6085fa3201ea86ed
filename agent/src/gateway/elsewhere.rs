//! Whether a request refers to content that it does not have: files that were sent before, links that the provider
//! follows, earlier items. Such content costs tokens that no byte of the request stands for. It owns the rule and
//! nothing of what is done then. Pure: it reads once and keeps nothing.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// The part of a request that the model reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Content {
    /// It refers to what is elsewhere.
    pub(super) is_elsewhere: bool,
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let seen = Seen::deserialize(deserializer)?;
        Ok(Self {
            is_elsewhere: seen.refers,
        })
    }
}

/// What a value is, as far as the rule needs it.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    refers: bool,
    kind: Kind,
    is_null: bool,
    is_text: bool,
    /// A link, or an object with one.
    is_link: bool,
}

/// What a text says where it is the type of a part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Kind {
    /// An item of an earlier answer.
    Item,
    /// A file in the container of a tool.
    Upload,
    /// A source that the provider fetches.
    Link,
    #[default]
    Other,
}

/// Fields whose texts name a file at the provider, or where to get it.
const FILES: [&str; 4] = ["file_id", "file_url", "file_uri", "fileUri"];
/// Fields of calls and of their results, which are whatever a tool takes and gives.
const OF_TOOLS: [&str; 5] = ["input", "args", "response", "arguments", "input_schema"];

impl<'de> Deserialize<'de> for Seen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Seen;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("content")
    }

    fn visit_bool<E>(self, _value: bool) -> Result<Seen, E> {
        Ok(Seen::default())
    }

    fn visit_i64<E>(self, _value: i64) -> Result<Seen, E> {
        Ok(Seen::default())
    }

    fn visit_u64<E>(self, _value: u64) -> Result<Seen, E> {
        Ok(Seen::default())
    }

    fn visit_f64<E>(self, _value: f64) -> Result<Seen, E> {
        Ok(Seen::default())
    }

    fn visit_unit<E>(self) -> Result<Seen, E> {
        Ok(Seen {
            is_null: true,
            ..Seen::default()
        })
    }

    fn visit_str<E>(self, text: &str) -> Result<Seen, E> {
        let kind = match text {
            "item_reference" => Kind::Item,
            "container_upload" => Kind::Upload,
            "url" => Kind::Link,
            _ => Kind::Other,
        };
        let scheme = text.split_once("://").map(|(scheme, _)| scheme);
        Ok(Seen {
            kind,
            is_text: true,
            is_link: scheme
                .is_some_and(|scheme| scheme.len() <= 10 && scheme.chars().all(|c| c.is_ascii_alphanumeric())),
            ..Seen::default()
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Seen, A::Error> {
        let mut seen = Seen::default();
        while let Some(value) = list.next_element::<Seen>()? {
            seen.refers |= value.refers;
        }
        Ok(seen)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Seen, A::Error> {
        let mut seen = Seen::default();
        let (mut has_id, mut has_more, mut kind) = (false, false, Kind::Other);
        while let Some(field) = map.next_key::<Field>()? {
            if field == Field::OfTool {
                map.next_value::<IgnoredAny>()?;
                has_more = true;
                continue;
            }
            let value = map.next_value::<Seen>()?;
            seen.refers |= value.refers;
            match field {
                Field::File => seen.refers |= value.is_text,
                // Of an image, which is fetched; a link elsewhere says where something came from.
                Field::Image => seen.refers |= value.is_link,
                Field::Link => seen.is_link |= value.is_link,
                Field::Type => kind = value.kind,
                Field::Id => has_id |= value.is_text,
                Field::OfTool | Field::Other => {}
            }
            has_more |= !matches!(field, Field::Id) && !value.is_null;
        }
        seen.refers |= match kind {
            Kind::Item | Kind::Upload => true,
            Kind::Link => seen.is_link,
            Kind::Other => false,
        };
        // What has a name and nothing else is a reference, as an item or the sound of an earlier answer.
        seen.refers |= has_id && !has_more;
        Ok(seen)
    }
}

/// What a field is for the rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    File,
    Image,
    Link,
    Type,
    Id,
    OfTool,
    Other,
}

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;

        impl Visitor<'_> for Name {
            type Value = Field;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a field")
            }

            fn visit_str<E>(self, name: &str) -> Result<Field, E> {
                Ok(match name {
                    "type" => Field::Type,
                    "id" => Field::Id,
                    "image_url" => Field::Image,
                    "url" => Field::Link,
                    name if FILES.contains(&name) => Field::File,
                    name if OF_TOOLS.contains(&name) => Field::OfTool,
                    _ => Field::Other,
                })
            }
        }

        deserializer.deserialize_str(Name)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn is_elsewhere(content: &Value) -> bool {
        let text = content.to_string();
        serde_json::from_str::<Content>(&text).unwrap().is_elsewhere
    }

    #[test]
    fn what_is_not_in_a_request_is_seen_wherever_it_stands() {
        let link = "https://example.com/a.png";
        for part in [
            // Messages
            json!({"type": "document", "source": {"type": "file", "file_id": "file_1"}}),
            json!({"type": "image", "source": {"type": "url", "url": link}}),
            json!({"type": "container_upload", "file_id": "file_1"}),
            // Responses
            json!({"type": "item_reference", "id": "msg_1"}),
            json!({"id": "msg_1"}),
            json!({"type": null, "id": "msg_1"}),
            json!({"type": "input_file", "file_id": "file_1"}),
            json!({"type": "input_file", "file_url": link}),
            json!({"type": "input_image", "image_url": link}),
            // Chat completions
            json!({"type": "image_url", "image_url": {"url": link}}),
            json!({"type": "file", "file": {"file_id": "file_1"}}),
            json!({"role": "assistant", "audio": {"id": "audio_1"}}),
            // Gemini
            json!({"fileData": {"mimeType": "video/mp4", "fileUri": "gs://bucket/film"}}),
            json!({"file_data": {"file_uri": "files/1"}}),
        ] {
            assert!(is_elsewhere(&part), "{part}");
            let deep = json!([{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "tool_result", "content": [part]}]}]);
            assert!(is_elsewhere(&deep), "{deep}");
        }
    }

    #[test]
    fn what_a_request_has_itself_and_what_tools_are_asked_is_not_elsewhere() {
        for part in [
            json!("https://example.com is a site"),
            json!({"type": "text", "text": "https://example.com/a.png"}),
            json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}),
            json!({"type": "input_image", "image_url": "data:image/png;base64,aGk="}),
            json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}),
            json!({"type": "input_image", "file_id": null, "image_url": "data:image/png;base64,aGk="}),
            json!({"type": "tool_use", "id": "t", "name": "send", "input": {"file_id": "x", "url": "https://a"}}),
            json!({"functionCall": {"name": "send", "args": {"file_id": "x"}}}),
            json!({"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": "{\"file_id\":\"x\"}"}),
            json!({"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"}),
            json!({"type": "web_search_result", "url": "https://example.com", "encrypted_content": "x"}),
            json!({"type": "text", "text": "x", "citations": [{"type": "url_citation", "url": "https://a.example"}]}),
            json!({"inlineData": {"mimeType": "image/png", "data": "aGk="}}),
            json!({"id": 5}),
            json!([1, -2, 0.5, true, null, {}]),
        ] {
            assert!(!is_elsewhere(&part), "{part}");
        }
    }
}

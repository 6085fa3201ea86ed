//! The content of a message of chat completions: a text, or parts of the kinds that its role may have.

use serde_json::{Map, Value};

use crate::request::{object, string};
use crate::script::ApiError;

/// What the roles may have as content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speaker {
    /// System, developer, tool: text alone.
    Plain,
    User,
    Assistant,
}

/// A kind of part: its type, the key of what is in it, and the other keys that it may have.
struct Kind {
    name: &'static str,
    /// Keys of the object under `name`; empty: a text stands there.
    needs: &'static [&'static str],
    may: &'static [&'static str],
    of: &'static [Speaker],
}

const KINDS: [Kind; 5] = [
    Kind {
        name: "text",
        needs: &[],
        may: &[],
        of: &[Speaker::Plain, Speaker::User, Speaker::Assistant],
    },
    Kind {
        name: "refusal",
        needs: &[],
        may: &[],
        of: &[Speaker::Assistant],
    },
    Kind {
        name: "image_url",
        needs: &["url"],
        may: &["detail"],
        of: &[Speaker::User],
    },
    Kind {
        name: "input_audio",
        needs: &["data", "format"],
        may: &[],
        of: &[Speaker::User],
    },
    Kind {
        name: "file",
        needs: &[],
        may: &["file_data", "file_id", "filename"],
        of: &[Speaker::User],
    },
];

/// The text of a content. `at` is the place of the message.
pub(super) fn text(at: &str, content: Option<&Value>, speaker: Speaker) -> Result<String, ApiError> {
    let Some(Value::Array(parts)) = content else {
        return string(&format!("{at}.content"), content).map(str::to_owned);
    };
    if parts.is_empty() {
        return Err(ApiError::invalid(format!(
            "Invalid '{at}.content': empty array. Expected an array with minimum length 1, but got an empty array \
             instead."
        )));
    }
    let mut said = String::new();
    for (index, part) in parts.iter().enumerate() {
        let at = format!("{at}.content[{index}]");
        let part = object(&at, part)?;
        let kind = kind(&at, part, speaker)?;
        if kind.name == "refusal" && parts.len() > 1 {
            return Err(ApiError::invalid(format!("{at}: a refusal stands alone")));
        }
        match (kind.needs, kind.may) {
            ([], []) => said.push_str(string(&format!("{at}.{}", kind.name), part.get(kind.name))?),
            (_, _) => inner(&at, part, kind)?,
        }
    }
    Ok(said)
}

/// The kind of a part, which has nothing but what belongs to its kind.
fn kind(at: &str, part: &Map<String, Value>, speaker: Speaker) -> Result<&'static Kind, ApiError> {
    let name = string(&format!("{at}.type"), part.get("type"))?;
    let known = KINDS
        .iter()
        .find(|kind| kind.name == name && kind.of.contains(&speaker));
    let kind = known.ok_or_else(|| {
        let supported = KINDS.iter().filter(|kind| kind.of.contains(&speaker));
        let supported: Vec<_> = supported.map(|kind| format!("'{}'", kind.name)).collect();
        ApiError::invalid(format!(
            "Invalid value: '{name}' ({at}.type). Supported values are: {}.",
            supported.join(", ")
        ))
    })?;
    match part.keys().find(|key| *key != "type" && *key != kind.name) {
        Some(other) => Err(ApiError::invalid(format!("Unknown parameter: '{at}.{other}'."))),
        None => Ok(kind),
    }
}

/// Checks the object of a part that is no text.
fn inner(at: &str, part: &Map<String, Value>, kind: &Kind) -> Result<(), ApiError> {
    let at = format!("{at}.{}", kind.name);
    let inner = object(&at, part.get(kind.name).unwrap_or(&Value::Null))?;
    for key in kind.needs {
        string(&format!("{at}.{key}"), inner.get(*key))?;
    }
    let known = |key: &str| kind.needs.contains(&key) || kind.may.contains(&key);
    if let Some(other) = inner.keys().find(|key| !known(key)) {
        return Err(ApiError::invalid(format!("Unknown parameter: '{at}.{other}'.")));
    }
    let is_one_of = |key: &str, allowed: &[&str]| match inner.get(key).and_then(Value::as_str) {
        Some(value) => allowed.contains(&value),
        None => !inner.contains_key(key),
    };
    let fault = match kind.name {
        "image_url" if !is_one_of("detail", &["auto", "low", "high"]) => Some("detail"),
        "image_url" if !is_image(inner.get("url").and_then(Value::as_str).unwrap_or_default()) => Some("url"),
        "input_audio" if !is_one_of("format", &["wav", "mp3"]) => Some("format"),
        "file" if inner.contains_key("file_data") == inner.contains_key("file_id") => Some("file_id"),
        _ => None,
    };
    match fault {
        Some(key) => Err(ApiError::invalid(format!("Invalid value: '{at}.{key}'."))),
        None => Ok(()),
    }
}

/// An address that the provider fetches, or the picture itself.
fn is_image(url: &str) -> bool {
    let data = url
        .strip_prefix("data:image/")
        .and_then(|data| data.split_once(";base64,"));
    match data {
        Some((kind, bytes)) => ["png", "jpeg", "gif", "webp"].contains(&kind) && !bytes.is_empty(),
        None => url.starts_with("https://") || url.starts_with("http://"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_role_has_its_kinds_of_parts() {
        use Speaker::{Assistant, Plain, User};
        let text_part = json!({"type": "text", "text": "one"});
        let image = json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk=", "detail": "low"}});
        let far = json!({"type": "image_url", "image_url": {"url": "https://a.example/x.png"}});
        let audio = json!({"type": "input_audio", "input_audio": {"data": "aGk=", "format": "wav"}});
        let file = json!({"type": "file", "file": {"file_data": "aGk=", "filename": "a.pdf"}});
        let refusal = json!({"type": "refusal", "refusal": "no"});
        let said = |content: Value, speaker| super::text("m", Some(&content), speaker).map_err(|error| error.message);
        for speaker in [Plain, User, Assistant] {
            assert_eq!(
                said(json!([text_part, {"type": "text", "text": " two"}]), speaker).unwrap(),
                "one two"
            );
            assert_eq!(said(json!("plain"), speaker).unwrap(), "plain");
        }
        for part in [&image, &far, &audio, &file] {
            assert_eq!(said(json!([text_part, part]), User).unwrap(), "one");
            for speaker in [Plain, Assistant] {
                assert!(
                    said(json!([part]), speaker).unwrap_err().contains("Supported values"),
                    "{part}"
                );
            }
        }
        assert_eq!(said(json!([refusal]), Assistant).unwrap(), "no");
        for speaker in [Plain, User] {
            assert!(said(json!([refusal]), speaker).is_err());
        }
    }

    #[test]
    fn what_is_no_part_is_refused_with_its_place() {
        let image = |inner: Value| json!([{"type": "image_url", "image_url": inner}]);
        let cases = [
            (json!([]), "empty array"),
            (json!(null), "m.content"),
            (json!(7), "m.content"),
            (json!(["text"]), "m.content[0]"),
            (json!([{"type": "text"}]), "m.content[0].text"),
            (json!([{"type": "text", "text": null}]), "m.content[0].text"),
            (
                json!([{"type": "text", "text": "x", "cache_control": {}}]),
                "m.content[0].cache_control",
            ),
            (json!([{"text": "x"}]), "m.content[0].type"),
            (json!([{"type": "input_text", "text": "x"}]), "'input_text'"),
            (
                json!([{"type": "text", "text": "x"}, {"type": "refusal", "refusal": "x"}]),
                "stands alone",
            ),
            (
                json!([{"type": "image_url", "image_url": "https://a.example/x.png"}]),
                "m.content[0].image_url",
            ),
            (image(json!({"url": "file:///etc/passwd"})), "url"),
            (image(json!({"url": "data:text/html;base64,aGk="})), "url"),
            (
                image(json!({"url": "https://a.example/x.png", "detail": "huge"})),
                "detail",
            ),
            (image(json!({"url": "https://a.example/x.png", "alt": "x"})), "alt"),
            (
                json!([{"type": "input_audio", "input_audio": {"data": "aGk=", "format": "ogg"}}]),
                "format",
            ),
            (json!([{"type": "file", "file": {}}]), "file_id"),
            (
                json!([{"type": "file", "file": {"file_data": "a", "file_id": "b"}}]),
                "file_id",
            ),
        ];
        for (content, words) in cases {
            let refused = [Speaker::User, Speaker::Assistant].map(|speaker| text("m", Some(&content), speaker));
            let said: Vec<_> = refused
                .into_iter()
                .filter_map(Result::err)
                .map(|error| error.message)
                .collect();
            assert!(
                said.iter().any(|message| message.contains(words)),
                "{content}: {said:?}"
            );
            assert_eq!(said.len(), 2, "{content}");
        }
    }
}

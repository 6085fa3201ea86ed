//! Single values of a JSON text, read and replaced in place: every other byte of it stays, because the
//! file is another program's.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use kage_core::json::JsonPointer;
use serde_json::Value;
use serde_json::value::RawValue;

type Object<'a> = BTreeMap<Cow<'a, str>, &'a RawValue>;

/// The text cannot hold the value.
#[derive(Debug, thiserror::Error)]
pub(super) enum TextError {
    #[error("it is not JSON")]
    Json(#[source] serde_json::Error),
    #[error("it has no object for {0}")]
    NoPlace(JsonPointer),
}

/// Where a value is, or where it would be.
enum Place {
    At(Range<usize>),
    /// Its object has no such key, and begins here.
    Missing {
        begin: usize,
        empty: bool,
    },
    Nowhere,
}

/// The value at a place; `None` when there is none.
pub(super) fn value(text: &str, at: &JsonPointer) -> Result<Option<Value>, TextError> {
    match find(text, at)? {
        Place::At(range) => serde_json::from_str(&text[range]).map(Some).map_err(TextError::Json),
        Place::Missing { .. } | Place::Nowhere => Ok(None),
    }
}

/// The text with another value at a place.
pub(super) fn replaced(text: &str, at: &JsonPointer, value: &Value) -> Result<String, TextError> {
    let mut new = text.to_owned();
    match find(text, at)? {
        Place::At(range) => new.replace_range(range, &value.to_string()),
        Place::Missing { begin, empty } => {
            let key = Value::from(at.tokens().last().map_or("", String::as_str));
            let comma = if empty { "" } else { "," };
            new.insert_str(begin, &format!("{key}:{value}{comma}"));
        }
        Place::Nowhere => return Err(TextError::NoPlace(at.clone())),
    }
    Ok(new)
}

fn find(text: &str, at: &JsonPointer) -> Result<Place, TextError> {
    let mut here: &RawValue = serde_json::from_str(text).map_err(TextError::Json)?;
    let tokens = at.tokens();
    for (depth, token) in tokens.iter().enumerate() {
        let Ok(object) = serde_json::from_str::<Object<'_>>(here.get()) else {
            return Ok(Place::Nowhere);
        };
        match object.get(token.as_str()) {
            Some(inner) => here = inner,
            None if depth + 1 == tokens.len() => {
                let begin = range(text, here).start + 1;
                let empty = object.is_empty();
                return Ok(Place::Missing { begin, empty });
            }
            None => return Ok(Place::Nowhere),
        }
    }
    Ok(Place::At(range(text, here)))
}

/// Where a raw value, which is a part of the text, stands in it.
fn range(text: &str, part: &RawValue) -> Range<usize> {
    let start = part.get().as_ptr() as usize - text.as_ptr() as usize;
    start..start + part.get().len()
}

#[cfg(test)]
mod tests {
    use std::str::FromStr as _;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn at(pointer: &str) -> JsonPointer {
        JsonPointer::from_str(pointer).unwrap()
    }

    #[test]
    fn one_value_changes_and_every_other_byte_stays() {
        let text = "{ \"n\" : 1.50e0,\n \"o\": {\"t\":\"a\\u0062\" , \"x\":[ 1,2 ]},\t\"t\":null }\n";
        let new = replaced(text, &at("/o/t"), &json!("new")).unwrap();
        assert_eq!(new, text.replace("\"a\\u0062\"", "\"new\""));
        assert_eq!(value(text, &at("/o/t")).unwrap(), Some(json!("ab")));
        assert_eq!(value(text, &at("/o/none")).unwrap(), None);
        assert_eq!(value(text, &at("/t/none")).unwrap(), None);

        let added = replaced(text, &at("/o/end"), &json!(7)).unwrap();
        assert_eq!(added, text.replace("{\"t\"", "{\"end\":7,\"t\""));
        assert_eq!(
            replaced("{\"o\":{}}", &at("/o/a"), &json!(1)).unwrap(),
            "{\"o\":{\"a\":1}}"
        );
        assert!(matches!(
            replaced(text, &at("/none/a"), &json!(1)),
            Err(TextError::NoPlace(_))
        ));
        assert!(matches!(
            replaced(text, &at("/n/a"), &json!(1)),
            Err(TextError::NoPlace(_))
        ));
        assert!(matches!(replaced("{", &at("/a"), &json!(1)), Err(TextError::Json(_))));
    }

    proptest! {
        #[test]
        fn a_replaced_value_is_there_and_the_others_are_what_they_were(
            keys in prop::collection::btree_map("[a-c\"\\\\é]{0,3}", any::<(i64, String)>(), 0..6),
            key in "[a-c\"\\\\é]{0,3}",
            new in any::<String>(),
        ) {
            let object = json!({"in": keys});
            let pointer = JsonPointer::from(vec!["in".to_owned(), key.clone()]);
            for text in [object.to_string(), serde_json::to_string_pretty(&object).unwrap()] {
                let changed = replaced(&text, &pointer, &json!(new)).unwrap();
                let mut expected = object.clone();
                expected["in"][&key] = json!(new);
                prop_assert_eq!(serde_json::from_str::<Value>(&changed).unwrap(), expected);
            }
        }
    }
}

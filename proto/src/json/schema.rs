//! JSON Schemas of messages in the form that [`super::JsonMessage`] writes. Like it, they are read from the
//! descriptors, so a field that is added in a `.proto` file is in the schema.

use prost::Name;
use prost_reflect::{Cardinality, FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value, json};

use super::DESCRIPTORS;

/// The schema of a message. Messages in it that lie deeper than `depth` are objects of which nothing is said:
/// a schema is read anew by every client that connects.
#[must_use]
pub fn of<M: Name>(depth: usize) -> Map<String, Value> {
    let descriptor = DESCRIPTORS
        .get_message_by_name(&M::full_name())
        .expect("the types are generated from the same descriptors");
    object(&descriptor, depth)
}

fn object(descriptor: &MessageDescriptor, depth: usize) -> Map<String, Value> {
    let mut schema = Map::new();
    schema.insert("type".to_owned(), "object".into());
    if depth > 0 {
        let fields = descriptor.fields();
        let properties: Map<_, _> = fields
            .map(|field| (field.name().to_owned(), property(&field, depth - 1)))
            .collect();
        schema.insert("properties".to_owned(), properties.into());
    }
    schema
}

fn property(field: &FieldDescriptor, depth: usize) -> Value {
    if let (true, Kind::Message(entry)) = (field.is_map(), field.kind()) {
        let value = value(&entry.map_entry_value_field().kind(), depth);
        return json!({ "type": "object", "additionalProperties": value });
    }
    let value = value(&field.kind(), depth);
    match field.cardinality() {
        Cardinality::Repeated => json!({ "type": "array", "items": value }),
        Cardinality::Optional | Cardinality::Required => value,
    }
}

fn value(kind: &Kind, depth: usize) -> Value {
    match kind {
        // What is no number is a word.
        Kind::Double | Kind::Float => json!({ "type": ["number", "string"] }),
        Kind::Int32
        | Kind::Int64
        | Kind::Uint32
        | Kind::Uint64
        | Kind::Sint32
        | Kind::Sint64
        | Kind::Fixed32
        | Kind::Fixed64
        | Kind::Sfixed32
        | Kind::Sfixed64 => json!({ "type": "integer" }),
        Kind::Bool => json!({ "type": "boolean" }),
        Kind::String | Kind::Bytes => json!({ "type": "string" }),
        // The number of a value that this program does not know.
        Kind::Enum(_) => json!({ "type": ["string", "integer"] }),
        Kind::Message(message) => match message.full_name() {
            "google.protobuf.Timestamp" | "google.protobuf.Duration" | "google.protobuf.FieldMask" => {
                json!({ "type": "string" })
            }
            _ => object(message, depth).into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1;

    #[test]
    fn a_schema_has_every_field_with_the_type_that_is_written() {
        let schema = Value::from(of::<v1::Task>(2));
        let task = &schema["properties"];
        assert_eq!(task["id"]["type"], "string");
        assert_eq!(task["prompt_size"]["type"], "integer");
        assert_eq!(task["created_at"]["type"], "string");
        assert_eq!(task["state"]["type"], json!(["string", "integer"]));
        assert_eq!(task["sessions"]["type"], "array");
        let session = &task["sessions"]["items"];
        assert_eq!(session["properties"]["ran"]["type"], "string");
        assert_eq!(session["properties"]["usage"], json!({ "type": "object" }), "too deep");
        let descriptor = DESCRIPTORS.get_message_by_name("kage.v1.Task").unwrap();
        assert_eq!(task.as_object().unwrap().len(), descriptor.fields().len());
    }
}

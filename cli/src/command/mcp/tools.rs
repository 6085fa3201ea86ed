//! The tools: their names, what is said of them to a model, and the schemas of what goes in and out.
//! `docs/json.md` describes the same results.

use std::sync::Arc;

use kage_proto::json::schema;
use kage_proto::v1;
use rmcp::handler::server::tool::schema_for_type;
use rmcp::model::{JsonObject, Tool, ToolAnnotations};
use rmcp::schemars::JsonSchema;
use serde_json::{Value, json};

use super::requests::{Diff, DryRun, Explain, List, OfTask, Run, Wait};

/// How deep the schemas of messages go.
const DEPTH: usize = 3;

/// What clients tell the model of this server.
pub(super) const INSTRUCTIONS: &str = "\
Kage runs one coding task as several parallel sessions of AI tools, each in a working tree of its own, and checks \
every result with the project's command in a clean checkout. Call `run` with a prompt that says everything a stranger \
needs, `wait` until the task has ended, then `report` and `diff` for the best result and its change, and `dry_run` for \
what landing it would do. No tool here changes the repository: a person lands a result with `kage apply` or `kage merge`.";

/// Which tool is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name {
    Run,
    Wait,
    List,
    Show,
    Report,
    Diff,
    DryRun,
    Explain,
    Cancel,
}

impl Name {
    const ALL: [Self; 9] = [
        Self::Run,
        Self::Wait,
        Self::List,
        Self::Show,
        Self::Report,
        Self::Diff,
        Self::DryRun,
        Self::Explain,
        Self::Cancel,
    ];

    pub(super) fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|tool| tool.word() == name)
    }

    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Wait => "wait",
            Self::List => "list",
            Self::Show => "show",
            Self::Report => "report",
            Self::Diff => "diff",
            Self::DryRun => "dry_run",
            Self::Explain => "explain",
            Self::Cancel => "cancel",
        }
    }

    const fn description(self) -> &'static str {
        match self {
            Self::Run => {
                "Start a coding task as parallel sessions of AI tools in copies of the repository, uncommitted changes \
                 included. Returns the task as soon as it is stored; `wait` says when it has ended. Sessions cost \
                 what their tools cost: say so before you start many."
            }
            Self::Wait => {
                "Wait until a task has ended, and return it with the comparison of its sessions as `report`. Without \
                 a `report` it has not ended yet: call again."
            }
            Self::List => "List tasks, newest first.",
            Self::Show => "Show a task, its sessions, why they wait or failed, and what verify said.",
            Self::Report => "Compare the sessions of a task, best first, with the reasons for the order.",
            Self::Diff => "Show what a session changed, as a patch, or what two results differ in.",
            Self::DryRun => "Show which files landing a result would change. Changes nothing.",
            Self::Explain => "Explain what Kage does when a program of a session fails with these words, and why.",
            Self::Cancel => "Stop the sessions of a task that have not ended. What they have done is kept.",
        }
    }

    fn annotations(self) -> ToolAnnotations {
        let annotations = ToolAnnotations::new().destructive(false);
        match self {
            Self::Run => annotations.read_only(false).idempotent(false).open_world(true),
            Self::Cancel => annotations.read_only(false).idempotent(true).open_world(false),
            Self::Wait | Self::List | Self::Show | Self::Report | Self::Diff | Self::DryRun | Self::Explain => {
                annotations.read_only(true).open_world(false)
            }
        }
    }

    fn input(self) -> Arc<JsonObject> {
        match self {
            Self::Run => of::<Run>(),
            Self::Wait => of::<Wait>(),
            Self::List => of::<List>(),
            Self::Show | Self::Report | Self::Cancel => of::<OfTask>(),
            Self::Diff => of::<Diff>(),
            Self::DryRun => of::<DryRun>(),
            Self::Explain => of::<Explain>(),
        }
    }

    fn output(self) -> JsonObject {
        match self {
            Self::Run | Self::Cancel => task(&[]),
            Self::Wait => task(&["report", "verifications"]),
            Self::Report => task(&["report", "verifications"]),
            Self::Show => task(&["verifications"]),
            Self::List => object(
                &json!({ "tasks": { "type": "array", "items": Value::from(schema::of::<v1::Task>(1)) } }),
                &["tasks"],
            ),
            Self::Diff => diff(),
            Self::DryRun => landing(),
            Self::Explain => explanation(),
        }
    }

    pub(super) fn tool(self) -> Tool {
        Tool::new(self.word(), self.description(), self.input())
            .with_annotations(self.annotations())
            .with_raw_output_schema(Arc::new(self.output()))
    }
}

/// All tools, as clients list them.
pub(super) fn all() -> Vec<Tool> {
    Name::ALL.into_iter().map(Name::tool).collect()
}

fn of<T: JsonSchema + 'static>() -> Arc<JsonObject> {
    let mut schema = (*schema_for_type::<T>()).clone();
    // The name of a type here says nothing to a model.
    schema.remove("title");
    Arc::new(schema)
}

fn object(properties: &Value, required: &[&str]) -> JsonObject {
    let mut schema = JsonObject::new();
    schema.insert("type".to_owned(), "object".into());
    schema.insert("properties".to_owned(), properties.clone());
    schema.insert("required".to_owned(), json!(required));
    schema
}

/// A task with these additions.
fn task(with: &[&str]) -> JsonObject {
    let mut schema = schema::of::<v1::Task>(DEPTH);
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        for addition in with {
            let of = match *addition {
                "report" => schema::of::<v1::Report>(DEPTH).into(),
                _ => json!({ "type": "array", "items": verification() }),
            };
            properties.insert((*addition).to_owned(), of);
        }
    }
    schema.insert("required".to_owned(), json!(["id"]));
    schema
}

fn verification() -> JsonObject {
    let text = json!({ "type": "string" });
    object(
        &json!({
            "session": text, "commit": text, "setup": text, "command": text, "folder": text, "verdict": text,
            "exit_code": { "type": ["integer", "null"] }, "message": text, "excerpt": text, "agent": text,
            "duration_ms": { "type": "integer" },
        }),
        &["session", "commit", "command", "folder", "verdict", "exit_code"],
    )
}

fn diff() -> JsonObject {
    let (text, number) = (json!({ "type": "string" }), json!({ "type": "integer" }));
    let file = object(
        &json!({
            "path": text, "display_path": text, "old_display_path": text, "status": text, "added": number,
            "removed": number,
        }),
        &["path", "display_path", "status"],
    );
    object(
        &json!({
            "task_id": text, "session": text, "from_session": text, "base_commit": text, "commit": text,
            "patch": text, "data": text, "files": { "type": "array", "items": Value::from(file) },
        }),
        &["task_id", "session", "base_commit", "commit"],
    )
}

fn landing() -> JsonObject {
    let text = json!({ "type": "string" });
    let path = object(
        &json!({ "path": text, "display_path": text, "action": text }),
        &["path", "display_path", "action"],
    );
    object(
        &json!({
            "task_id": text, "session": text, "commit": text, "is_unfinished": { "type": "boolean" },
            "done": { "type": "boolean" }, "merge_commit": text,
            "paths": { "type": "array", "items": Value::from(path) },
        }),
        &["task_id", "session", "commit", "done", "paths"],
    )
}

fn explanation() -> JsonObject {
    let incident = Value::from(schema::of::<v1::Incident>(2));
    object(
        &json!({
            "known": { "type": "boolean" }, "max_attempts": { "type": "integer" }, "first": incident,
            "with_checkpoints": incident, "last": incident,
        }),
        &["known", "max_attempts", "first", "last"],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tool_says_what_goes_in_and_out_in_little_room() {
        let tools = all();
        assert_eq!(tools.len(), 9);
        for tool in &tools {
            assert_eq!(Name::of(&tool.name).unwrap().word(), tool.name);
            assert!(tool.description.as_ref().is_some_and(|said| said.ends_with('.')));
            assert_eq!(tool.input_schema["type"], "object", "{}", tool.name);
            assert_eq!(tool.output_schema.as_ref().unwrap()["type"], "object", "{}", tool.name);
            for (name, about) in tool.input_schema["properties"].as_object().unwrap() {
                let said = serde_json::to_string(about).unwrap();
                assert!(said.contains("\"description\""), "{}: {name}: {said}", tool.name);
            }
        }
        let bytes = serde_json::to_string(&tools).unwrap().len();
        assert!(bytes < 64 * 1024, "{bytes} bytes for every client that connects");
    }
}

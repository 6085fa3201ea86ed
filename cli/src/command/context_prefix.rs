//! `kage context prefix` and `suggest`: what a provider's prompt cache can share between the sessions of a
//! task, and which fields keep it from being shared with the next task. The prompts are rendered here as
//! agents render them, from what the coordinator stored.

use std::collections::BTreeMap;

use anyhow::Context as _;
use kage_core::comparison::cache_share;
use kage_core::context::{Context, Delta, differing, overridden};
use kage_core::id::{Digest, ProjectId};
use kage_core::prompt::{Prompt, first_difference, render};
use kage_core::usage::Usage;
use kage_proto::status::ApiError;
use kage_proto::v1;
use serde::Serialize;

use super::context::download;
use crate::args::Suggest;
use crate::connect::Access;
use crate::exit::Exit;
use crate::invocation::Invocation;
use crate::table::Table;
use crate::tasks;
use crate::view;

#[derive(Debug, Serialize)]
struct PrefixJson {
    adapter: String,
    sessions: usize,
    /// Bytes of all prompts.
    prompt_bytes: usize,
    /// Bytes at the beginning that all of its prompts have.
    same_bytes: usize,
    /// `same_bytes` of the longest prompt, from 0 to 1.
    share: f64,
    /// The first byte that differs; `null`: none does.
    first_difference: Option<usize>,
    /// The part of all input that was read from a cache; `null`: there was no input.
    cached: Option<f64>,
}

pub(super) async fn prefix(invocation: &Invocation, asked: Option<String>) -> anyhow::Result<Exit> {
    let access = invocation.existing().await?;
    let task = tasks::find(&access, asked).await?;
    let spec = task
        .spec
        .as_ref()
        .context("the coordinator sent a task without a spec")?;
    let base = base_of(&access, spec).await?;
    let rows = rows(spec, base.as_ref(), &task.sessions)?;
    invocation.out.result("context_prefix", &rows)?;
    invocation.out.table(&table(&rows))?;
    Ok(Exit::Done)
}

fn table(rows: &[PrefixJson]) -> Table {
    let shown = rows.iter().map(|row| {
        vec![
            view::printable(&row.adapter),
            row.sessions.to_string(),
            row.prompt_bytes.to_string(),
            row.same_bytes.to_string(),
            format!("{:.1} %", row.share * 100.0),
            row.first_difference
                .map_or_else(|| "none".to_owned(), |byte| byte.to_string()),
            row.cached
                .map_or_else(|| "-".to_owned(), |share| format!("{:.0} %", share * 100.0)),
        ]
    });
    let header = [
        "adapter",
        "sessions",
        "prompts, bytes",
        "same, bytes",
        "share",
        "first difference",
        "input from cache",
    ];
    Table::of_words(&header, shown)
}

async fn base_of(access: &Access, spec: &v1::TaskSpec) -> anyhow::Result<Option<Context>> {
    if spec.context_base.is_empty() {
        return Ok(None);
    }
    let (project, digest): (ProjectId, Digest) = (spec.project.parse()?, spec.context_base.parse()?);
    let content = download(access, &project, &digest).await?;
    Ok(Some(Context::parse(&content)?))
}

fn rows(spec: &v1::TaskSpec, base: Option<&Context>, sessions: &[v1::Session]) -> anyhow::Result<Vec<PrefixJson>> {
    let delta = |assignment: &v1::Assignment| match assignment.context_delta.as_str() {
        "" => Ok(None),
        text => Delta::parse(text.as_bytes()).map(Some),
    };
    let deltas = spec.assignments.iter().map(delta).collect::<Result<Vec<_>, _>>()?;
    let places = overridden(deltas.iter().flatten());
    let mut prompts: BTreeMap<&str, Vec<Prompt>> = BTreeMap::new();
    for (assignment, delta) in spec.assignments.iter().zip(&deltas) {
        let prompt = render(&spec.prompt, base, delta.as_ref(), &places)?;
        prompts.entry(&assignment.adapter).or_default().push(prompt);
    }
    let rows = prompts.into_iter().map(|(adapter, prompts)| {
        let longest = prompts.iter().map(Prompt::bytes).max().unwrap_or(0);
        let first_difference = first_difference(&prompts);
        let same_bytes = first_difference.unwrap_or(longest);
        let mut usage = Usage::default();
        for session in sessions.iter().filter(|session| session.adapter == adapter) {
            usage += session.usage.map(Usage::from).unwrap_or_default();
        }
        PrefixJson {
            adapter: adapter.to_owned(),
            sessions: prompts.len(),
            prompt_bytes: prompts.iter().map(Prompt::bytes).sum(),
            same_bytes,
            share: ratio(same_bytes, longest),
            first_difference,
            cached: cache_share(&usage),
        }
    });
    Ok(rows.collect())
}

#[expect(clippy::cast_precision_loss, reason = "a share for people")]
fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 1.0 } else { part as f64 / whole as f64 }
}

#[derive(Debug, Serialize)]
struct SuggestJson {
    /// How many contexts were compared.
    tasks: usize,
    fields: Vec<FieldJson>,
}

#[derive(Debug, Serialize)]
struct FieldJson {
    /// A JSON pointer.
    field: String,
    /// In how many tasks it was another value than in the task before.
    differed: u32,
}

pub(super) async fn suggest(invocation: &Invocation, args: &Suggest) -> anyhow::Result<Exit> {
    let access = invocation.existing().await?;
    let newest = tasks::find(&access, None).await?;
    let filter = v1::TaskFilter {
        repository: view::repository(&newest).unwrap_or_default().to_owned(),
        ..v1::TaskFilter::default()
    };
    let request = v1::ListTasksRequest {
        project: access.project.to_string(),
        page_size: args.limit,
        filter: Some(filter),
        ..v1::ListTasksRequest::default()
    };
    let page = access.client.tasks().list_tasks(request).await;
    let mut found = page.map_err(ApiError::from)?.into_inner().tasks;
    // In the order in which they were made.
    found.reverse();
    let mut contexts = Vec::new();
    for task in found.iter().filter_map(|task| task.spec.as_ref()) {
        // One that was collected says nothing any more.
        if let Ok(Some(context)) = base_of(&access, task).await {
            contexts.push(context);
        }
    }
    let fields = differing(&contexts).into_iter().map(|(place, differed)| FieldJson {
        field: place.to_string(),
        differed,
    });
    let json = SuggestJson {
        tasks: contexts.len(),
        fields: fields.collect(),
    };
    invocation.out.result("context_suggest", &json)?;
    invocation.out.text(&suggestion(&json))?;
    Ok(Exit::Done)
}

fn suggestion(found: &SuggestJson) -> String {
    if found.tasks < 2 {
        return "there are not two tasks with a context to compare; pass one with `kage run --context FILE`\n"
            .to_owned();
    }
    if found.fields.is_empty() {
        return format!(
            "the bases of {} tasks are the same: nothing to move to the tail\n",
            found.tasks
        );
    }
    let mut text = format!(
        "in {} tasks these fields differed from the task before:\n\n",
        found.tasks
    );
    for field in &found.fields {
        text += &format!("  {} ({} times)\n", view::printable(&field.field), field.differed);
    }
    let quoted = found
        .fields
        .iter()
        .map(|field| serde_json::Value::from(field.field.as_str()).to_string());
    text += &format!(
        "\nto keep them out of the base, put this into kage.toml:\n\n[context]\ntail = [{}]\n",
        quoted.collect::<Vec<_>>().join(", ")
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::everywhere;

    #[test]
    fn what_prompts_share_fits_every_width() {
        let row = |adapter: &str, first_difference, cached| PrefixJson {
            adapter: adapter.to_owned(),
            sessions: 3,
            prompt_bytes: 30_000,
            same_bytes: 9_000,
            share: 0.9,
            first_difference,
            cached,
        };
        let rows = [row("claude-api", Some(9_000), Some(0.72)), row("codex", None, None)];
        insta::assert_snapshot!(everywhere(&table(&rows)));
    }

    fn assignment(adapter: &str, delta: &str) -> v1::Assignment {
        v1::Assignment {
            adapter: adapter.to_owned(),
            context_delta: delta.to_owned(),
            ..v1::Assignment::default()
        }
    }

    #[test]
    fn tells_for_each_adapter_what_its_prompts_share() {
        let spec = v1::TaskSpec {
            prompt: "Do it.".to_owned(),
            assignments: vec![
                assignment("codex", r#"{"b":"one"}"#),
                assignment("codex", r#"{"b":"two"}"#),
                assignment("claude-code", ""),
            ],
            ..v1::TaskSpec::default()
        };
        let base = Context::parse(br#"{"a":"shared by all"}"#).unwrap();
        let used = v1::Session {
            adapter: "codex".to_owned(),
            usage: Some(v1::Usage {
                input: 100,
                cache_read: 300,
                ..v1::Usage::default()
            }),
            ..v1::Session::default()
        };
        let rows = rows(&spec, Some(&base), &[used]).unwrap();
        let [claude, codex] = &rows[..] else { panic!("{rows:?}") };
        assert_eq!((claude.sessions, claude.first_difference, claude.share), (1, None, 1.0));
        let shared = "# Context\n\n## a\n\nshared by all\n\n".len();
        let at = codex.first_difference.unwrap();
        assert!(at > shared && at < codex.prompt_bytes / 2, "{codex:?}");
        assert_eq!((codex.sessions, codex.same_bytes, codex.cached), (2, at, Some(0.75)));
    }

    #[test]
    fn suggests_lines_that_can_be_pasted() {
        let found = SuggestJson {
            tasks: 3,
            fields: vec![FieldJson {
                field: "/build\"x".to_owned(),
                differed: 2,
            }],
        };
        let text = suggestion(&found);
        let pasted = text.split_once("[context]\n").unwrap().1;
        let read: crate::settings::ContextSettings = toml::from_str(pasted).unwrap();
        assert_eq!(read.tail, ["/build\"x"]);
    }
}

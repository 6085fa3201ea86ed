//! The contexts of a run: reads them from files, splits them into one base and a delta per session,
//! and stores the base on the coordinator.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use kage_core::context::{self, Context, Split};
use kage_core::id::{Digest, ProjectId};

use crate::assignments::Worker;
use crate::common_texts::CommonTexts;
use crate::connect::Access;
use crate::exit::Refusal;
use crate::instructions::Instructions;
use crate::sent_contexts;
use crate::settings::ContextSettings;

/// The contexts, as the task has them.
#[derive(Debug, PartialEq, Eq)]
pub struct Shared {
    /// Digest of the stored base; `None` without contexts.
    pub base: Option<Digest>,
    /// One per worker, in the workers' order.
    pub deltas: Vec<Option<String>>,
}

/// What sessions are told besides the files that are given to them.
#[derive(Debug)]
pub(crate) struct Told {
    /// All sessions.
    pub(crate) common: CommonTexts,
    /// Sessions of APIs.
    pub(crate) instructions: Instructions,
}

/// Reads the files, stores the base, and returns the task's part.
///
/// # Errors
/// When a file is not a context, a context is too large, or the coordinator refuses the base.
pub(crate) async fn put(
    access: &Access,
    project: &ProjectId,
    (files, settings): (&[String], &ContextSettings),
    told: &Told,
    workers: &[Worker],
) -> anyhow::Result<Shared> {
    let most = settings.most_bytes();
    let mut contexts = read(files, workers, most)?;
    told.instructions.add(access, workers, &mut contexts).await?;
    for context in &mut contexts {
        *context = told.common.within(context);
        let bytes = context.canonical().len();
        if bytes > most {
            let text = format!(
                "a context has {bytes} bytes with the files that are added to it; the limit is {most} (`max_kib` in \
                 [context])"
            );
            return Err(Refusal::usage(text).into());
        }
    }
    if files.is_empty() && contexts.iter().all(|context| context.members().is_empty()) {
        return Ok(Shared {
            base: None,
            deltas: vec![None; workers.len()],
        });
    }
    let pins = settings
        .pins()
        .map_err(|wrong| Refusal::usage(format!("[context]: {wrong}")))?;
    let split = context::split_pinned(&contexts, &pins);
    let Split { base, deltas } = split.map_err(|wrong| Refusal::usage(format!("[context]: {wrong}")))?;
    let digest = base.digest();
    sent_contexts::send(access, project, &digest, base.canonical().into()).await?;
    Ok(Shared {
        base: Some(digest),
        deltas: deltas.into_iter().map(|delta| delta.map(|d| d.canonical())).collect(),
    })
}

/// The context of each worker: the file of its session, or else of its adapter and model, of its adapter,
/// or for all; or else empty.
fn read(files: &[String], workers: &[Worker], most: usize) -> anyhow::Result<Vec<Context>> {
    let known: BTreeSet<String> = workers.iter().flat_map(names).flatten().collect();
    let mut for_all = None;
    let mut named: BTreeMap<&str, Context> = BTreeMap::new();
    for entry in files {
        match entry.split_once('=') {
            Some((who, file)) if known.contains(who) => {
                if named.insert(who, parse(file, most)?).is_some() {
                    return Err(Refusal::usage(format!("two contexts were given for {who}")).into());
                }
            }
            // A file may have such a name.
            Some((who, _)) if !Path::new(entry).is_file() => {
                let known = known.into_iter().collect::<Vec<_>>().join(", ");
                let message = format!("--context {entry:?}: no session of this task is {who:?}; there are {known}");
                return Err(Refusal::usage(message).into());
            }
            Some(_) | None => {
                if for_all.replace(parse(entry, most)?).is_some() {
                    return Err(Refusal::usage("two contexts were given for all sessions").into());
                }
            }
        }
    }
    let for_all = for_all.unwrap_or_default();
    let of = |worker: &Worker| {
        let mut found = names(worker)
            .into_iter()
            .flatten()
            .filter_map(|name| named.get(name.as_str()));
        found.next().unwrap_or(&for_all).clone()
    };
    Ok(workers.iter().map(of).collect())
}

/// What a worker may be called, the most particular first: its session, its adapter with its model, its
/// adapter.
fn names(worker: &Worker) -> [Option<String>; 3] {
    let model = worker.model.as_ref();
    [
        Some(worker.name.to_string()),
        model.map(|model| format!("{}:{model}", worker.adapter)),
        Some(worker.adapter.to_string()),
    ]
}

fn parse(file: &str, most: usize) -> anyhow::Result<Context> {
    let bytes =
        std::fs::read(Path::new(file)).map_err(|e| Refusal::usage(format!("cannot read the context {file}: {e}")))?;
    if bytes.len() > most {
        let text = format!(
            "the context {file} has {} bytes; the limit is {most} (`max_kib` in [context])",
            bytes.len()
        );
        return Err(Refusal::usage(text).into());
    }
    Context::parse(&bytes)
        .map_err(anyhow::Error::from)
        .map_err(|e| Refusal::usage(format!("{file} is not a context: {e:#}")).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assignments::workers;

    #[test]
    fn each_worker_gets_its_adapters_context() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let all = file("all.json", r#"{"a":1}"#);
        let codex = file("codex.json", r#"{"a":2}"#);
        let workers = workers(&["codex".to_owned(), "claude-code".to_owned()], 1, &[]).unwrap();
        let read = |files: &[String]| read(files, &workers, 1 << 10);

        let contexts = read(&[all.clone(), format!("codex={codex}")]).unwrap();
        assert_eq!(
            contexts.iter().map(Context::canonical).collect::<Vec<_>>(),
            [r#"{"a":2}"#, r#"{"a":1}"#]
        );
        let refused = read(&[format!("gemini={codex}")]).unwrap_err().to_string();
        assert!(refused.contains("there are claude-code, codex"), "{refused}");
        assert!(read(&[all.clone(), all]).is_err());
        let odd = read(&[file("a=b.json", r#"{"a":3}"#)]).unwrap();
        assert_eq!(odd[0].canonical(), r#"{"a":3}"#);
        assert!(read(&[file("null.json", r#"{"a":null}"#)]).is_err());
        let long = file("long.json", &format!(r#"{{"a":"{}"}}"#, "x".repeat(1 << 10)));
        assert!(read(&[long]).unwrap_err().to_string().contains("max_kib"));
    }

    #[test]
    fn the_most_particular_file_counts() {
        let dir = tempfile::tempdir().unwrap();
        let file = |who: &str| {
            let path = dir.path().join(format!("{}.json", who.replace(':', "-")));
            std::fs::write(&path, format!(r#"{{"for":"{who}"}}"#)).unwrap();
            format!("{who}={}", path.display())
        };
        let with = ["claude-api:m1", "claude-api:m2", "claude-api:m2", "codex"].map(str::to_owned);
        let workers = workers(&with, 1, &[]).unwrap();
        let files = ["claude-api", "claude-api:m2", "claude-api-3"].map(file);
        let found: Vec<_> = read(&files, &workers, 1 << 10)
            .unwrap()
            .iter()
            .map(Context::canonical)
            .collect();
        let expected = ["claude-api", "claude-api:m2", "claude-api-3"].map(|who| format!(r#"{{"for":"{who}"}}"#));
        assert_eq!(found[..3], expected);
        assert_eq!(found[3], "{}");
        assert!(read(&[file("claude-api:m3")], &workers, 1 << 10).is_err());
    }
}

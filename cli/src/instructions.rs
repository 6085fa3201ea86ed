//! What a repository tells coding agents (`AGENTS.md`, `CLAUDE.md`): programs read these files themselves,
//! and sessions of APIs get them in their contexts, so that they stand in the prefix that all of them share.

use std::collections::BTreeSet;
use std::path::Path;

use kage_core::context::Context;
use kage_proto::status::ApiError;
use kage_proto::v1;

use crate::assignments::Worker;
use crate::connect::Access;
use crate::output::note;

const FILES: [&str; 2] = ["AGENTS.md", "CLAUDE.md"];
/// The most bytes of one file: more than a model reads with every call is a mistake.
const MOST: u64 = 256 << 10;

/// The files of a repository, by name.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Instructions(Vec<(&'static str, String)>);

impl Instructions {
    /// Reads the files at the top of a repository. One that is too large, is no text, leads out of the
    /// repository or says the same as the one before is left out.
    #[must_use]
    pub(crate) fn of(root: &Path) -> Self {
        let mut found: Vec<(&'static str, String)> = Vec::new();
        for name in FILES {
            let Some(text) = read(root, name) else { continue };
            if !text.trim().is_empty() && found.iter().all(|(_, other)| *other != text) {
                found.push((name, text));
            }
        }
        Self(found)
    }

    /// Adds the files to the contexts of the sessions that would not read them. A context that has a field of
    /// that name keeps it.
    ///
    /// # Errors
    /// When the coordinator does not say which adapters are programs.
    pub(crate) async fn add(
        &self,
        access: &Access,
        workers: &[Worker],
        contexts: &mut [Context],
    ) -> anyhow::Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        let apis = apis(access).await?;
        for (worker, context) in workers.iter().zip(contexts) {
            if apis.contains(worker.adapter.as_str()) {
                *context = self.within(context);
            }
        }
        Ok(())
    }

    fn within(&self, context: &Context) -> Context {
        context.with_texts(self.0.iter().map(|(name, text)| (*name, text.as_str())))
    }
}

fn read(root: &Path, name: &str) -> Option<String> {
    let path = std::fs::canonicalize(root.join(name)).ok()?;
    let about = std::fs::metadata(&path).ok()?;
    if !about.is_file() || !path.starts_with(std::fs::canonicalize(root).ok()?) {
        return None;
    }
    if about.len() > MOST {
        note(&format!(
            "{name} has more than {MOST} bytes: sessions of APIs are not told what it says"
        ));
        return None;
    }
    std::fs::read_to_string(path).ok()
}

/// The adapters of connected agents that are no programs.
async fn apis(access: &Access) -> anyhow::Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListAgentsRequest {
            page_size: 100,
            page_token,
        };
        let page = access.client.fleet().list_agents(request).await;
        let page = page.map_err(ApiError::from)?.into_inner();
        let adapters = page.agents.into_iter().flat_map(|agent| agent.adapters);
        // A program has a version, and takes one of its agent's slots.
        let apis = adapters.filter(|adapter| adapter.version.is_empty() && adapter.slots > 0);
        found.extend(apis.map(|adapter| adapter.name));
        if page.next_page_token.is_empty() {
            return Ok(found);
        }
        page_token = page.next_page_token;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_each_text_once() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Instructions::of(dir.path()), Instructions::default());
        std::fs::write(dir.path().join("AGENTS.md"), "Be brief.\n").unwrap();
        std::os::unix::fs::symlink("AGENTS.md", dir.path().join("CLAUDE.md")).unwrap();
        let one = Instructions(vec![("AGENTS.md", "Be brief.\n".to_owned())]);
        assert_eq!(Instructions::of(dir.path()), one);
        let context = one.within(&Context::parse(br#"{"a":1}"#).unwrap());
        assert_eq!(context.canonical(), r#"{"AGENTS.md":"Be brief.\n","a":1}"#);
        let own = Context::parse(br#"{"AGENTS.md":"mine"}"#).unwrap();
        assert_eq!(one.within(&own), own);
    }

    #[test]
    fn reads_nothing_from_elsewhere_and_nothing_huge() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let secret = other.path().join("secret");
        std::fs::write(&secret, "not of this repository").unwrap();
        std::os::unix::fs::symlink(&secret, dir.path().join("AGENTS.md")).unwrap();
        std::fs::write(dir.path().join("CLAUDE.md"), "x".repeat(300 << 10)).unwrap();
        assert_eq!(Instructions::of(dir.path()), Instructions::default());
        std::fs::write(dir.path().join("CLAUDE.md"), [0xff, 0xfe]).unwrap();
        assert_eq!(Instructions::of(dir.path()), Instructions::default());
    }
}

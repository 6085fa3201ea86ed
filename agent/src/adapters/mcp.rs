//! The servers of the Model Context Protocol that a repository names in its `.mcp.json`, as each kind of adapter
//! takes them. They are handed over only as the person of the task agreed to them, by the digest of the file.

use std::path::Path;

use kage_core::id::Digest;
use serde_json::{Map, Value, json};

/// Where a repository names them, at its top.
const FILE: &str = ".mcp.json";
/// The most bytes of the file.
const MOST_BYTES: u64 = 1 << 20;

/// Named servers, as the file has them.
#[derive(Debug, Clone, PartialEq)]
pub struct McpServers(Map<String, Value>);

/// Why a session gets none.
#[derive(Debug, thiserror::Error)]
pub enum NoMcpServers {
    #[error("the worktree's {FILE} cannot be read")]
    Read(#[source] std::io::Error),
    /// It is not what was agreed to.
    #[error("the worktree's {FILE} is not the one that was agreed to (`kage adapter trust`)")]
    Other,
    #[error("the worktree's {FILE} has no object \"mcpServers\"")]
    Malformed,
}

impl McpServers {
    /// Reads those of a worktree. Blocks.
    ///
    /// # Errors
    /// When there are none that were agreed to.
    pub fn of(worktree: &Path, agreed: &Digest) -> Result<Self, NoMcpServers> {
        let file = worktree.join(FILE);
        let about = file.symlink_metadata().map_err(NoMcpServers::Read)?;
        if !about.is_file() || about.len() > MOST_BYTES {
            return Err(NoMcpServers::Other);
        }
        let bytes = std::fs::read(&file).map_err(NoMcpServers::Read)?;
        if Digest::of(&bytes) != *agreed {
            return Err(NoMcpServers::Other);
        }
        Self::read(&bytes).ok_or(NoMcpServers::Malformed)
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        match serde_json::from_slice(bytes).ok()? {
            Value::Object(mut file) => match file.remove("mcpServers")? {
                Value::Object(servers) => Some(Self(servers)),
                _ => None,
            },
            _ => None,
        }
    }

    /// The servers as an object, for a program's settings.
    #[must_use]
    pub fn object(&self) -> String {
        Value::Object(self.0.clone()).to_string()
    }

    /// The servers as a file for programs that take one.
    #[must_use]
    pub fn file(&self) -> String {
        json!({"mcpServers": self.0}).to_string()
    }

    /// The servers as the Agent Client Protocol has them: those that are started, and those of kinds that an
    /// agent says it can reach.
    #[must_use]
    pub fn for_acp(&self, reaches: impl Fn(&str) -> bool) -> Value {
        let servers = self.0.iter().filter_map(|(name, server)| {
            let text = |key: &str| server.get(key).and_then(Value::as_str);
            let named = |key: &str| {
                let values = server.get(key).and_then(Value::as_object).into_iter().flatten();
                let values = values.map(|(name, value)| json!({"name": name, "value": value}));
                values.collect::<Vec<_>>()
            };
            if let Some(command) = text("command") {
                let args = server.get("args").cloned().unwrap_or_else(|| json!([]));
                return Some(json!({"name": name, "command": command, "args": args, "env": named("env")}));
            }
            let kind = text("type").unwrap_or("http");
            let url = text("url").filter(|_| reaches(kind))?;
            Some(json!({"type": kind, "name": name, "url": url, "headers": named("headers")}))
        });
        Value::Array(servers.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{"mcpServers": {
        "docs": {"command": "npx", "args": ["docs"], "env": {"TOKEN": "x"}},
        "here": {"type": "http", "url": "http://127.0.0.1/mcp", "headers": {"a": "b"}},
        "odd": {"type": "sse"}
    }}"#;

    #[test]
    fn only_what_was_agreed_to_is_handed_over() {
        let tree = tempfile::tempdir().unwrap();
        let agreed = Digest::of(TEXT.as_bytes());
        let read = || McpServers::of(tree.path(), &agreed);
        assert!(matches!(read(), Err(NoMcpServers::Read(_))));
        std::fs::write(tree.path().join(FILE), TEXT).unwrap();
        let servers = read().unwrap();
        std::fs::write(tree.path().join(FILE), TEXT.replace("npx", "curl")).unwrap();
        assert!(
            matches!(read(), Err(NoMcpServers::Other)),
            "a session or its base changed it"
        );
        std::fs::remove_file(tree.path().join(FILE)).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", tree.path().join(FILE)).unwrap();
        assert!(matches!(read(), Err(NoMcpServers::Other)));
        assert_eq!(McpServers::read(servers.file().as_bytes()), Some(servers.clone()));

        let docs =
            json!({"name": "docs", "command": "npx", "args": ["docs"], "env": [{"name": "TOKEN", "value": "x"}]});
        assert_eq!(servers.for_acp(|_| false), json!([docs]));
        let here = json!({"type": "http", "name": "here", "url": "http://127.0.0.1/mcp",
            "headers": [{"name": "a", "value": "b"}]});
        assert_eq!(servers.for_acp(|kind| kind == "http"), json!([docs, here]));
        for wrong in ["", "[]", "{\"mcpServers\": 1}"] {
            assert_eq!(McpServers::read(wrong.as_bytes()), None);
        }
    }
}

//! Text files of the worktree, for agents that read and write them by requests. They run in the agent of the
//! machine, outside of the session's box, so they are opened as the tools of API adapters open them: never through a
//! link that leads out of the worktree, and never git's own.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use super::rpc::{RpcError, code};
use crate::adapters::tools::{Refused, Relative, Root, text_file};

/// The worktree of a session.
#[derive(Debug, Clone)]
pub(super) struct Worktree {
    root: Arc<Root>,
    /// Its path, and the one without links.
    paths: Vec<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct Read {
    path: PathBuf,
    #[serde(default)]
    line: Option<usize>,
    #[serde(default)]
    limit: Option<usize>,
}

#[derive(Debug, Deserialize)]
struct Write {
    path: PathBuf,
    content: String,
}

impl Worktree {
    /// Blocks.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(super) fn open(path: &Path) -> std::io::Result<Self> {
        Ok(Self {
            root: Arc::new(Root::open(path, "")?),
            paths: vec![path.to_owned(), path.canonicalize()?],
        })
    }

    /// Its path.
    pub(super) fn path(&self) -> &Path {
        self.paths.first().map_or(Path::new("/"), PathBuf::as_path)
    }

    /// A path of an agent's, which are whole ones, from the top of the worktree.
    pub(super) fn relative(&self, path: &Path) -> Result<Relative, RpcError> {
        let below = self.paths.iter().find_map(|top| path.strip_prefix(top).ok());
        let below = below.and_then(Path::to_str).ok_or_else(|| {
            let text = format!("{}: is not in the worktree {}", path.display(), self.path().display());
            RpcError::new(code::INVALID_PARAMS, text)
        })?;
        Relative::parse(below).map_err(refused)
    }

    /// Opens a folder, so that it is known to be in the worktree.
    pub(super) fn folder(&self, path: &Path) -> Result<PathBuf, RpcError> {
        let relative = self.relative(path)?;
        self.root.folder(&relative).map_err(refused)?;
        Ok(self.path().join(relative.as_path()))
    }

    /// Carries out a request. Blocks.
    pub(super) fn call(&self, method: &str, params: Value) -> Result<Value, RpcError> {
        let invalid = |error: serde_json::Error| RpcError::new(code::INVALID_PARAMS, error.to_string());
        match method {
            "fs/read_text_file" => self.read(&serde_json::from_value(params).map_err(invalid)?),
            "fs/write_text_file" => self.write(&serde_json::from_value(params).map_err(invalid)?),
            other => Err(RpcError::new(
                code::UNKNOWN_METHOD,
                format!("{other} is no request about files"),
            )),
        }
    }

    fn read(&self, Read { path, line, limit }: &Read) -> Result<Value, RpcError> {
        let relative = self.relative(path)?;
        let Some(text) = text_file(&self.root, &relative).map_err(refused)? else {
            // Agents look for the word of the system.
            let text = format!("ENOENT: no such file or directory, open '{}'", path.display());
            return Err(RpcError::new(code::NOT_FOUND, text));
        };
        let first = line.unwrap_or(1).saturating_sub(1);
        let lines = text.split_inclusive('\n').skip(first).take(limit.unwrap_or(usize::MAX));
        Ok(json!({"content": lines.collect::<String>()}))
    }

    fn write(&self, Write { path, content }: &Write) -> Result<Value, RpcError> {
        let relative = self.relative(path)?;
        self.root.replace(&relative, content.as_bytes()).map_err(refused)?;
        Ok(json!({}))
    }
}

fn refused(refused: Refused) -> RpcError {
    RpcError::new(code::INTERNAL, refused.to_string())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn files_are_read_and_written_in_the_worktree_and_nowhere_else() {
        let place = tempfile::tempdir().unwrap();
        let (tree, outside) = (place.path().join("tree"), place.path().join("outside"));
        fs::create_dir_all(tree.join(".git")).unwrap();
        fs::create_dir_all(&outside).unwrap();
        fs::write(outside.join("secret"), "secret").unwrap();
        fs::write(tree.join(".git/config"), "secret").unwrap();
        fs::write(tree.join("lines"), "one\r\ntwo\nthree").unwrap();
        fs::write(tree.join("binary"), b"a\xff\0").unwrap();
        symlink(&outside, tree.join("out")).unwrap();
        symlink(place.path().join("tree"), place.path().join("other-name")).unwrap();
        let worktree = Worktree::open(&place.path().join("other-name")).unwrap();
        let read = |path: &Path, line: Value, limit: Value| {
            worktree.call("fs/read_text_file", json!({"path": path, "line": line, "limit": limit}))
        };
        let content = |read: Result<Value, RpcError>| read.unwrap()["content"].as_str().unwrap().to_owned();
        let whole = read(&tree.join("lines"), Value::Null, Value::Null);
        assert_eq!(content(whole), "one\r\ntwo\nthree");
        let named = place.path().join("other-name/lines");
        assert_eq!(content(read(&named, json!(2), json!(1))), "two\n");
        assert_eq!(content(read(&named, json!(9), Value::Null)), "");

        let absent = read(&tree.join("absent"), Value::Null, Value::Null).unwrap_err();
        assert!(
            absent.code == code::NOT_FOUND && absent.message.contains("ENOENT"),
            "{absent:?}"
        );
        let write = |path: &Path| worktree.call("fs/write_text_file", json!({"path": path, "content": "new"}));
        for wrong in [
            outside.join("secret"),
            tree.join("out/secret"),
            tree.join("../outside/secret"),
            tree.join(".git/config"),
            tree.join("binary/x"),
            PathBuf::from("lines"),
            PathBuf::from("/etc/passwd"),
        ] {
            let refused = read(&wrong, Value::Null, Value::Null).unwrap_err();
            assert!(refused.code != code::NOT_FOUND, "{refused:?}");
            write(&wrong).unwrap_err();
        }
        read(&tree.join("binary"), Value::Null, Value::Null).unwrap_err();
        write(&tree.join("a/new/file")).unwrap();
        assert_eq!(fs::read_to_string(tree.join("a/new/file")).unwrap(), "new");
        assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "secret");
        assert_eq!(fs::read_to_string(tree.join(".git/config")).unwrap(), "secret");
        worktree.call("fs/delete", json!({})).unwrap_err();
        worktree.call("fs/read_text_file", json!({})).unwrap_err();
    }
}

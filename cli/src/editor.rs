//! A person's words from their editor.

use std::io::{IsTerminal as _, Write as _};
use std::process::Command;

use anyhow::Context as _;

use crate::exit::Refusal;
use crate::terminal::Screen;

/// From here on nothing belongs to the text; `#` begins headings of Markdown, so it does not.
const SCISSORS: &str = "# ------------------------ >8 ------------------------";

/// The text that a person writes, or nothing when there is no terminal to write at.
///
/// # Errors
/// When the editor cannot be run or fails, or nothing was written.
pub(crate) fn words(what: &str) -> anyhow::Result<Option<String>> {
    if !(std::io::stdin().is_terminal() && Screen::stdout().is_terminal) {
        return Ok(None);
    }
    let editor = ["VISUAL", "EDITOR"]
        .into_iter()
        .filter_map(|name| std::env::var(name).ok());
    let editor = editor
        .map(|editor| editor.trim().to_owned())
        .find(|editor| !editor.is_empty());
    written(&editor.unwrap_or_else(|| "vi".to_owned()), what).map(Some)
}

fn written(editor: &str, what: &str) -> anyhow::Result<String> {
    let mut file = tempfile::Builder::new().prefix("kage-").suffix(".md").tempfile()?;
    write!(
        file,
        "\n{SCISSORS}\n# {what}\n# Everything below the line with the scissors is left out.\n"
    )?;
    file.flush()?;
    // As git does: the variable may have arguments.
    let status = Command::new("sh")
        .args(["-c", &format!("{editor} \"$@\""), editor])
        .arg(file.path())
        .status()
        .context("cannot start the editor")?;
    if !status.success() {
        return Err(Refusal::usage(format!("the editor `{editor}` ended with {status}; nothing was done")).into());
    }
    // An editor may have put another file in its place.
    let text = std::fs::read_to_string(file.path()).context("cannot read what was written")?;
    let text = text.split(SCISSORS).next().unwrap_or_default().trim();
    if text.is_empty() {
        return Err(Refusal::usage("nothing was written, so nothing was done").into());
    }
    Ok(format!("{text}\n"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_is_above_the_scissors_counts() {
        let folder = tempfile::tempdir().unwrap();
        let editor = |script: &str| {
            let path = folder.path().join("edit");
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            let said = written(&format!("sh {} -x", path.display()), "What is to be done?");
            said.map_err(|error| error.to_string())
        };
        let puts = "f=$2; { printf '# A heading\\n\\nMend it.\\n'; cat \"$f\"; } > \"$f.new\"; mv \"$f.new\" \"$f\"";
        assert_eq!(editor(puts).as_deref(), Ok("# A heading\n\nMend it.\n"));
        assert_eq!(editor("true").unwrap_err(), "nothing was written, so nothing was done");
        assert!(editor("exit 3").unwrap_err().contains("ended with exit status: 3"));
    }
}

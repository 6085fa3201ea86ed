//! The person's pager, for text that is longer than the terminal. What it gets is already as a terminal
//! may get it.

use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::terminal::Screen;

/// Colours as they are, and none of it left on the screen when it fits; git sets the same.
const USUAL: &str = "less";
const LESS: &str = "FRX";

/// Shows the text in the pager of `KAGE_PAGER` or `PAGER`, if it has more lines than the terminal. False: it
/// was not shown.
pub(crate) fn show(text: &str, screen: Screen) -> bool {
    let lines = text.lines().count();
    if screen.size.is_some_and(|(_, rows)| lines < usize::from(rows)) {
        return false;
    }
    let set = |name: &str| std::env::var(name).ok();
    let wanted = set("KAGE_PAGER").or_else(|| set("PAGER"));
    let Some(program) = pager(wanted.as_deref()) else {
        return false;
    };
    through(&program, text).is_some()
}

/// The command line of the pager; `None`: without one.
fn pager(wanted: Option<&str>) -> Option<String> {
    match wanted.map(str::trim) {
        None => Some(USUAL.to_owned()),
        Some("" | "cat") => None,
        Some(program) => Some(program.to_owned()),
    }
}

fn through(program: &str, text: &str) -> Option<()> {
    let mut command = Command::new("sh");
    // `exec` fails where there is no such program; the text is then printed without it.
    command.args([
        "-c",
        &format!(
            "command -v {} >/dev/null || exit 127; exec {program}",
            first_word(program)
        ),
    ]);
    if std::env::var_os("LESS").is_none() {
        command.env("LESS", LESS);
    }
    let mut child = command.stdin(Stdio::piped()).spawn().ok()?;
    if let Some(mut pipe) = child.stdin.take() {
        // A person leaves a pager before the end of the text.
        pipe.write_all(text.as_bytes()).ok();
    }
    let status = child.wait().ok()?;
    (status.code() != Some(127)).then_some(())
}

fn first_word(program: &str) -> &str {
    program.split_whitespace().next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pager_is_the_persons_own_or_none() {
        assert_eq!(pager(None).as_deref(), Some("less"));
        assert_eq!(pager(Some("less -S")).as_deref(), Some("less -S"));
        assert_eq!((pager(Some("")), pager(Some("cat"))), (None, None));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("seen");
        assert_eq!(through(&format!("tee {}", file.display()), "a\nb\n"), Some(()));
        assert_eq!(std::fs::read_to_string(file).unwrap(), "a\nb\n");
        assert_eq!(through("there-is-no-such-pager -x", "a\n"), None);
    }
}

//! The shell: one command at a time, bounded in time and output. The next command begins in the folder in which
//! the last one ended, as long as that is in the worktree, which is looked at again before each command.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

use super::{Bash, Refused, Toolbox};
use crate::adapters::port::Reporter;
use crate::process::excerpt::HeadTail;
use crate::process::{Cause, Chunk, Command, Control, Limits, Stdin};

const TIMEOUT: Duration = Duration::from_secs(60);
const MAX_TIMEOUT: Duration = Duration::from_secs(600);
/// Bytes of output kept from either end.
const HALF: usize = 16 << 10;

pub(super) async fn run(
    toolbox: &Toolbox,
    call: Bash,
    control: &Control,
    reporter: &Reporter,
) -> Result<String, Refused> {
    let timeout = call
        .timeout_seconds
        .map_or(TIMEOUT, |seconds| Duration::from_secs(seconds.max(1)))
        .min(MAX_TIMEOUT);
    let waiting = toolbox.turns.next(&control.stop, || reporter.alive());
    let _turn = waiting.await.ok_or_else(|| Refused::new("[stopped]"))?;
    // After the wait: commands may have run in it.
    let (cwd, note) = toolbox.cwd.begin(&toolbox.folder, &toolbox.worktree);
    let mark = format!("kage-{:032x}", rand::random::<u128>());
    let command = Command {
        program: "/bin/sh".into(),
        args: vec!["-c".into(), telling_its_end(&mark, &call.command).into()],
        env: toolbox.env.clone(),
        cwd,
        stdin: Stdin::Null,
    };
    let limits = Limits {
        timeout: Some(timeout),
        grace: Duration::from_secs(2),
    };
    // The reader below always reads, so this is full only for moments.
    let (sender, mut chunks) = mpsc::channel::<Chunk>(4);
    let gather = async {
        let mut output = HeadTail::new(HALF);
        while let Some(chunk) = chunks.recv().await {
            reporter.alive();
            output.push(&chunk.bytes);
        }
        output.text()
    };
    let (ended, mut text) = tokio::join!(toolbox.runner.run(command, limits, control.clone(), sender), gather);
    reporter.program_ended(&ended);
    if let Some(folder) = take_end(&mut text, &mark) {
        text.push_str(&toolbox.cwd.end(folder, &toolbox.worktree));
    }
    text.insert_str(0, &note);
    let ended = ended.map_err(|error| Refused::new(format!("the shell cannot be run: {error}")))?;
    let how = match ended.cause {
        Cause::Itself if ended.status.success() && text.is_empty() => return Ok("[no output]".to_owned()),
        Cause::Itself if ended.status.success() => return Ok(text),
        Cause::Itself => ended.status.to_string(),
        Cause::TimedOut => format!("ended after {} seconds: it took too long", timeout.as_secs()),
        Cause::Stopped | Cause::Unread => "stopped".to_owned(),
    };
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    Err(Refused::new(format!("{text}[{how}]")))
}

/// The command, and what prints the folder in which it ends. It does so on a copy of the output that a command has
/// no reason to touch.
fn telling_its_end(mark: &str, command: &str) -> String {
    format!("exec 9>&1; trap 'printf \"\\n%s%s\\n\" {mark} \"$(pwd -P)\" >&9 2>/dev/null' EXIT\n{command}\n")
}

/// Takes the line with the folder out of the output.
fn take_end(text: &mut String, mark: &str) -> Option<PathBuf> {
    let line = format!("\n{mark}");
    let start = text.rfind(&line)?;
    let rest = &text[start + line.len()..];
    let length = rest.find('\n')?;
    let folder = PathBuf::from(&rest[..length]);
    text.replace_range(start..start + line.len() + length + 1, "");
    folder.is_absolute().then_some(folder)
}

/// The folder in which the next command begins.
#[derive(Debug, Clone, Default)]
pub(super) struct WorkingFolder(Arc<Mutex<Option<PathBuf>>>);

impl WorkingFolder {
    /// Where a command begins, and what the model has to know of that. What was a folder of the worktree may be gone
    /// by now, or be a link that leads out of it.
    fn begin(&self, first: &Path, worktree: &Path) -> (PathBuf, String) {
        let top = worktree.canonicalize();
        let within = |folder: &Path| -> Option<PathBuf> {
            let real = folder.canonicalize().ok().filter(|real| real.is_dir())?;
            let inside = top.as_ref().is_ok_and(|top| real.starts_with(top));
            inside.then_some(real)
        };
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last = kept.take();
        *kept = last.as_deref().and_then(within);
        if let Some(folder) = &*kept {
            return (folder.clone(), String::new());
        }
        let left = |folder: &Path, place: &str| {
            let folder = folder.display();
            format!("[{folder} is not in the worktree any more: this command began in {place}]\n")
        };
        if within(first).is_none() {
            return (worktree.to_owned(), left(first, "the top of the worktree"));
        }
        let note = last.map_or_else(String::new, |last| left(&last, "the working folder"));
        (first.to_owned(), note)
    }

    /// Keeps the folder in which a command ended. Returns what the model has to know.
    fn end(&self, folder: PathBuf, worktree: &Path) -> String {
        let top = worktree.canonicalize();
        let within = top.is_ok_and(|top| folder.starts_with(top));
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if within {
            *kept = Some(folder);
            return String::new();
        }
        *kept = None;
        format!(
            "[{} is not in the worktree: the next command begins in the working folder]\n",
            folder.display()
        )
    }
}

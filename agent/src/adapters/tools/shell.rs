//! The shell: one command at a time, bounded in time and output.

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
    let command = Command {
        program: "/bin/sh".into(),
        args: vec!["-c".into(), call.command.into()],
        env: toolbox.env.clone(),
        cwd: toolbox.folder.clone(),
        stdin: Stdin::Null,
    };
    let limits = Limits {
        timeout: Some(timeout),
        grace: Duration::from_secs(2),
    };
    let waiting = toolbox.turns.next(&control.stop, || reporter.alive());
    let _turn = waiting.await.ok_or_else(|| Refused::new("[stopped]"))?;
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
    let ended = ended.map_err(|error| Refused::new(format!("the shell cannot be run: {error}")))?;
    let mark = match ended.cause {
        Cause::Itself if ended.status.success() && text.is_empty() => return Ok("[no output]".to_owned()),
        Cause::Itself if ended.status.success() => return Ok(text),
        Cause::Itself => ended.status.to_string(),
        Cause::TimedOut => format!("ended after {} seconds: it took too long", timeout.as_secs()),
        Cause::Stopped | Cause::Unread => "stopped".to_owned(),
    };
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    Err(Refused::new(format!("{text}[{mark}]")))
}

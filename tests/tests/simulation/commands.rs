//! Set-up and verify commands, played: they take a while, hang, break, and say of the files that
//! they find what follows from them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use kage_agent::process::{Cause, Chunk, Command, Control, Ended, Limits, Pipe, Play, RunError, Status};
use tokio::sync::mpsc;

use crate::forge::{Judged, is_good, tree_of};
use crate::world::{Dice, World, count};

pub(crate) const SETUP: &str = "prepare";
/// Judges without a word.
pub(crate) const JUDGE: &str = "judge";
/// Judges and prints something.
pub(crate) const JUDGE_ALOUD: &str = "judge aloud";

/// Between two looks whether it may go on.
const THAW: Duration = Duration::from_millis(50);

/// Plays the commands of one start of an agent.
pub(crate) fn play(world: &Arc<World>, dice: &Dice) -> Play {
    let (world, dice) = (Arc::clone(world), dice.clone());
    Arc::new(move |command, limits, control, output| {
        let (world, dice) = (Arc::clone(&world), dice.clone());
        run(world, dice, command, limits, control, output).boxed()
    })
}

async fn run(
    world: Arc<World>,
    dice: Dice,
    command: Command,
    limits: Limits,
    control: Control,
    output: mpsc::Sender<Chunk>,
) -> Result<Ended, RunError> {
    let ended = |cause, status| Ended {
        cause,
        status,
        survivors: 0,
    };
    let Control { stop, mut frozen } = control;
    let working = async {
        let hangs = dice.chance(30);
        tokio::time::sleep(if hangs {
            Duration::from_secs(60)
        } else {
            dice.millis(0, 2000)
        })
        .await;
        while *frozen.borrow_and_update() {
            tokio::time::sleep(THAW).await;
        }
        world_says(&world, &dice, &command, &output).await
    };
    let limit = limits.timeout.unwrap_or(Duration::from_secs(3600));
    let status = match stop.run_until_cancelled(tokio::time::timeout(limit, working)).await {
        None => return Ok(ended(Cause::Stopped, Status::Signal(15))),
        Some(Err(_)) => return Ok(ended(Cause::TimedOut, Status::Signal(9))),
        Some(Ok(status)) => status?,
    };
    Ok(ended(Cause::Itself, status))
}

async fn world_says(
    world: &World,
    dice: &Dice,
    command: &Command,
    output: &mpsc::Sender<Chunk>,
) -> Result<Status, RunError> {
    let text = command.args.last().and_then(|text| text.to_str()).unwrap_or_default();
    match dice.below(100) {
        0..3 => {
            return Err(RunError::Wait {
                program: command.program.clone(),
                source: std::io::Error::other("as the seed has it"),
            });
        }
        // The machine lacks something.
        3..8 => return Ok(Status::Code(127)),
        _ => {}
    }
    if text == SETUP {
        return Ok(Status::Code(if dice.chance(50) { 3 } else { 0 }));
    }
    let files = world.forge.lock().unwrap().files(&command.cwd).cloned();
    let Some(files) = files else {
        world.accuse(format!("{text} runs in {}, where nothing is", command.cwd.display()));
        return Ok(Status::Code(127));
    };
    if text == JUDGE_ALOUD {
        let bytes = Bytes::from(format!("tree {}\n", tree_of(&files)));
        let pipe = Pipe::Stdout;
        // Its reader may be gone; then it is ended.
        drop(output.send(Chunk { pipe, bytes }).await);
    }
    let passed = is_good(&files);
    let session = command.env.get("KAGE_SESSION");
    let session = session.map(|session| session.value.to_string_lossy().into_owned());
    count(&world.counts.judged);
    world.forge.lock().unwrap().judged.push(Judged {
        session: session.unwrap_or_default(),
        tree: tree_of(&files),
        passed,
    });
    Ok(Status::Code(if passed { 0 } else { 1 }))
}

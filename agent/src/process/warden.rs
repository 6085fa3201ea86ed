//! The warden: a tiny process between the agent and one program. Linux only.
//!
//! It leads its own session and is a child subreaper, so every descendant of the program stays its
//! descendant, whatever it forks or detaches. It takes orders on its standard input, a socket. When
//! the socket closes, the agent has ended, and the warden ends everything below it. Blocking code
//! and three threads: no runtime is needed.
//!
//! It has the same rights as the program, which can therefore kill or stop it. The keeper in
//! the agent (see [`super::keeper`]) does its work then.
//!
//! ```text
//! Running --program ended / Stop / socket closed--> Asking (TERM, grace) --> Killing (STOP, KILL) --> report
//! ```

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitOptions, WaitStatus, getpid, set_child_subreaper, set_parent_process_death_signal, setsid, wait,
};

use super::link::{Message, Order, Start, StartStdin};
use super::tree::Trees;
use super::{Status, environment};
use crate::contain::{self, Answer, Launch, Launched};

/// How long processes that a program leaves may take to exit by themselves.
const LEFTOVER_GRACE: Duration = Duration::from_secs(1);
/// How long to kill before the remaining processes are left to the agent.
const KILLING: Duration = Duration::from_secs(3);
/// How long to kill when there is no agent.
const KILLING_ALONE: Duration = Duration::from_secs(60);
/// How often to look for new descendants while killing.
const KILL_ROUND: Duration = Duration::from_millis(20);
/// How much earlier than the agent and its wardens the kernel picks their programs when memory is
/// short, in thousandths of all memory.
const OOM_HANDICAP: i32 = 200;
/// The exit code that reports remaining processes to the agent.
const SURVIVORS: i32 = 3;

/// Messages of the threads to the main one.
enum Input {
    Order(Order),
    AgentGone,
    Ended(Status),
    /// No child is left; in a subreaper that means no descendant either.
    Empty,
}

/// Runs one program. Returns the warden's own exit code, which is not used.
pub(super) fn main() -> i32 {
    match run() {
        Ok(0) => 0,
        Ok(_) => SURVIVORS,
        Err(_) => 1,
    }
}

/// Returns the number of remaining processes.
fn run() -> io::Result<usize> {
    let mut agent = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut orders = BufReader::new(agent.try_clone()?);
    let Some(Order::Start(start)) = read_order(&mut orders)? else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let grace = start.grace;
    let (received, spared) = match become_warden().and_then(|()| begin(start, orders)) {
        Ok(begun) => begun,
        Err(error) => {
            let message = Message::SpawnFailed {
                os_error: error.raw_os_error(),
                message: error.to_string(),
            };
            return send(&mut agent, &message).map(|()| 0);
        }
    };
    // From here on nothing may return before the program has ended. The orders report an agent that
    // has ended.
    let _agent_may_be_gone = send(&mut agent, &Message::Started);

    let (status, survivors) = guard(&received, grace, spared);
    let message = Message::Ended {
        status: status.unwrap_or(Status::Signal(Signal::KILL.as_raw())),
        survivors: u32::try_from(survivors).unwrap_or(u32::MAX),
    };
    // The result counts, whether the agent reads it or not.
    let _agent_may_be_gone = send(&mut agent, &message);
    Ok(survivors)
}

fn become_warden() -> io::Result<()> {
    setsid()?;
    set_child_subreaper(Some(getpid()))?;
    // A program that stopped its warden does not profit from the death of the agent.
    set_parent_process_death_signal(Some(Signal::CONT))?;
    Ok(())
}

fn read_order(orders: &mut BufReader<UnixStream>) -> io::Result<Option<Order>> {
    let mut line = String::new();
    if orders.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    Ok(Some(serde_json::from_str(&line)?))
}

fn send(agent: &mut UnixStream, message: &Message) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    agent.write_all(&line)
}

/// Starts the program, after all that may fail and would leave it alone. The number is that of a process
/// that stands before the program and must not get the polite signal.
fn begin(start: Start, mut orders: BufReader<UnixStream>) -> io::Result<(Receiver<Input>, Option<i32>)> {
    let stdin = stdin(&start.stdin, &mut orders)?;
    // Two senders wait for one receiver; when it is full, they wait.
    let (inputs, received) = sync_channel(16);
    let (started, program) = sync_channel(1);
    let reaped = inputs.clone();
    thread::Builder::new().name("reap".to_owned()).spawn(move || {
        // An error means that there is nothing to reap.
        if let Ok(program) = program.recv() {
            reap(program, &reaped);
        }
    })?;
    thread::Builder::new()
        .name("orders".to_owned())
        .spawn(move || listen(orders, &inputs))?;
    let Spawned {
        program,
        spared,
        answer,
    } = more_killable(|| spawn(start, stdin))?;
    let _reaper_waits_for_it = started.send(program);
    if let Some(answer) = answer {
        answer.entered()?;
    }
    Ok((received, spared))
}

/// The program's standard input; `None`: there is none.
fn stdin(from: &StartStdin, orders: &mut BufReader<UnixStream>) -> io::Result<Option<File>> {
    Ok(match from {
        StartStdin::Null => None,
        StartStdin::File(path) => Some(File::open(path)?),
        StartStdin::Bytes(len) => {
            let mut file = File::from(memfd_create("stdin", MemfdFlags::CLOEXEC)?);
            io::copy(&mut orders.take(*len as u64), &mut file)?;
            file.rewind()?;
            Some(file)
        }
    })
}

/// Runs a function whose children the kernel kills before us when memory is short. A process may
/// undo its own increase again, so this needs no rights.
fn more_killable<T>(start: impl FnOnce() -> T) -> T {
    const OF_OURSELVES: &str = "/proc/self/oom_score_adj";
    let own = fs::read_to_string(OF_OURSELVES)
        .ok()
        .and_then(|own| own.trim().parse::<i32>().ok());
    // Without it the kernel picks any process; the program runs anyway.
    let set = |score: i32| fs::write(OF_OURSELVES, score.to_string()).is_ok();
    let raised = own.filter(|own| set((own + OOM_HANDICAP).min(1000)));
    let started = start();
    if let Some(own) = raised {
        set(own);
    }
    started
}

/// A program that was started.
struct Spawned {
    program: i32,
    spared: Option<i32>,
    /// What tells that it is in its box.
    answer: Option<Answer>,
}

/// Starts the program in its own process group.
fn spawn(start: Start, stdin: Option<File>) -> io::Result<Spawned> {
    let (mut command, held, answer) = match start.confinement {
        Some(confinement) => {
            let Launched { command, held, answer } = contain::launch(Launch {
                confinement: *confinement,
                program: start.program,
                args: start.args,
                env: start.env,
                cargo: start.cargo,
                stdin,
            })?;
            (command, held, Some(answer))
        }
        None => {
            let mut command = Command::new(&start.program);
            environment::set(&mut command, start.env);
            command
                .args(&start.args)
                .stdin(stdin.map_or_else(Stdio::null, Stdio::from));
            (command, Vec::new(), None)
        }
    };
    let child = command
        .current_dir(&start.cwd)
        .stdout(Stdio::inherit())
        .stderr(Stdio::inherit())
        .process_group(0)
        .spawn()?;
    drop(held);
    // `reap` reaps it, like every other descendant that becomes our child.
    let program = i32::try_from(child.id()).map_err(io::Error::other)?;
    let stands_before = answer.as_ref().is_some_and(Answer::is_from_within);
    Ok(Spawned {
        program,
        spared: stands_before.then_some(program),
        answer,
    })
}

/// Reaps children until there is none.
fn reap(program: i32, inputs: &SyncSender<Input>) {
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if Pid::from_raw(program) == Some(pid) => {
                if let Some(status) = ended(status)
                    && inputs.send(Input::Ended(status)).is_err()
                {
                    return;
                }
            }
            Ok(_) | Err(Errno::INTR) => {}
            // ECHILD: no more children can appear, because only descendants become our children.
            Err(_) => {
                let _main_ended = inputs.send(Input::Empty);
                return;
            }
        }
    }
}

fn ended(status: WaitStatus) -> Option<Status> {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Some(Status::Code(code)),
        (None, Some(signal)) => Some(Status::Signal(signal)),
        (None, None) => None,
    }
}

fn listen(mut orders: BufReader<UnixStream>, inputs: &SyncSender<Input>) {
    while let Ok(Some(order)) = read_order(&mut orders) {
        if inputs.send(Input::Order(order)).is_err() {
            return;
        }
    }
    let _main_ended = inputs.send(Input::AgentGone);
}

/// Waits for a reason to end, then ends everything. Returns how much is left.
fn guard(received: &Receiver<Input>, grace: Duration, spared: Option<i32>) -> (Option<Status>, usize) {
    let below = Trees::all();
    let mut status = None;
    let mut empty = false;
    let mut patience = grace;
    let mut killing = KILLING;
    // A failed signal shows later in the killing, which is repeated.
    while let Ok(input) = received.recv() {
        match input {
            Input::Order(Order::Freeze) => drop(below.stop_all()),
            Input::Order(Order::Thaw) => drop(below.signal_all(Signal::CONT)),
            Input::Order(Order::Stop | Order::Start(_)) => break,
            Input::AgentGone => {
                killing = KILLING_ALONE;
                break;
            }
            Input::Ended(how) => {
                status = Some(how);
                patience = grace.min(LEFTOVER_GRACE);
                break;
            }
            Input::Empty => {
                empty = true;
                break;
            }
        }
    }
    if !empty && below.count().is_ok_and(|count| count > 0) {
        // What builds a box would take it down at once.
        drop(below.signal_all_but(spared, Signal::TERM));
        // A frozen process handles SIGTERM only after SIGCONT.
        drop(below.signal_all(Signal::CONT));
    }
    empty = empty || wait_until_empty(received, patience, &mut status);
    let began = Instant::now();
    while !empty && began.elapsed() < killing {
        drop(below.kill_all());
        empty = wait_until_empty(received, KILL_ROUND, &mut status);
    }
    // Processes that cannot be seen are not known to have ended.
    (status, if empty { 0 } else { below.count().unwrap_or(1).max(1) })
}

/// True when no descendant is left before the time is up.
fn wait_until_empty(received: &Receiver<Input>, time: Duration, status: &mut Option<Status>) -> bool {
    let deadline = Instant::now() + time;
    loop {
        match received.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Input::Ended(how)) => *status = Some(how),
            Ok(Input::Empty) => return true,
            Ok(Input::Order(_) | Input::AgentGone) => {}
            Err(RecvTimeoutError::Timeout) => return false,
            // Cannot be: the reaper ends only after Empty.
            Err(RecvTimeoutError::Disconnected) => return Trees::all().count().is_ok_and(|count| count == 0),
        }
    }
}

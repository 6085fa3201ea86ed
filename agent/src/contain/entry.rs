//! The way into a box: how the warden starts this executable so that it seals itself and becomes the program
//! ([`launch`]), and what the executable then does ([`main`]). The orders come on standard input, a file in
//! memory that no other process has: who the box is for, and then what the program reads.
//!
//! ```text
//! <orders as one line of JSON>\n<what the program gets on its standard input>
//! ```

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kage_core::cause::chain;
use kage_core::contain::Tier;
use rustix::fs::{MemfdFlags, Mode, OFlags, memfd_create};
use rustix::pipe::{PipeFlags, pipe_with};
use serde::{Deserialize, Serialize};

use super::attacks::{self, Targets};
use super::policy::Confinement;
use super::{CONTAIN_ARGUMENT, NOT_BUILT, bubblewrap, cargo, scene, seal};
use crate::passing;

/// The exit code of a box that could not be made: as of a shell whose program cannot be executed.
const NOT_MADE: i32 = 126;
/// The exit code when there is no such program.
const NOT_FOUND: i32 = 127;

/// The warden's executable. Not its path: the link also works after the file was replaced by an upgrade.
const THIS: &str = "/proc/self/exe";

/// What becomes of a sealed process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Task {
    /// This program.
    Program {
        program: OsString,
        args: Vec<OsString>,
        /// Nothing of it before the box stands: a variable can make any program run another's code.
        env: Vec<(OsString, OsString)>,
        /// The home of cargo of a person, and the one to make instead. From within: the folder is the
        /// attempt's, and may be a link to anywhere.
        cargo: Option<(PathBuf, PathBuf)>,
        stdin: TaskStdin,
    },
    /// It tries to get out, and says how that went.
    Attack(Box<Targets>),
}

/// The program's standard input.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum TaskStdin {
    Null,
    /// What comes after the orders.
    Rest,
    /// A pipe, by its descriptor: it is written while the program runs.
    Pipe(i32),
}

#[derive(Debug, Serialize, Deserialize)]
struct Orders {
    confinement: Confinement,
    /// The descriptor on which to tell that the box stands.
    answer: i32,
    /// Descriptors that the program must not get.
    inherited: Vec<i32>,
    task: Task,
}

/// A program that is to be started in a box.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) confinement: Confinement,
    pub(crate) program: OsString,
    pub(crate) args: Vec<OsString>,
    /// Its whole environment.
    pub(crate) env: Vec<(OsString, OsString)>,
    /// The home of cargo of a person, and the one that the program gets instead.
    pub(crate) cargo: Option<(PathBuf, PathBuf)>,
    /// Standard input; `None`: there is none.
    pub(crate) stdin: Option<File>,
}

/// A command that starts a program in its box, without a working directory.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) command: Command,
    /// What the box inherits; to be dropped when it was started.
    pub(crate) held: Vec<OwnedFd>,
    pub(crate) answer: Answer,
}

/// The end of a pipe on which the box tells that the program is in it.
#[derive(Debug)]
pub(crate) struct Answer {
    from: File,
    /// Another process stands before the program.
    is_from_within: bool,
}

/// The box stands and the program is about to run. The pipe ends when it does; else four bytes follow, the
/// error's number.
const ENTERED: u8 = b'e';
/// The program's process failed on its way into the box.
const FAILED: u8 = b'f';
/// The box stands and there is no such program.
const NO_PROGRAM: u8 = b'n';

impl Answer {
    /// Whether another process than the program is the one that was started.
    pub(crate) const fn is_from_within(&self) -> bool {
        self.is_from_within
    }

    /// Waits until the program is in its box.
    ///
    /// # Errors
    /// When the program cannot be started, or the box could not be built. The reason of that is in its error
    /// output.
    pub(crate) fn entered(self) -> io::Result<()> {
        let mut told = Vec::new();
        self.from.take(LONGEST_ANSWER).read_to_end(&mut told)?;
        judge(&told)
    }
}

/// More than there is to tell, in bytes.
const LONGEST_ANSWER: u64 = 16;

/// What is said of a box that stands and cannot be sealed.
const NOT_SEALED: &str = "the way into its box failed; its error output says why";

/// What a box told until its end of the pipe was closed.
fn judge(told: &[u8]) -> io::Result<()> {
    match told {
        [ENTERED] => Ok(()),
        [ENTERED, a, b, c, d] => Err(io::Error::from_raw_os_error(i32::from_le_bytes([*a, *b, *c, *d]))),
        [NO_PROGRAM] => Err(rustix::io::Errno::NOENT.into()),
        [FAILED] => Err(io::Error::other(NOT_SEALED)),
        _ => Err(io::Error::other(NOT_BUILT)),
    }
}

/// Makes the command.
///
/// # Errors
/// When the orders cannot be written, or the box needs a program that is not here.
pub(crate) fn launch(launch: Launch) -> io::Result<Launched> {
    let (stdin, rest, pipe) = match launch.stdin {
        None => (TaskStdin::Null, None, None),
        Some(file) if file.metadata()?.file_type().is_fifo() => {
            let pipe = rustix::io::dup(&file)?;
            (TaskStdin::Pipe(pipe.as_raw_fd()), None, Some(pipe))
        }
        Some(file) => (TaskStdin::Rest, Some(file), None),
    };
    let task = Task::Program {
        program: launch.program,
        args: launch.args,
        env: launch.env,
        cargo: launch.cargo,
        stdin,
    };
    start(Path::new(THIS), launch.confinement, task, (rest, pipe))
}

/// A command that starts an attack on a box from within.
pub(super) fn attack(executable: &Path, confinement: Confinement, targets: Targets) -> io::Result<Launched> {
    start(executable, confinement, Task::Attack(Box::new(targets)), (None, None))
}

/// `rest` comes after the orders, and `pipe` is handed down.
fn start(
    this: &Path,
    confinement: Confinement,
    task: Task,
    (rest, pipe): (Option<File>, Option<OwnedFd>),
) -> io::Result<Launched> {
    let (from, answering) = pipe_with(PipeFlags::CLOEXEC)?;
    // Unlike the first one, this is inherited.
    let mut held = vec![rustix::io::dup(answering)?];
    held.extend(pipe);
    let is_from_within = confinement.tier >= Tier::T2;
    let mut command = match confinement.tier {
        Tier::T0 | Tier::T1 => Command::new(this),
        Tier::T2 | Tier::T3 => {
            let Some(path) = &confinement.bubblewrap else {
                return Err(io::Error::other("bubblewrap is not known"));
            };
            // It is handed down, because its path need not be there in the box.
            let this = rustix::fs::open(this, OFlags::RDONLY, Mode::empty())?;
            let mut command = Command::new(path);
            command
                .args(bubblewrap::arguments(&confinement, &scene::look(&confinement)))
                .arg(format!("/proc/self/fd/{}", this.as_raw_fd()));
            held.push(this);
            command
        }
    };
    let orders = Orders {
        confinement,
        answer: held[0].as_raw_fd(),
        inherited: held.iter().map(|held| held.as_raw_fd()).collect(),
        task,
    };
    let mut file = File::from(memfd_create("orders", MemfdFlags::CLOEXEC)?);
    serde_json::to_writer(&file, &orders)?;
    file.write_all(b"\n")?;
    if let Some(mut rest) = rest {
        io::copy(&mut rest, &mut file)?;
    }
    file.rewind()?;
    command.arg(CONTAIN_ARGUMENT).env_clear().stdin(Stdio::from(file));
    Ok(Launched {
        command,
        held,
        answer: Answer {
            from: from.into(),
            is_from_within,
        },
    })
}

/// Seals this process and becomes the program. Returns an exit code when that fails.
pub(super) fn main() -> i32 {
    match enter() {
        Ok(code) => code,
        Err(error) => {
            // The program's error output: whoever reads it learns why there is no program.
            drop(writeln!(io::stderr(), "kage: no box for the program: {error}"));
            NOT_MADE
        }
    }
}

fn enter() -> Result<i32, String> {
    let (orders, rest) = read_orders().map_err(|error| format!("the orders cannot be read: {error}"))?;
    // The same pipe by another descriptor, which the program does not get.
    let answer = OpenOptions::new()
        .write(true)
        .open(format!("/proc/self/fd/{}", orders.answer));
    let mut answer = answer.map_err(|error| format!("nobody can be told: {error}"))?;
    // While it is there to be opened: the seal may not let it be.
    let stdin = match &orders.task {
        Task::Program { stdin, .. } => open(stdin, rest).map_err(|error| format!("it has no input: {error}"))?,
        Task::Attack(_) => Stdio::null(),
    };
    for inherited in &orders.inherited {
        nix::unistd::close(*inherited).map_err(|error| format!("a descriptor cannot be closed: {error}"))?;
    }
    let entered = become_task(orders, stdin, &mut answer);
    if entered.is_err() {
        // Else it would be tried again: what stands before it did all that it had to.
        drop(answer.write_all(&[FAILED]));
    }
    entered
}

/// The standard input of the program. `rest` is what came after the orders.
fn open(stdin: &TaskStdin, rest: File) -> io::Result<Stdio> {
    Ok(match stdin {
        TaskStdin::Null => Stdio::null(),
        TaskStdin::Rest => Stdio::from(rest),
        TaskStdin::Pipe(number) => Stdio::from(File::open(format!("/proc/self/fd/{number}"))?),
    })
}

fn become_task(orders: Orders, input: Stdio, answer: &mut File) -> Result<i32, String> {
    // Its listeners are on their way before the program is: a seal may leave no way to send them.
    if let Some(door) = &orders.confinement.door {
        passing::enter(&door.socket, &door.ports).map_err(|error| chain(&error))?;
    }
    let scene = match orders.confinement.tier {
        // What is not mounted needs no look.
        Tier::T2 | Tier::T3 => super::policy::Scene::default(),
        Tier::T0 | Tier::T1 => scene::look(&orders.confinement),
    };
    seal::seal(&orders.confinement, &scene).map_err(|error| chain(&error))?;
    match orders.task {
        Task::Attack(targets) => {
            let said = serde_json::to_string(&attacks::run(&targets)).map_err(|error| error.to_string())?;
            writeln!(io::stdout(), "{said}").map_err(|error| error.to_string())?;
            Ok(0)
        }
        Task::Program {
            program,
            args,
            env,
            cargo,
            stdin: _,
        } => {
            if let Some((from, to)) = &cargo {
                cargo::furnish(from, to).map_err(|error| format!("cargo has no home: {error}"))?;
            }
            let path = env.iter().find(|(name, _)| name == "PATH");
            if !is_there(&program, path.map(|(_, path)| path.as_os_str())) {
                answer.write_all(&[NO_PROGRAM]).map_err(|error| error.to_string())?;
                return Ok(NOT_FOUND);
            }
            answer.write_all(&[ENTERED]).map_err(|error| error.to_string())?;
            let mut command = Command::new(&program);
            let error = command.args(args).env_clear().envs(env).stdin(input).exec();
            drop(writeln!(io::stderr(), "kage: {}: {error}", program.display()));
            let number = error
                .raw_os_error()
                .unwrap_or_else(|| rustix::io::Errno::INVAL.raw_os_error());
            answer
                .write_all(&number.to_le_bytes())
                .map_err(|error| error.to_string())?;
            Ok(NOT_MADE)
        }
    }
}

/// Whether a program is where its name says, or in PATH.
fn is_there(program: &OsStr, path: Option<&OsStr>) -> bool {
    if program.as_encoded_bytes().contains(&b'/') {
        return Path::new(program).exists();
    }
    std::env::split_paths(path.unwrap_or_default()).any(|folder| folder.join(program).is_file())
}

/// The orders, and the rest of standard input as a file of its own.
fn read_orders() -> io::Result<(Orders, File)> {
    let mut all = Vec::new();
    io::stdin().lock().read_to_end(&mut all)?;
    let end = all
        .iter()
        .position(|byte| *byte == b'\n')
        .ok_or(io::ErrorKind::InvalidData)?;
    let orders = serde_json::from_slice(&all[..end])?;
    let mut rest = File::from(memfd_create("stdin", MemfdFlags::CLOEXEC)?);
    rest.write_all(&all[end + 1..])?;
    rest.rewind()?;
    Ok((orders, rest))
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn an_answer_says_whether_the_program_runs() {
        assert!(judge(&[ENTERED]).is_ok());
        let number = |told: &[u8]| judge(told).unwrap_err().raw_os_error();
        let failed = Errno::AGAIN.raw_os_error().to_le_bytes();
        let told = [&[ENTERED][..], &failed].concat();
        assert_eq!(number(&told), Some(Errno::AGAIN.raw_os_error()));
        assert_eq!(number(&[NO_PROGRAM]), Some(Errno::NOENT.raw_os_error()));
        assert_eq!(judge(&[FAILED]).unwrap_err().to_string(), NOT_SEALED);
        for told in [&told[..3], b"x", &[]] {
            assert_eq!(judge(told).unwrap_err().to_string(), NOT_BUILT, "{told:?}");
        }
    }
}

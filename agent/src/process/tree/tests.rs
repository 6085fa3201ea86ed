use super::*;

#[test]
fn a_name_may_hold_anything() {
    let line = b"42 (a) Z 1 (b) t 7 8 9 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 123456 1 1\n";
    let stat = parse(line).unwrap();
    assert_eq!((stat.pid, stat.parent, stat.group, stat.session), (42, 7, 8, 9));
    assert_eq!((stat.started, stat.state), (123_456, State::Traced));
    let leader_ended = b"42 (a) Z 7 8 9 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 2 0 123456 1 1\n";
    assert_eq!(parse(leader_ended).unwrap().state, State::Alive);
    let ended = b"42 (a) Z 7 8 9 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 123456 1 1\n";
    assert_eq!(parse(ended).unwrap().state, State::Ended);
    for torn in [&b""[..], b"42", b"42 (a) R", b"42 (a) R 1 2 3"] {
        assert!(parse(torn).is_none());
    }
}

fn sleeping() -> (std::process::Child, Process) {
    let child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let stat = stat(i32::try_from(child.id()).unwrap()).unwrap().unwrap();
    (child, stat.process())
}

#[test]
fn a_system_without_descriptors_of_processes_sends_signals_by_number() {
    use std::os::unix::process::ExitStatusExt as _;

    for error in [Errno::NOSYS, Errno::PERM, Errno::MFILE, Errno::INVAL] {
        let (mut child, process) = sleeping();
        let other = Process {
            started: process.started + 1,
            ..process
        };
        assert_eq!(signal_by(other, Signal::KILL, |_| Err(error)), Signalled::Done);
        assert!(is_there(&process), "another process had its number");
        assert_eq!(
            signal_by(process, Signal::TERM, |_| Err(error)),
            Signalled::Done,
            "{error}"
        );
        assert_eq!(child.wait().unwrap().signal(), Some(15), "{error}");
    }
}

#[test]
fn another_users_process_takes_no_signal_and_does_not_count_as_moving() {
    let (mut child, process) = sleeping();
    // What the system says of another user's, whichever way it is signalled.
    let first = Process {
        pid: 1,
        started: stat(1).unwrap().unwrap().started,
    };
    if !rustix::process::geteuid().is_root() {
        assert_eq!(signal(first, Signal::CONT), Signalled::Refused);
    }
    assert_eq!(signal(process, Signal::KILL), Signalled::Done);
    child.wait().unwrap();
    assert_eq!(signal(process, Signal::KILL), Signalled::Done, "it is gone");
    assert_eq!(
        (met(Signalled::Refused), met(Signalled::Done)),
        (Met::Still, Met::Moving)
    );
}

#[test]
fn a_chase_ends_whatever_the_newest_number_is_said_to_be() {
    use std::cell::Cell;

    /// The newest number, by how often it was asked for.
    type Says = fn(i32) -> Option<i32>;

    let all = |_: &Stat| false;
    let says: [(&str, Says, i32); 5] = [
        ("nothing", |_| None, 1),
        ("the same", |_| Some(5), 20),
        ("a machine's that starts many", |asked| Some(5 + asked * 1000), 200),
        ("numbers began anew", |asked| Some(5 - asked), 2),
        ("the largest", |_| Some(i32::MAX), 2),
    ];
    for (what, say, at_most) in says {
        let mut hunt = Hunt::new(&all, |_, _| Met::Still);
        hunt.newest = Some(5);
        let asked = Cell::new(0);
        hunt.chase_by(|| {
            asked.set(asked.get() + 1);
            say(asked.get())
        })
        .unwrap();
        assert!(asked.get() <= at_most, "{what}: {}", asked.get());
    }
}

#[test]
fn this_process_is_told_and_one_that_is_not_there_is_none() {
    let own = this_process().unwrap();
    assert_eq!(own.pid, getpid().as_raw_nonzero().get());
    assert!(own.started <= this_thread_started().unwrap());
    assert!(stat(i32::MAX).unwrap().is_none());
    assert_eq!(tracer(i32::MAX), 0);
}

#[test]
fn what_this_process_started_is_below_it_and_nothing_else_is() {
    let this = getpid().as_raw_nonzero().get();
    let (mut child, process) = sleeping();
    assert!(is_below_this_process(process.pid).unwrap());
    let mut shell = std::process::Command::new("sh");
    let mut shell = shell
        .args(["-c", "sleep 1000 & echo $!; wait"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut number = String::new();
    let said = shell.stdout.take().unwrap();
    io::BufRead::read_line(&mut io::BufReader::new(said), &mut number).unwrap();
    let grandchild = number.trim().parse().unwrap();
    assert!(is_below_this_process(grandchild).unwrap());
    assert!(!is_below_this_process(1).unwrap() && !is_below_this_process(this).unwrap());
    assert!(!is_below_this_process(stat(this).unwrap().unwrap().parent).unwrap());
    for process in [child.id(), shell.id(), u32::try_from(grandchild).unwrap()] {
        let process = Pid::from_raw(i32::try_from(process).unwrap()).unwrap();
        rustix::process::kill_process(process, Signal::KILL).unwrap();
    }
    child.wait().unwrap();
    shell.wait().unwrap();
    // Nobody knows of whom it was.
    assert!(is_below_this_process(process.pid).unwrap());
}

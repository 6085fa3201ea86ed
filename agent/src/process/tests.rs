//! Programs in a process group. `cli/tests/warden` tests what needs a warden, with an executable
//! that can be one.

use super::*;

const LIMITS: Limits = Limits {
    timeout: Some(Duration::from_secs(60)),
    grace: Duration::from_millis(200),
};

fn sh(script: &str) -> Command {
    Command {
        program: "sh".into(),
        args: vec!["-c".into(), script.into()],
        env: Environment::from_iter([("PATH", "/usr/local/bin:/usr/bin:/bin")]),
        cwd: "/".into(),
        stdin: Stdin::Null,
    }
}

/// Runs to the end and collects the output of both pipes.
async fn collect(command: Command, limits: Limits, control: Control) -> (Result<Ended, RunError>, String, String) {
    let (sender, mut chunks) = mpsc::channel(1);
    let runner = Runner::default();
    let run = runner.run(command, limits, control, sender);
    let gather = async {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        while let Some(chunk) = chunks.recv().await {
            match chunk.pipe {
                Pipe::Stdout => out.extend_from_slice(&chunk.bytes),
                Pipe::Stderr => err.extend_from_slice(&chunk.bytes),
            }
        }
        (out, err)
    };
    let (ended, (out, err)) = tokio::join!(run, gather);
    (ended, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

fn free() -> Control {
    Control::stop_only(CancellationToken::new())
}

#[tokio::test]
async fn reports_output_and_status_exactly() {
    let cases = [
        ("echo out; echo err >&2", Status::Code(0), "out\n", "err\n"),
        ("exit 7", Status::Code(7), "", ""),
        ("kill -KILL $$", Status::Signal(9), "", ""),
        (
            "env | grep -v -e '^PWD=' -e '^_=' -e '^SHLVL=' -e '^OLDPWD='",
            Status::Code(0),
            "PATH=/usr/local/bin:/usr/bin:/bin\n",
            "",
        ),
    ];
    for (script, status, stdout, stderr) in cases {
        let (ended, out, err) = collect(sh(script), LIMITS, free()).await;
        let ended = ended.unwrap();
        assert_eq!((ended.cause, ended.status), (Cause::Itself, status), "{script}");
        assert_eq!((out.as_str(), err.as_str()), (stdout, stderr), "{script}");
    }
}

#[tokio::test]
async fn feeds_standard_input() {
    let long = Bytes::from(vec![b'x'; 300_000]);
    let mut command = sh("wc -c");
    command.stdin = Stdin::Bytes(long);
    let (_, out, _) = collect(command, LIMITS, free()).await;
    assert_eq!(out.trim(), "300000");

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "from a file").unwrap();
    let mut command = sh("cat");
    command.stdin = Stdin::File(file.path().to_owned());
    let (_, out, _) = collect(command, LIMITS, free()).await;
    assert_eq!(out, "from a file");
}

#[tokio::test]
async fn a_program_that_is_not_there_is_an_error() {
    let mut command = sh("");
    command.program = "/nonexistent/program".into();
    let (ended, _, _) = collect(command, LIMITS, free()).await;
    let Err(RunError::Spawn { source, .. }) = ended else {
        panic!("{ended:?}");
    };
    assert_eq!(source.kind(), std::io::ErrorKind::NotFound);
}

#[tokio::test]
async fn its_clock_ends_what_takes_too_long() {
    let limits = Limits {
        timeout: Some(Duration::from_millis(100)),
        ..LIMITS
    };
    for (script, status) in [
        ("while :; do echo x; sleep 0.01; done", Status::Signal(15)),
        ("sleep 60", Status::Signal(15)),
        // The polite signal is not enough here.
        ("trap '' TERM; while :; do sleep 0.05; done", Status::Signal(9)),
    ] {
        let (ended, _, _) = collect(sh(script), limits, free()).await;
        let ended = ended.unwrap();
        assert_eq!((ended.cause, ended.status), (Cause::TimedOut, status), "{script}");
    }
}

#[tokio::test]
async fn a_reader_that_does_not_take_output_blocks_the_program_and_can_still_stop_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = sh("yes > /dev/stdout; touch done");
    command.cwd = folder.path().to_owned();
    let stop = CancellationToken::new();
    let (sender, mut chunks) = mpsc::channel(1);
    let runner = Runner::default();
    let run = runner.run(command, LIMITS, Control::stop_only(stop.clone()), sender);
    let take_one_then_stop = async {
        let first = chunks.recv().await.unwrap();
        stop.cancel();
        (first, chunks)
    };
    let (ended, (first, _chunks)) = tokio::join!(run, take_one_then_stop);
    assert_eq!(ended.unwrap().cause, Cause::Stopped);
    assert!(first.bytes.starts_with(b"y\ny\n"));
    assert!(!folder.path().join("done").exists());
}

#[tokio::test]
async fn a_program_whose_output_nobody_wants_is_ended() {
    let (sender, chunks) = mpsc::channel(1);
    drop(chunks);
    let ended = Runner::default().run(sh("yes"), LIMITS, free(), sender).await.unwrap();
    assert_eq!(ended.cause, Cause::Unread);
}

#[tokio::test]
async fn the_clock_of_a_program_that_nobody_can_thaw_goes_on() {
    let (freeze, frozen) = watch::channel(true);
    drop(freeze);
    let control = Control {
        stop: CancellationToken::new(),
        frozen,
    };
    let limits = Limits {
        timeout: Some(Duration::from_millis(100)),
        ..LIMITS
    };
    let (ended, printed, _) = collect(sh("sleep 60; echo awake"), limits, control).await;
    assert_eq!((ended.unwrap().cause, printed.as_str()), (Cause::TimedOut, ""));
}

#[tokio::test]
async fn freezing_stops_the_program_and_its_clock() {
    let (freeze, frozen) = watch::channel(true);
    let control = Control {
        stop: CancellationToken::new(),
        frozen,
    };
    let limits = Limits {
        timeout: Some(Duration::from_secs(2)),
        ..LIMITS
    };
    let (sender, mut chunks) = mpsc::channel(1);
    let runner = Runner::default();
    let run = runner.run(sh("sleep 0.05; echo awake"), limits, control, sender);
    let thaw = async {
        // Longer than the limit: only the freeze keeps the program alive and silent.
        let early = tokio::time::timeout(Duration::from_millis(2200), chunks.recv()).await;
        freeze.send_replace(false);
        (early, chunks.recv().await)
    };
    let (ended, (early, late)) = tokio::join!(run, thaw);
    assert!(early.is_err(), "{early:?}");
    assert_eq!(late.unwrap().bytes, "awake\n");
    assert_eq!(ended.unwrap().status, Status::Code(0));
}

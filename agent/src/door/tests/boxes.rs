//! Boxes that come and go: processes with a network of their own, whose listeners the door serves.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::*;
use crate::passing;

const BWRAP: [&str; 6] = ["/usr/bin/bwrap", "--unshare-net", "--dev-bind", "/", "/", "--"];
/// Says to this test's program which door it enters, and what it asks for.
const DOOR: &str = "KAGE_TEST_DOOR";

/// The box: enters, asks for a tunnel, says what came back, and stays until its input ends.
#[test]
fn in_a_box() {
    let Ok(asked) = std::env::var(DOOR) else {
        return;
    };
    let (door, to) = asked.split_once(' ').unwrap();
    let port: u16 = to.rsplit_once(':').unwrap().1.parse().unwrap();
    passing::enter(Path::new(door), &passing::ports([port])).unwrap();
    let at_door = (Ipv4Addr::LOCALHOST, kage_core::network::DOOR_PORT);
    let mut stream = std::net::TcpStream::connect(at_door).unwrap();
    write!(stream, "CONNECT {to} HTTP/1.1\r\n\r\nby name").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    // The same port of the machine, at the same address.
    let mut stream = std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.write_all(b"by port").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut back = String::new();
    stream.read_to_string(&mut back).unwrap();
    println!("said: {} {} {back}", &said[..12], said.rsplit('\n').next().unwrap());
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

/// Without bubblewrap there is nothing that these tests could show.
fn needs_bubblewrap() {
    let tried = Command::new(BWRAP[0]).args(&BWRAP[1..]).arg("true").status();
    let works = tried.as_ref().is_ok_and(std::process::ExitStatus::success);
    assert!(
        works,
        "bubblewrap makes no network here, install and allow it: {tried:?}"
    );
}

fn start(door: &Path, to: &str) -> Child {
    let mut command = Command::new(BWRAP[0]);
    command.args(&BWRAP[1..]).arg(std::env::current_exe().unwrap());
    command.args(["--exact", "door::tests::boxes::in_a_box", "--nocapture"]);
    command.env(DOOR, format!("{} {to}", door.display()));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

/// The line that a box says.
fn said(child: &mut Child) -> String {
    let lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.as_mut().unwrap()));
    let mut lines = lines.map(Result::unwrap);
    // What tests print of themselves may stand before it on the line.
    lines
        .find_map(|line| Some(line.split_once("said: ")?.1.to_owned()))
        .unwrap()
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn boxes_with_networks_of_their_own_reach_what_is_listed_while_they_live() {
    needs_bubblewrap();
    let (port, had) = echo().await;
    let folder = tempfile::tempdir().unwrap();
    // Longer than the path of a socket may be.
    let folder = folder.path().join("a".repeat(120));
    std::fs::create_dir(&folder).unwrap();
    let socket = folder.join("door");
    let entrances = Entrances {
        listeners: Vec::new(),
        boxes: Some(passing::reception(&socket).unwrap()),
    };
    let (end, rules) = (CancellationToken::new(), rules(&[&format!("localhost:{port}")]));
    let serving = tokio::spawn(serve(entrances, rules, |_| std::future::ready(()), end.clone()));
    let to = format!("localhost:{port}");

    // Both at the same port, each in its own network.
    let (one, other) = (start(&socket, &to), start(&socket, &to));
    let talk = move |mut child: Child| (said(&mut child), child);
    let one = soon(tokio::task::spawn_blocking(move || talk(one))).await.unwrap();
    let other = soon(tokio::task::spawn_blocking(move || talk(other))).await.unwrap();
    for (said, _) in [&one, &other] {
        assert_eq!(said, "HTTP/1.1 200 by name by port");
    }
    assert_eq!(had.load(Ordering::SeqCst), 4);
    let with_boxes = open_files();
    for (_, mut child) in [one, other] {
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
    }
    // Their listeners go with them: four, and what watched their processes.
    let closed = async {
        while open_files() + 6 > with_boxes {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(closed).await;
    end.cancel();
    let traffic = soon(serving).await.unwrap().unwrap();
    assert_eq!((traffic.connections, traffic.refused), (4, 0));
}

#[tokio::test]
async fn what_is_no_box_is_sent_away_and_the_next_one_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("door");
    let entrances = Entrances {
        listeners: Vec::new(),
        boxes: Some(passing::reception(&socket).unwrap()),
    };
    let end = CancellationToken::new();
    let serving = tokio::spawn(serve(entrances, rules(&[]), |_| std::future::ready(()), end.clone()));
    let mut stranger = tokio::net::UnixStream::connect(&socket).await.unwrap();
    stranger.write_all(b"hello").await.unwrap();
    let mut answer = Vec::new();
    drop(soon(stranger.read_to_end(&mut answer)).await);
    assert!(answer.is_empty(), "{answer:?}");
    let silent = tokio::net::UnixStream::connect(&socket).await.unwrap();
    end.cancel();
    assert_eq!(soon(serving).await.unwrap().unwrap(), Traffic::default());
    drop(silent);
}

//! Programs in boxes with a network of their own: what they reach through the door, and that there is no
//! other way.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use kage_agent::contain::{DoorWay, Network, Room};
use kage_agent::door::{DoorRules, Entrances, Traffic, Upstream, serve};
use kage_agent::passing;
use kage_core::network::AllowRule;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::{AskedTier, CancellationToken, Machine, Tier, free, run};

/// A server that answers each request with its first line, until its future is dropped.
async fn answer(listener: &TcpListener) -> ! {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = vec![0; 4096];
        let length = stream.read(&mut head).await.unwrap();
        let line = String::from_utf8_lossy(&head[..length]);
        let line = line.lines().next().unwrap_or_default();
        let answer = format!(
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{line}",
            line.len()
        );
        // A program that only looks whether something listens is gone.
        drop(stream.write_all(answer.as_bytes()).await);
    }
}

async fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// Runs a script in a box behind a door that lets this through; names that end with `.test` are this machine.
async fn through(machine: &Machine, room: &Room, allow: &[String], script: &str) -> (String, Traffic, Vec<String>) {
    let list: kage_core::network::AllowList = allow.iter().map(|rule| rule.parse::<AllowRule>().unwrap()).collect();
    let socket = machine.state.join("door");
    let way = DoorWay {
        socket: socket.clone(),
        ports: passing::ports(list.forwards()),
    };
    let entrances = Entrances {
        listeners: Vec::new(),
        boxes: Some(passing::reception(&socket).unwrap()),
    };
    let mut rules = DoorRules::new(list, Upstream::default());
    rules.resolve = Arc::new(|name| {
        Box::pin(async move {
            match name.strip_suffix(".test") {
                Some(_) => Ok(vec![Ipv4Addr::LOCALHOST.into()]),
                None => Err(std::io::Error::other("nobody has that name")),
            }
        })
    });
    let (end, told) = (CancellationToken::new(), Mutex::new(Vec::new()));
    let tell = |text| {
        told.lock().unwrap().push(text);
        std::future::ready(())
    };
    let working = async {
        let (ended, said) = run(Some(&room.behind(way)), machine.sh(script), free()).await;
        end.cancel();
        assert!(ended.unwrap().status.success(), "{said}");
        said
    };
    let (said, traffic) = tokio::join!(working, serve(entrances, rules, tell, end.clone()));
    std::fs::remove_file(socket).unwrap();
    (said, traffic.unwrap(), told.into_inner().unwrap())
}

/// Prints what each of these does, in Python.
fn tries(all: &[(&str, String)]) -> String {
    let mut script = "python3 - <<'END'\nimport os, socket, urllib.request\n\
                      def get(url): return urllib.request.urlopen(url, timeout=20).read().decode()\n\
                      def connect(host, port): socket.create_connection((host, port), 5).close(); return 'connected'\n"
        .to_owned();
    for (name, code) in all {
        script.push_str(&format!(
            "try: print('{name}:', {code})\nexcept Exception as error: print('{name}:', 'failed', error)\n"
        ));
    }
    script + "END\n"
}

#[tokio::test]
async fn a_program_reaches_what_is_listed_by_the_door_and_nothing_beside_it() {
    let machine = Machine::new();
    let room = machine.room(Tier::T2, AskedTier::T2);
    let ((origin, port), (other, unlisted)) = (listener().await, listener().await);
    let allow = [
        format!("origin.test:{port}"),
        format!("localhost:{port}"),
        "127.0.0.1".to_owned(),
    ];
    let all = [
        ("listed", format!("get('http://origin.test:{port}/a')")),
        ("refused", format!("get('http://other.test:{port}/b')")),
        ("port", format!("get('http://127.0.0.1:{port}/c')")),
        ("unlisted", format!("connect('127.0.0.1', {unlisted})")),
        ("outside", "connect('192.0.2.1', 80)".to_owned()),
        (
            "proxy",
            "os.environ['HTTPS_PROXY'] + ' ' + os.environ['no_proxy']".to_owned(),
        ),
        ("name", "socket.getaddrinfo('origin.test', 80)".to_owned()),
    ];
    // The same outside, where what the box keeps from is there.
    let outside = tries(&all[3..4]);
    let work = async {
        let (_, there) = run(None, machine.sh(&outside), free()).await;
        assert_eq!(there, "unlisted: connected\n");
        through(&machine, &room, &allow, &tries(&all)).await
    };
    let (said, traffic, told) = tokio::select! {
        said = work => said,
        _ = answer(&origin) => unreachable!(),
        _ = answer(&other) => unreachable!(),
    };
    let line = |name: &str| {
        let found = said
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        found.unwrap_or_else(|| panic!("{name}: {said}"))
    };
    assert_eq!(line("listed"), "GET /a HTTP/1.1");
    assert!(
        line("refused").starts_with("failed HTTP Error 403: kage: other.test is not on the list"),
        "{said}"
    );
    assert_eq!(line("port"), "GET /c HTTP/1.1");
    for none in ["unlisted", "outside", "name"] {
        assert!(line(none).starts_with("failed "), "{said}");
    }
    assert_eq!(line("proxy"), "http://127.0.0.1:19128 localhost,127.0.0.1,::1");
    assert_eq!((traffic.connections, traffic.refused), (3, 1));
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("[network] allow = [\"other.test:"), "{told:?}");
}

#[tokio::test]
async fn a_server_in_the_same_box_is_reached_without_the_door() {
    let machine = Machine::new();
    let room = machine.room(Tier::T2, AskedTier::T2);
    let (origin, port) = listener().await;
    let allow = [format!("origin.test:{port}"), "127.0.0.1".to_owned()];
    // Within one box, a server of its own is reached without the door.
    let script = format!(
        "python3 -m http.server --bind 127.0.0.1 {port} >/dev/null 2>&1 & \
         until python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", {port}))' 2>/dev/null; do sleep 0.05; done; \
         {}",
        tries(&[
            ("own", format!("len(get('http://127.0.0.1:{port}/')) > 0")),
            ("listed", format!("get('http://origin.test:{port}/')")),
        ])
    );
    let work = async { through(&machine, &room, &allow, &script).await };
    let (said, traffic, _) = tokio::select! {
        said = work => said,
        _ = answer(&origin) => unreachable!(),
    };
    assert!(
        said.contains("own: True\n") && said.contains("listed: GET / HTTP/1.1\n"),
        "{said}"
    );
    assert_eq!(traffic.connections, 1);
}

#[tokio::test]
async fn without_a_network_and_with_a_door_that_is_gone_nothing_is_reached() {
    let machine = Machine::new();
    let room = machine.room(Tier::T2, AskedTier::T2);
    let (listener, port) = listener().await;
    let script = tries(&[("host", format!("connect('127.0.0.1', {port})"))]);
    let (_, said) = run(Some(&room.on(Network::None)), machine.sh(&script), free()).await;
    assert!(said.starts_with("host: failed "), "{said}");
    // A program does not run without the door that it was promised.
    let socket = machine.state.join("door");
    drop(passing::reception(&socket).unwrap());
    let way = DoorWay {
        socket,
        ports: passing::ports([]),
    };
    let (ended, said) = run(Some(&room.behind(way)), machine.sh("echo ran"), free()).await;
    assert!(ended.is_err() && !said.contains("ran\n"), "{said}");
    drop(listener);
}

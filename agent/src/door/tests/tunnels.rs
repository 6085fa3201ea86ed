//! Tunnels: where they lead, what is refused and told, and ports that are forwarded.

use std::collections::VecDeque;

use super::*;

async fn echoes(mut stream: TcpStream, text: &str) -> bool {
    stream.write_all(text.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut back = String::new();
    soon(stream.read_to_string(&mut back)).await.unwrap();
    back == text
}

#[tokio::test]
async fn a_tunnel_leads_to_what_is_listed_and_its_bytes_are_counted() {
    let (port, had) = echo().await;
    let door = open(rules(&[&format!("*.test:{port}"), "127.0.0.1"]));
    for name in ["echo.test", "ECHO.test.", "deep.echo.test"] {
        let tunnel = door.tunnel(&format!("{name}:{port}")).await.unwrap();
        assert!(echoes(tunnel, "hello").await, "{name}");
    }
    assert_eq!(had.load(Ordering::SeqCst), 3);
    let (traffic, told) = door.close().await;
    let expected = Traffic {
        connections: 3,
        refused: 0,
        sent: 15,
        received: 15,
    };
    assert_eq!(traffic, expected);
    assert!(told.is_empty(), "{told:?}");
}

#[tokio::test]
async fn a_refusal_says_the_host_and_the_setting_and_is_told_once() {
    let (port, had) = echo().await;
    let door = open(rules(&["other.test", &format!("echo.test:{port}")]));
    let refused = door.tunnel("registry.example.com:443").await.unwrap_err();
    let reason =
        "kage: registry.example.com is not on the list of this agent: [network] allow = [\"registry.example.com\"]";
    assert!(refused.starts_with(&format!("HTTP/1.1 403 {reason}\r\n")), "{refused}");
    assert!(refused.ends_with(&format!("\r\n\r\n{reason}\n")), "{refused}");
    for again in [
        "registry.example.com:443",
        "REGISTRY.example.com:80",
        "registry.example.com.:8443",
    ] {
        assert!(door.tunnel(again).await.unwrap_err().contains(" 403 "));
    }
    // On the list by its name, but not where it leads.
    let inside = door.tunnel(&format!("echo.test:{port}")).await.unwrap_err();
    assert!(
        inside.contains("echo.test leads to 127.0.0.1, an address of the machine itself"),
        "{inside}"
    );
    for (asked, status) in [
        (format!("127.0.0.1:{port}"), 403),
        (format!("localhost:{port}"), 403),
        (format!("[::ffff:127.0.0.1]:{port}"), 403),
        (format!("2130706433:{port}"), 403),
        ("169.254.169.254:80".to_owned(), 403),
        (format!("echo.test@other.test:{port}"), 400),
        (format!("echo%2etest:{port}"), 400),
        ("echo.test:0".to_owned(), 400),
    ] {
        let refused = door.tunnel(&asked).await.unwrap_err();
        assert!(
            refused.starts_with(&format!("HTTP/1.1 {status} ")),
            "{asked}: {refused}"
        );
    }
    assert_eq!(had.load(Ordering::SeqCst), 0, "nobody came through");
    let (traffic, told) = door.close().await;
    assert_eq!((traffic.refused, traffic.sent, traffic.received), (10, 0, 0));
    let of_registry = told
        .iter()
        .filter(|text| text.contains("registry.example.com is not"))
        .count();
    assert_eq!(of_registry, 1, "{told:?}");
    assert_eq!(told.len(), 5, "{told:?}");
}

#[tokio::test]
async fn so_many_hosts_are_told_of_and_the_others_are_refused_in_silence() {
    let door = open(rules(&[]));
    for number in 0..2 * refusals::MOST {
        assert!(door.tunnel(&format!("host{number}.test:443")).await.is_err());
    }
    let (traffic, told) = door.close().await;
    assert_eq!(traffic.refused, 2 * refusals::MOST as u64);
    assert_eq!(told.len(), refusals::MOST);
    assert!(told.last().unwrap().ends_with("refusals of further hosts are not told"));
}

/// A name that leads elsewhere when it is asked for once more.
#[tokio::test]
async fn a_name_is_resolved_once_and_connected_to_where_it_led_then() {
    let (port, had) = echo().await;
    let answers = Arc::new(Mutex::new(VecDeque::from([
        [127, 0, 0, 1],
        [169, 254, 169, 254],
        [127, 0, 0, 1],
    ])));
    let mut rules = rules(&[&format!("rebind.test:{port}"), &format!("127.0.0.1:{port}")]);
    let asked = Arc::clone(&answers);
    rules.resolve = Arc::new(move |_| {
        let next = asked.lock().unwrap().pop_front().unwrap();
        Box::pin(async move { Ok(vec![IpAddr::from(next)]) })
    });
    let door = open(rules);
    let to = format!("rebind.test:{port}");
    let tunnel = door.tunnel(&to).await.unwrap();
    assert_eq!(answers.lock().unwrap().len(), 2, "resolved once");
    assert!(echoes(tunnel, "hello").await);
    let refused = door.tunnel(&to).await.unwrap_err();
    assert!(
        refused.contains("rebind.test leads to 169.254.169.254, a link-local address"),
        "{refused}"
    );
    assert!(door.tunnel(&to).await.is_ok());
    assert_eq!(had.load(Ordering::SeqCst), 2);
    door.close().await;
}

#[tokio::test]
async fn what_cannot_be_reached_is_no_refusal() {
    let gone = StdTcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = gone.local_addr().unwrap().port();
    drop(gone);
    let mut rules = rules(&["gone.example", &format!("localhost:{port}"), "slow.example"]);
    let (resolve, limits) = (Arc::clone(&rules.resolve), DoorLimits::default());
    rules.limits = DoorLimits {
        connect: Duration::from_millis(50),
        ..limits
    };
    rules.resolve = Arc::new(move |name| match name.as_str() {
        "slow.example" => Box::pin(std::future::pending()),
        _ => resolve(name),
    });
    let door = open(rules);
    for (asked, status, said) in [
        (
            "gone.example:443".to_owned(),
            502,
            "the name gone.example cannot be resolved: nobody has that name",
        ),
        (format!("localhost:{port}"), 502, "cannot connect to localhost"),
        (
            "slow.example:443".to_owned(),
            504,
            "the name slow.example cannot be resolved",
        ),
    ] {
        let answer = door.tunnel(&asked).await.unwrap_err();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} kage: ")), "{answer}");
        assert!(answer.contains(said), "{answer}");
    }
    let (traffic, told) = door.close().await;
    assert_eq!((traffic.refused, told.len()), (0, 0));
}

#[tokio::test]
async fn ports_of_the_machine_are_forwarded_when_they_are_listed() {
    let (port, had) = echo().await;
    let listener = || {
        let listener = StdTcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        (listener.local_addr().unwrap(), DoorListener::Tcp(listener))
    };
    let ((here, listed), (elsewhere, unlisted)) = (listener(), listener());
    let forwards = vec![(port, listed), (port.wrapping_add(1).max(1), unlisted)];
    let door = open_with(rules(&[&format!("localhost:{port}")]), forwards);
    assert!(echoes(TcpStream::connect(here).await.unwrap(), "to the database").await);
    assert!(echoes(door.tunnel(&format!("localhost:{port}")).await.unwrap(), "by name").await);
    let refused = async {
        while TcpStream::connect(elsewhere).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    soon(refused).await;
    assert_eq!(had.load(Ordering::SeqCst), 2);
    door.close().await;
}

#[tokio::test]
async fn a_door_can_be_a_unix_socket() {
    let (port, _) = echo().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("door");
    let requests = DoorListener::Unix(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let listeners = DoorListeners {
        requests,
        forwards: Vec::new(),
    };
    let end = CancellationToken::new();
    let rules = rules(&[&format!("localhost:{port}")]);
    let entrances = Entrances {
        listeners: vec![listeners],
        boxes: None,
    };
    let serving = tokio::spawn(serve(entrances, rules, |_| std::future::ready(()), end.clone()));
    let mut stream = tokio::net::UnixStream::connect(&path).await.unwrap();
    let request = format!("CONNECT localhost:{port} HTTP/1.1\r\n\r\nhello");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nhello"),
        "{answer}"
    );
    end.cancel();
    assert_eq!(soon(serving).await.unwrap().unwrap().connections, 1);
}

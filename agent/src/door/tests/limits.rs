//! Programs that are slow, silent, many, or never finished.

use super::*;

fn limited(port: u16, limits: DoorLimits) -> DoorRules {
    let mut rules = rules(&[&format!("localhost:{port}")]);
    rules.limits = limits;
    rules
}

#[tokio::test]
async fn a_program_that_sends_no_head_loses_its_connection() {
    let limits = DoorLimits {
        head: Duration::from_millis(50),
        ..DoorLimits::default()
    };
    let door = open(limited(1111, limits));
    for sent in ["", "CONNECT localhost:1111 HT"] {
        let mut stream = door.connect().await;
        stream.write_all(sent.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        soon(stream.read_to_end(&mut answer)).await.unwrap();
        assert!(!answer.starts_with(b"HTTP/1.1 200"));
    }
    door.close().await;
}

#[tokio::test]
async fn a_tunnel_that_carries_nothing_ends_and_one_that_does_stays() {
    let (port, _) = echo().await;
    let limits = DoorLimits {
        idle: Duration::from_secs(2),
        ..DoorLimits::default()
    };
    let door = open(limited(port, limits));
    let to = format!("localhost:{port}");
    let (mut silent, mut busy) = (door.tunnel(&to).await.unwrap(), door.tunnel(&to).await.unwrap());
    let mut nothing = Vec::new();
    let ends = async {
        soon(silent.read_to_end(&mut nothing)).await.unwrap();
    };
    let stays = async {
        loop {
            busy.write_all(b"x").await.unwrap();
            assert_eq!(soon(busy.read_u8()).await.unwrap(), b'x');
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = ends => {}
        () = stays => {}
    }
    busy.write_all(b"y").await.unwrap();
    // One may be on its way still.
    let comes = async { while busy.read_u8().await.unwrap() != b'y' {} };
    soon(comes).await;
    door.close().await;
}

/// A program may end its side and wait for what the other one has to say.
#[tokio::test]
async fn a_side_that_ended_still_gets_what_the_other_sends() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let door = open(limited(port, DoorLimits::default()));
    let server = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut asked = String::new();
        stream.read_to_string(&mut asked).await.unwrap();
        let answer = asked.repeat(100_000);
        stream.write_all(answer.as_bytes()).await.unwrap();
    };
    let program = async {
        let mut stream = door.tunnel(&format!("localhost:{port}")).await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        answer.len()
    };
    let ((), length) = soon(async { tokio::join!(server, program) }).await;
    assert_eq!(length, 500_000);
    door.close().await;
}

#[tokio::test]
async fn much_passes_as_it_was_sent() {
    const BYTES: usize = 32 << 20;
    let (port, _) = echo().await;
    let door = open(limited(port, DoorLimits::default()));
    let stream = door.tunnel(&format!("localhost:{port}")).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let block: Vec<u8> = (0..=250_u8).cycle().take(251 * 64).collect();
    let sending = async {
        let mut left = BYTES;
        while left > 0 {
            let some = block.len().min(left);
            write.write_all(&block[..some]).await.unwrap();
            left -= some;
        }
        write.shutdown().await.unwrap();
    };
    let receiving = async {
        let (mut got, mut buffer) = (0, vec![0; 1 << 16]);
        loop {
            let some = read.read(&mut buffer).await.unwrap();
            if some == 0 {
                return got;
            }
            for byte in &buffer[..some] {
                assert_eq!(usize::from(*byte), got % 251);
                got += 1;
            }
        }
    };
    let ((), got) = soon(async { tokio::join!(sending, receiving) }).await;
    assert_eq!(got, BYTES);
    let (traffic, _) = door.close().await;
    assert_eq!((traffic.sent, traffic.received), (BYTES as u64, BYTES as u64));
}

/// What nobody reads is not kept: a fast host waits for a slow program.
#[tokio::test]
async fn a_slow_program_makes_its_host_wait() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let door = open(limited(port, DoorLimits::default()));
    let stream = door.tunnel(&format!("localhost:{port}")).await.unwrap();
    let (host, _) = listener.accept().await.unwrap();
    let host = host.into_std().unwrap();
    // Writes until it would have to wait, over and over: the buffers on the way are bounded.
    let (block, mut sent) = (vec![0_u8; 1 << 20], 0);
    let mut waits = 0;
    while waits < 50 && sent < 256 << 20 {
        match std::io::Write::write(&mut &host, &block) {
            Ok(some) => (sent, waits) = (sent + some, 0),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                waits += 1;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(
        sent < 64 << 20,
        "{sent} bytes are on their way to a program that reads none"
    );
    drop(stream);
    door.close().await;
}

#[tokio::test]
async fn a_thousand_connections_take_as_many_places_as_there_are() {
    const PLACES: usize = 8;
    let (port, had) = echo().await;
    let limits = DoorLimits {
        connections: PLACES,
        ..DoorLimits::default()
    };
    let door = open(limited(port, limits));
    let request = format!("CONNECT localhost:{port} HTTP/1.1\r\n\r\n");
    let mut programs = JoinSet::new();
    let opened = Arc::new(AtomicUsize::new(0));
    let (go, gone) = (CancellationToken::new(), door.address);
    for _ in 0..1000 {
        let (request, opened, go) = (request.clone(), Arc::clone(&opened), go.clone());
        drop(programs.spawn(async move {
            let connected = go.run_until_cancelled(TcpStream::connect(gone)).await;
            let Some(Ok(mut stream)) = connected else { return };
            stream.write_all(request.as_bytes()).await.unwrap();
            let served = go.run_until_cancelled(head_of(&mut stream)).await;
            if served.is_some_and(|head| head.starts_with("HTTP/1.1 200")) {
                opened.fetch_add(1, Ordering::SeqCst);
            }
            go.cancelled().await;
        }));
    }
    let full = async {
        while opened.load(Ordering::SeqCst) < PLACES {
            tokio::task::yield_now().await;
        }
    };
    soon(full).await;
    assert_eq!(had.load(Ordering::SeqCst), PLACES);
    go.cancel();
    while programs.join_next().await.is_some() {}
    assert!(opened.load(Ordering::SeqCst) <= PLACES);
    // The next one is served when they are gone.
    assert!(soon(door.tunnel(&format!("localhost:{port}"))).await.is_ok());
    door.close().await;
}

#[tokio::test]
async fn a_door_closes_whatever_is_open() {
    let (port, _) = echo().await;
    let limits = DoorLimits {
        drain: Duration::from_millis(100),
        ..DoorLimits::default()
    };
    let door = open(limited(port, limits));
    let mut tunnel = door.tunnel(&format!("localhost:{port}")).await.unwrap();
    let (silent, address) = (door.connect().await, door.address);
    tunnel.write_all(b"x").await.unwrap();
    assert_eq!(soon(tunnel.read_u8()).await.unwrap(), b'x');
    let (traffic, _) = door.close().await;
    assert_eq!(traffic.connections, 2);
    let mut rest = Vec::new();
    drop(soon(tunnel.read_to_end(&mut rest)).await);
    assert!(rest.is_empty());
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
    drop(silent);
}

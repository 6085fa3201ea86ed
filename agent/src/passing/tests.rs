use std::io::Write as _;
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);
/// Says to this test's program which ports it opens.
const PORTS: &str = "KAGE_TEST_PASSED_PORTS";

/// The other process: listens, sends, and stays until its standard input, the socket, ends.
#[test]
fn in_the_box() {
    let Ok(ports) = std::env::var(PORTS) else {
        return;
    };
    let ports: Vec<u16> = ports.split(',').map(|port| port.parse().unwrap()).collect();
    listen_and_send(std::io::stdin(), &ports).unwrap();
    // Programs of the box reach the agent's side at the ports.
    for port in ports {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        stream.write_all(&port.to_be_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, format!("hello {port}"));
    }
}

/// Starts it, in front of which other words may stand, with one end of a socket.
fn start(words: &[&str], ports: &[u16]) -> (Child, UnixStream) {
    let (here, there) = UnixStream::pair().unwrap();
    let program = std::env::current_exe().unwrap();
    let mut all: Vec<_> = words.iter().map(std::ffi::OsStr::new).collect();
    all.push(program.as_os_str());
    let ports: Vec<_> = ports.iter().map(ToString::to_string).collect();
    let child = Command::new(all[0])
        .args(&all[1..])
        .args(["--exact", "passing::tests::in_the_box", "--nocapture"])
        .env(PORTS, ports.join(","))
        .stdin(Stdio::from(OwnedFd::from(there)))
        .spawn()
        .unwrap();
    (child, here)
}

fn serve_one(listener: &TcpListener, port: u16) {
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut asked = [0; 2];
    stream.read_exact(&mut asked).unwrap();
    assert_eq!(u16::from_be_bytes(asked), port);
    stream.write_all(format!("hello {port}").as_bytes()).unwrap();
}

/// Ports that are free, for a moment at least.
fn free_ports(count: usize) -> Vec<u16> {
    let open: Vec<_> = (0..count)
        .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap())
        .collect();
    open.iter()
        .map(|listener| listener.local_addr().unwrap().port())
        .collect()
}

#[test]
fn listeners_of_another_process_are_served_here() {
    let ports = free_ports(3);
    let (mut child, socket) = start(&[], &ports);
    let listeners = receive(&socket, &ports).unwrap();
    assert_eq!(listeners.iter().map(|(port, _)| *port).collect::<Vec<_>>(), ports);
    for (port, listener) in &listeners {
        serve_one(listener, *port);
    }
    assert!(child.wait().unwrap().success());
}

/// What a box is made of.
#[cfg(target_os = "linux")]
#[test]
fn listeners_of_another_network_are_served_here_and_are_not_in_this_one() {
    let bwrap = ["bwrap", "--unshare-net", "--dev-bind", "/", "/", "--"];
    let tried = Command::new(bwrap[0]).args(&bwrap[1..]).arg("true").status();
    let works = tried.as_ref().is_ok_and(std::process::ExitStatus::success);
    assert!(
        works,
        "bubblewrap makes no network here, install and allow it: {tried:?}"
    );
    // Taken in this network, free in the other one.
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let ports = [taken.local_addr().unwrap().port(), DOOR_PORT];
    let (mut child, socket) = start(&bwrap, &ports);
    let listeners = receive(&socket, &ports).unwrap();
    for (port, listener) in &listeners {
        serve_one(listener, *port);
    }
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_listener_is_at_one_address_only() {
    for (address, right) in [
        ("127.0.0.1:80", true),
        ("127.0.0.1:81", false),
        ("127.0.0.2:80", false),
        ("0.0.0.0:80", false),
        ("[::1]:80", false),
        ("[::ffff:127.0.0.1]:80", false),
    ] {
        assert_eq!(is_at(address.parse().unwrap(), 80), right, "{address}");
    }
}

#[test]
fn what_is_not_the_listeners_that_were_asked_for_is_refused() {
    let said = |send: &dyn Fn(&UnixStream), asked: &[u16]| {
        let (here, there) = UnixStream::pair().unwrap();
        send(&there);
        drop(there);
        receive(&here, asked).unwrap_err().to_string()
    };
    let sends = |sockets: &[&dyn AsFd], ports: &[u16], there: &UnixStream| {
        let mut bytes = vec![FORM];
        bytes.extend(ports.iter().flat_map(|port| port.to_be_bytes()));
        let sockets: Vec<_> = sockets.iter().map(|socket| socket.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        assert!(beside.push(SendAncillaryMessage::ScmRights(&sockets)));
        sendmsg(there, &[IoSlice::new(&bytes)], &mut beside, SendFlags::empty()).unwrap();
    };
    let own = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = own.local_addr().unwrap().port();
    let everywhere = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let elsewhere = everywhere.local_addr().unwrap().port();
    let connected = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();

    assert!(said(&|_| (), &[port]).contains("it ended"));
    assert!(said(&|mut there| there.write_all(b"hello").unwrap(), &[port]).contains("other ports"));
    assert!(said(&|there| sends(&[&own], &[port + 1], there), &[port]).contains("other ports"));
    assert!(said(&|there| sends(&[], &[port], there), &[port]).contains("number of sockets"));
    assert!(said(&|there| sends(&[&own, &own], &[port], there), &[port]).contains("number of sockets"));
    assert!(said(&|there| sends(&[&connected], &[port], there), &[port]).contains("listens to nobody"));
    assert!(said(&|there| sends(&[&everywhere], &[elsewhere], there), &[elsewhere]).contains("elsewhere"));
    assert!(said(&|there| sends(&[&own], &[elsewhere], there), &[elsewhere]).contains("elsewhere"));
    // Of all addresses of the machine itself, a program may have this one.
    #[cfg(target_os = "linux")]
    {
        let beside = TcpListener::bind((Ipv4Addr::new(127, 0, 0, 2), 0)).unwrap();
        let other = beside.local_addr().unwrap().port();
        assert!(said(&|there| sends(&[&beside], &[other], there), &[other]).contains("elsewhere"));
    }
    let no_socket = said(&|there| sends(&[&file], &[port], there), &[port]);
    assert!(no_socket.contains("were not passed"), "{no_socket}");

    let (here, _there) = UnixStream::pair().unwrap();
    here.set_nonblocking(true).unwrap();
    let silent = receive(&here, &[port]);
    assert!(matches!(silent, Err(PassingError::Io(_))), "{silent:?}");
    let (_here, there) = UnixStream::pair().unwrap();
    let taken = listen_and_send(&there, &[port]);
    assert!(matches!(taken, Err(PassingError::Listen { .. })), "{taken:?}");
    let many = listen_and_send(&there, &[0; MOST + 1]);
    assert!(matches!(many, Err(PassingError::TooMany(_))), "{many:?}");
}

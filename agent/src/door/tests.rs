use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdTcpListener};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use kage_core::network::AllowRule;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::*;

mod requests;
mod tunnels;
mod limits;
mod programs;
mod boxes;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

async fn soon<T>(work: impl Future<Output = T>) -> T {
    timeout(PATIENCE, work).await.expect("it takes too long")
}

/// A door, and what it told.
struct Opened {
    address: SocketAddr,
    told: Arc<Mutex<Vec<String>>>,
    end: CancellationToken,
    serving: JoinHandle<io::Result<Traffic>>,
}

/// What a door of a test lets through; names that end with `.test` are this machine.
fn rules(allow: &[&str]) -> DoorRules {
    let list = allow.iter().map(|rule| rule.parse::<AllowRule>().unwrap()).collect();
    let mut rules = DoorRules::new(list, Upstream::default());
    rules.resolve = Arc::new(|name| {
        Box::pin(async move {
            match name.strip_suffix(".test") {
                Some(_) => Ok(vec![Ipv4Addr::LOCALHOST.into()]),
                None => Err(io::Error::other("nobody has that name")),
            }
        })
    });
    rules
}

fn open(rules: DoorRules) -> Opened {
    open_with(rules, Vec::new())
}

fn open_with(rules: DoorRules, forwards: Vec<(u16, DoorListener)>) -> Opened {
    let requests = StdTcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (address, told) = (requests.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
    let requests = DoorListener::Tcp(requests);
    let (end, heard) = (CancellationToken::new(), Arc::clone(&told));
    let tell = move |text| {
        heard.lock().unwrap().push(text);
        std::future::ready(())
    };
    let entrances = Entrances {
        listeners: vec![DoorListeners { requests, forwards }],
        boxes: None,
    };
    let serving = tokio::spawn(serve(entrances, rules, tell, end.clone()));
    Opened {
        address,
        told,
        end,
        serving,
    }
}

impl Opened {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends a request as it stands, and reads all that comes back until the connection ends.
    async fn raw(&self, request: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // The door may close before it read everything.
        drop(soon(stream.read_to_end(&mut answer)).await);
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// A tunnel, or the answer that is none.
    async fn tunnel(&self, to: &str) -> Result<TcpStream, String> {
        let mut stream = self.connect().await;
        let request = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let head = head_of(&mut stream).await;
        if head.starts_with("HTTP/1.1 200 ") {
            return Ok(stream);
        }
        let mut body = String::new();
        drop(soon(stream.read_to_string(&mut body)).await);
        Err(head + &body)
    }

    /// Closes it, and says what passed and what was told.
    async fn close(self) -> (Traffic, Vec<String>) {
        self.end.cancel();
        let traffic = soon(self.serving).await.unwrap().unwrap();
        let told = self.told.lock().unwrap().clone();
        (traffic, told)
    }
}

/// Reads to the empty line after the head, and no further.
async fn head_of(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match soon(stream.read_u8()).await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

/// A server that sends back what it is sent, and says how many connections it had.
async fn echo() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (port, had) = (listener.local_addr().unwrap().port(), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&had);
    tokio::spawn(async move {
        let mut open = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            drop(open.spawn(async move {
                let (mut read, mut write) = stream.split();
                drop(tokio::io::copy(&mut read, &mut write).await);
                drop(write.shutdown().await);
            }));
        }
    });
    (port, had)
}

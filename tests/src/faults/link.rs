//! A link between agents and a coordinator that can be cut, silenced, slowed down and made lossy: a
//! proxy for TCP connections. TCP repeats data that a real network loses, so loss is a wait here,
//! as long as a sender waits before it repeats.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Weather {
    /// As if the link were direct.
    Fair,
    /// Connections are closed, also new ones.
    Cut,
    /// Connections stay open, and nothing gets through.
    Silent,
    /// Slow and lossy.
    Bad {
        delay: Duration,
        /// The most that is added to the delay.
        jitter: Duration,
        /// In each direction of each connection.
        bytes_per_second: u32,
        /// Lost pieces per hundred, each time they are sent.
        loss: u32,
    },
}

/// How long a sender waits before it repeats data that was lost for the first time.
const FIRST_RESEND: Duration = Duration::from_millis(200);
/// The most times that one piece is lost.
const RESENDS: u32 = 4;
/// Pieces in flight in one direction. When full nothing more is read: the sender's window is
/// closed.
const ON_THE_WAY: usize = 256;
/// The largest piece: fits a few packets.
const PIECE: usize = 4096;

/// The link. Dropping it closes every connection.
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    _listening: JoinSet<()>,
}

impl Link {
    /// A fair link to a coordinator.
    pub async fn to(coordinator: &str) -> Self {
        let target = coordinator.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("a bound port has an address");
        let (weather, forecast) = watch::channel(Weather::Fair);
        let mut listening = JoinSet::new();
        listening.spawn(listen(listener, target, forecast));
        Self {
            address,
            weather,
            _listening: listening,
        }
    }

    /// The coordinator's address from behind the link.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Changes the weather for every connection, now.
    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }
}

async fn listen(listener: TcpListener, target: String, weather: watch::Receiver<Weather>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((near, _)) = accepted else { return };
                if *weather.borrow() != Weather::Cut {
                    connections.spawn(carry(near, target.clone(), weather.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn carry(near: TcpStream, target: String, weather: watch::Receiver<Weather>) {
    let Ok(far) = TcpStream::connect(target).await else {
        return;
    };
    for stream in [&near, &far] {
        // Otherwise the proxy itself would delay small messages.
        stream.set_nodelay(true).ok();
    }
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    let mut forecast = weather.clone();
    tokio::select! {
        _ = forecast.wait_for(|now| *now == Weather::Cut) => {}
        () = direction(near_in, far_out, weather.clone()) => {}
        () = direction(far_in, near_out, weather) => {}
    }
}

/// One direction of a connection: reads pieces, computes each one's arrival, and delivers them
/// then.
async fn direction(from: OwnedReadHalf, to: OwnedWriteHalf, weather: watch::Receiver<Weather>) {
    let (pieces, arriving) = mpsc::channel(ON_THE_WAY);
    tokio::join!(read(from, pieces, weather.clone()), deliver(to, arriving, weather));
}

async fn read(mut from: OwnedReadHalf, pieces: mpsc::Sender<(Instant, Vec<u8>)>, weather: watch::Receiver<Weather>) {
    let mut last = Instant::now();
    loop {
        let mut piece = vec![0; PIECE];
        let Ok(length @ 1..) = from.read(&mut piece).await else {
            return;
        };
        piece.truncate(length);
        let now = *weather.borrow();
        let arrival = last.max(Instant::now() + way(now, length));
        if let Weather::Bad { bytes_per_second, .. } = now {
            let takes = Duration::from_secs_f64(length as f64 / f64::from(bytes_per_second));
            last = last.max(Instant::now()) + takes;
        }
        // In order: the pieces behind a lost one wait for it.
        last = last.max(arrival);
        if pieces.send((arrival, piece)).await.is_err() {
            return;
        }
    }
}

/// The travel time of a piece.
fn way(weather: Weather, length: usize) -> Duration {
    let Weather::Bad {
        delay,
        jitter,
        bytes_per_second,
        loss,
    } = weather
    else {
        return Duration::ZERO;
    };
    let mut way = delay + jitter.mul_f64(rand::random::<f64>());
    way += Duration::from_secs_f64(length as f64 / f64::from(bytes_per_second));
    for resend in 0..RESENDS {
        if rand::random::<u32>() % 100 >= loss {
            break;
        }
        way += FIRST_RESEND * 2u32.pow(resend);
    }
    way
}

async fn deliver(
    mut to: OwnedWriteHalf,
    mut arriving: mpsc::Receiver<(Instant, Vec<u8>)>,
    mut weather: watch::Receiver<Weather>,
) {
    while let Some((arrival, piece)) = arriving.recv().await {
        tokio::time::sleep_until(arrival).await;
        if weather.wait_for(|now| *now != Weather::Silent).await.is_err() || to.write_all(&piece).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that echoes on every connection.
    async fn echo() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                connections.spawn(async move {
                    let (mut from, mut to) = stream.split();
                    tokio::io::copy(&mut from, &mut to).await.ok();
                });
            }
        });
        format!("http://{address}")
    }

    async fn connect(link: &Link) -> TcpStream {
        TcpStream::connect(link.address).await.unwrap()
    }

    #[tokio::test]
    async fn bytes_arrive_in_order_whatever_the_weather() {
        let link = Link::to(&echo().await).await;
        let bytes: Vec<u8> = (0..60_000u32).map(|n| (n % 251) as u8).collect();
        let bad = Weather::Bad {
            delay: Duration::from_millis(2),
            jitter: Duration::from_millis(5),
            bytes_per_second: 1 << 20,
            loss: 10,
        };
        for weather in [Weather::Fair, bad] {
            link.set(weather);
            let (mut from, mut to) = connect(&link).await.into_split();
            let sent = bytes.clone();
            let sending = tokio::spawn(async move { to.write_all(&sent).await.map(|()| to) });
            let mut back = vec![0; bytes.len()];
            from.read_exact(&mut back).await.unwrap();
            assert!(back == bytes, "{weather:?}");
            drop(sending.await.unwrap().unwrap());
        }
    }

    #[tokio::test]
    async fn a_cut_link_ends_connections_and_a_silent_one_holds_them() {
        let link = Link::to(&echo().await).await;
        let mut held = connect(&link).await;
        link.set(Weather::Silent);
        held.write_all(b"late").await.unwrap();
        let mut back = [0; 4];
        let silent = tokio::time::timeout(Duration::from_millis(100), held.read_exact(&mut back)).await;
        assert!(silent.is_err(), "nothing comes through");
        link.set(Weather::Fair);
        held.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"late");
        link.set(Weather::Cut);
        assert!(matches!(held.read(&mut back).await, Ok(0) | Err(_)), "it is closed");
    }
}

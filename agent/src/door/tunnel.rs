//! Bytes between a program and a host, in both directions until both ended or nothing passes any more; and
//! ports of this machine, to which that is all there is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};

use super::Shared;
use super::connect::Outside;
use super::listening::ProgramStream;

/// Bytes that may wait for a slow side, in each direction.
const BUFFER: usize = 64 << 10;

/// Carries bytes until both sides ended, one of them broke, or nothing passed for so long.
pub(super) async fn carry(mut program: impl AsyncRead + AsyncWrite + Unpin, mut outside: Outside, idle: Duration) {
    let movement = outside.movement();
    tokio::select! {
        carried = copy_bidirectional_with_sizes(&mut program, &mut outside, BUFFER, BUFFER) => {
            if let Err(error) = carried {
                tracing::debug!(%error, "a connection broke");
            }
        }
        () = movement.stops_for(idle) => tracing::debug!("a connection carries nothing, and ends"),
    }
}

/// Connects a program to a port of this machine. There is nobody to tell when nothing listens there: the
/// connection ends, as one to a server that goes away.
pub(super) async fn forward(program: ProgramStream, port: u16, shared: &Shared) {
    let own: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    match shared.connector.dial(&own, port).await {
        Ok(outside) => carry(program, outside, shared.limits.idle).await,
        Err(error) => tracing::debug!(port, %error, "nothing listens at a port that is forwarded"),
    }
}

//! TCP connections between members.

use std::{
    io,
    net::{TcpStream, ToSocketAddrs as _},
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{SockRef, TcpKeepalive};

/// A connection is asked for a sign of life after this long without one, again every so often, so many times: one that is
/// cut is noticed within five seconds.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(2), Duration::from_secs(1), 3);
/// What is sent and not taken in for so long ends the connection.
#[cfg(target_os = "linux")]
const UNTAKEN: Duration = Duration::from_secs(5);
/// A host that does not answer a dialler is given up after so long.
const CONNECT: Duration = Duration::from_secs(2);

/// Makes a connection ready for frames.
pub fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(None)?;
    let socket = SockRef::from(stream);
    let (idle, interval, probes) = KEEPALIVE;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(probes))?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(UNTAKEN))?;
    Ok(())
}

/// Whether the other side has ended a connection, though there may be bytes of it left to read.
pub fn has_ended(stream: &TcpStream) -> bool {
    #[cfg(target_os = "linux")]
    let asked = PollFlags::RDHUP;
    #[cfg(not(target_os = "linux"))]
    let asked = PollFlags::empty(); // an end on both sides and an error are told unasked
    let mut looked_at = [PollFd::new(stream, asked)];
    let looked = poll(&mut looked_at, Some(&Timespec::default()));
    looked.is_ok() && looked_at[0].revents().intersects(asked | PollFlags::HUP | PollFlags::ERR)
}

/// Connects with the first of a name's addresses that answers.
pub fn dial(address: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::AddrNotAvailable, format!("'{address}' is no address"));
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT) {
            Ok(stream) => return prepare(&stream).map(|()| stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_seen_behind_bytes_that_nobody_has_read() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let here = dial(&listener.local_addr().unwrap().to_string()).unwrap();
        let (mut there, _) = listener.accept().unwrap();
        io::Write::write_all(&mut there, b"still unread").unwrap();
        assert!(!has_ended(&here));
        drop(there);
        let seen = (0..100).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            has_ended(&here)
        });
        assert!(seen, "the other side has gone");
    }
}

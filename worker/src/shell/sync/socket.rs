//! TCP connections between members.

use std::{
    io,
    net::{TcpStream, ToSocketAddrs as _},
    time::Duration,
};

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

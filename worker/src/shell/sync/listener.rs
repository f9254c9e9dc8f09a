//! Where the members of a gang call: one listener for a worker's life.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{io::AsyncReadExt as _, net::TcpListener, sync::Semaphore, task::JoinHandle};

use super::socket;
use crate::sync::frame::{HELLO_BYTES, Hello};

/// A caller says who it is within this time.
const HELLO: Duration = Duration::from_secs(5);
/// So many may be about to say who they are.
const CALLERS: usize = 64;
/// So many that have said it are kept; beyond that the oldest goes.
const KEPT: usize = 64;
/// A caller for a lease that this worker does not have is kept for so long.
const STRANGER: Duration = Duration::from_secs(30);

/// Where to listen, and what the others are told of it.
#[derive(Debug, Clone, Default)]
pub struct ListenerConfig {
    /// The coordinator's host, as its address names it.
    pub coordinator_host: String,
    /// Where to listen instead of where the coordinator's host suggests.
    pub listen: Option<SocketAddr>,
    /// What the others are told, `HOST:PORT` or `HOST`.
    pub advertise: Option<String>,
}

impl ListenerConfig {
    /// Loopback where the coordinator is there, else every interface; any free port.
    fn address(&self) -> SocketAddr {
        let host: Option<IpAddr> = self.coordinator_host.trim_matches(['[', ']']).parse().ok();
        let ip = match host {
            Some(IpAddr::V6(ip)) if ip.is_loopback() => Ipv6Addr::LOCALHOST.into(),
            Some(IpAddr::V6(_)) => Ipv6Addr::UNSPECIFIED.into(),
            Some(ip) if ip.is_loopback() => Ipv4Addr::LOCALHOST.into(),
            None if self.coordinator_host == "localhost" => Ipv4Addr::LOCALHOST.into(),
            _ => Ipv4Addr::UNSPECIFIED.into(),
        };
        self.listen.unwrap_or(SocketAddr::new(ip, 0))
    }

    /// What the coordinator is told: an address, or a port alone where the host is the one it sees calling.
    fn advertised(&self, bound: SocketAddr) -> String {
        match &self.advertise {
            // Its colons are no port's.
            Some(host) if host.parse::<Ipv6Addr>().is_ok() => format!("[{host}]:{}", bound.port()),
            Some(named) if named.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) => named.clone(),
            Some(host) => format!("{host}:{}", bound.port()),
            None if bound.ip().is_unspecified() => format!(":{}", bound.port()),
            None => bound.to_string(),
        }
    }
}

/// Accepts callers and keeps them until their gang is formed.
#[derive(Debug)]
pub struct Listener {
    advertised: String,
    waiting: Arc<Waiting>,
    accepting: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Waiting {
    callers: Mutex<Callers>,
    came: Condvar,
}

#[derive(Debug, Default)]
struct Callers {
    kept: Vec<Caller>,
    /// Leases that this worker has.
    expected: BTreeSet<u64>,
}

/// Somebody who said who it is. Whether to believe it only the gang's key tells.
#[derive(Debug)]
pub struct Caller {
    /// What it said.
    pub hello: Hello,
    /// In these bytes.
    pub bytes: [u8; HELLO_BYTES],
    /// Over this connection.
    pub stream: TcpStream,
    came: Instant,
}

impl Listener {
    /// Listens; to be called within a runtime.
    ///
    /// # Errors
    /// When the address cannot be listened at.
    pub async fn open(config: &ListenerConfig) -> io::Result<Self> {
        let listener = TcpListener::bind(config.address()).await?;
        let advertised = config.advertised(listener.local_addr()?);
        let waiting = Arc::<Waiting>::default();
        let accepting = tokio::spawn(accept(listener, Arc::clone(&waiting)));
        Ok(Self { advertised, waiting, accepting })
    }

    /// What the coordinator is told.
    #[must_use]
    pub fn advertised(&self) -> &str {
        &self.advertised
    }

    /// Keeps callers for `lease` until what comes back is dropped.
    #[must_use]
    pub fn expect(self: &Arc<Self>, lease: u64) -> Expected {
        self.waiting.lock().expected.insert(lease);
        Expected { listener: Arc::clone(self), lease }
    }

    /// The next caller for `lease`, oldest first, waited for at most `patience`.
    pub(super) fn take(&self, lease: u64, patience: Duration) -> Option<Caller> {
        let callers = self.waiting.lock();
        let none = |callers: &mut Callers| callers.kept.iter().all(|caller| caller.hello.to != lease);
        let waited = self.waiting.came.wait_timeout_while(callers, patience, none);
        let (mut callers, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let place = callers.kept.iter().position(|caller| caller.hello.to == lease)?;
        Some(callers.kept.remove(place))
    }

    /// Puts back one that came too early, behind the others.
    pub(super) fn put_back(&self, caller: Caller) {
        self.waiting.keep(caller);
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Callers for a lease are kept as long as this is.
#[derive(Debug)]
pub struct Expected {
    listener: Arc<Listener>,
    lease: u64,
}

impl Drop for Expected {
    fn drop(&mut self) {
        let mut callers = self.listener.waiting.lock();
        callers.expected.remove(&self.lease);
        callers.kept.retain(|caller| caller.hello.to != self.lease);
    }
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Callers> {
        self.callers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, caller: Caller) {
        let mut callers = self.lock();
        let Callers { kept, expected } = &mut *callers;
        kept.retain(|other| expected.contains(&other.hello.to) || other.came.elapsed() < STRANGER);
        // One that calls again has given its earlier connection up.
        let Hello { from, to, generation, .. } = caller.hello;
        kept.retain(|Caller { hello, .. }| (hello.from, hello.to) != (from, to) || hello.generation > generation);
        if kept.len() >= KEPT {
            let stranger = kept.iter().position(|other| !expected.contains(&other.hello.to));
            kept.remove(stranger.unwrap_or(0));
        }
        kept.push(caller);
        self.came.notify_all();
    }
}

async fn accept(listener: TcpListener, waiting: Arc<Waiting>) {
    let callers = Arc::new(Semaphore::new(CALLERS));
    loop {
        let place = Arc::clone(&callers).acquire_owned().await.expect("the semaphore is never closed");
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Too many open files, mostly: the others have to go first.
                tracing::warn!("no member could call: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let waiting = Arc::clone(&waiting);
        tokio::spawn(async move {
            match tokio::time::timeout(HELLO, hello(stream)).await {
                Ok(Ok(caller)) => waiting.keep(caller),
                Ok(Err(error)) => tracing::warn!("a caller is not listened to: {error}"),
                Err(_) => tracing::warn!("a caller said nothing for {} s", HELLO.as_secs()),
            }
            drop(place);
        });
    }
}

#[expect(clippy::disallowed_methods, reason = "the shell asks the clock when a caller came")]
async fn hello(mut stream: tokio::net::TcpStream) -> io::Result<Caller> {
    let mut bytes = [0; HELLO_BYTES];
    stream.read_exact(&mut bytes).await?;
    let hello = Hello::decode(&bytes).map_err(io::Error::other)?;
    let stream = stream.into_std()?;
    socket::prepare(&stream)?;
    Ok(Caller { hello, bytes, stream, came: Instant::now() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_listens_where_the_coordinator_can_see_it() {
        let config = |host: &str| ListenerConfig { coordinator_host: host.into(), ..ListenerConfig::default() };
        let at = |host: &str| config(host).address().to_string();
        assert_eq!(
            ["127.0.0.1", "localhost", "::1", "[::1]"].map(at),
            ["127.0.0.1:0", "127.0.0.1:0", "[::1]:0", "[::1]:0"]
        );
        assert_eq!(["10.0.0.7", "head-node", "fe80::1"].map(at), ["0.0.0.0:0", "0.0.0.0:0", "[::]:0"]);
        let told = |advertise: Option<&str>, bound: &str| {
            let config = ListenerConfig { advertise: advertise.map(str::to_owned), ..config("x") };
            config.advertised(bound.parse().unwrap())
        };
        assert_eq!(told(None, "0.0.0.0:45"), ":45");
        assert_eq!(told(None, "127.0.0.1:45"), "127.0.0.1:45");
        assert_eq!(told(Some("node-3"), "0.0.0.0:45"), "node-3:45");
        assert_eq!(told(Some("node-3:99"), "0.0.0.0:45"), "node-3:99");
        assert_eq!(told(Some("fe80::7"), "[::]:45"), "[fe80::7]:45");
        assert_eq!(told(Some("[fe80::7]:99"), "[::]:45"), "[fe80::7]:99");
    }
}

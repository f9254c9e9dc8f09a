//! The one place that makes a line to a coordinator: plain on this machine, TLS to others, the access token with every
//! call. Workers and the command line both come here.
//!
//! ```text
//! http://  loopback            with or without a token
//! http://  another machine     without a token only: it would be read on the way
//! https:// anywhere            checked against the CA that was named, or the system's
//! ```
#![expect(clippy::disallowed_methods, reason = "the room that reads the CA's and the token's files and INSULA_TOKEN")]

use std::{
    error::Error,
    path::{Path, PathBuf},
    time::Duration,
};

use insula_proto::access::{AccessToken, HEADER, NotAToken, is_loopback};
use rustls::{
    CertificateError,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{self, Certificate, ClientTlsConfig, Endpoint, Uri},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

/// How long a connection, its handshake and a first answer may each take.
const CONNECT: Duration = Duration::from_secs(5);
/// A line is asked for a sign of life so often, and given up when none comes within as long again: a cable that was
/// pulled says nothing by itself.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);
/// Environment variable that holds the access token itself.
const TOKEN_VARIABLE: &str = "INSULA_TOKEN";

/// A line that shows the access token with every call, if there is one.
pub type Channel = InterceptedService<transport::Channel, Bearer>;

/// Puts the access token on a call.
#[derive(Debug, Clone, Default)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert(HEADER, value.clone());
        }
        Ok(request)
    }
}

/// What a worker or a command needs to be let in: whom to believe, and what to show.
#[derive(Debug, Clone, Default)]
pub struct Access {
    ca: Option<Ca>,
    token: Option<AccessToken>,
}

/// The certificates that a coordinator's must be signed by.
#[derive(Debug, Clone)]
struct Ca {
    path: PathBuf,
    pem: Vec<u8>,
}

/// Why no line can be made of what was given.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The address does not parse.
    #[error("coordinator address '{address}': {problem}; expected http://HOST:PORT or https://HOST:PORT")]
    Address {
        /// What was given.
        address: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A CA's file without a certificate in it.
    #[error("{0}: holds no certificate; expected a PEM file with a part BEGIN CERTIFICATE")]
    NoCertificate(PathBuf),
    /// What should be the token is none.
    #[error("{place}: {problem}")]
    Token {
        /// The file or the variable.
        place: String,
        /// What is wrong with it.
        problem: NotAToken,
    },
    /// The token would be read on the way.
    #[error("{0} is plain text to another machine, and the access token would be read on the way: expected https://")]
    InTheClear(String),
    /// The TLS library will not have it.
    #[error("TLS to {address} cannot be set up: {problem}")]
    Tls {
        /// The address.
        address: String,
        /// What the library said.
        problem: String,
    },
}

/// Why a line that was made does not work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// Nobody answers: it may be worth another try.
    #[error("{0}")]
    Away(String),
    /// Whoever answers is not to be talked to like this; another try ends alike.
    #[error("{0}")]
    Refused(String),
}

/// Why a connection is not there.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// It cannot be made.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// It does not work.
    #[error(transparent)]
    Trouble(#[from] Trouble),
}

impl Access {
    /// Reads the files that were named; without a token file, the token in `INSULA_TOKEN`.
    ///
    /// # Errors
    /// When one cannot be read, or does not hold what it should.
    pub fn read(ca: Option<&Path>, token_file: Option<&Path>) -> Result<Self, AccessError> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|source| AccessError::Unreadable { path: path.to_owned(), source })
        };
        let ca = ca.map(|path| Ca::parsed(path, read(path)?)).transpose()?;
        let token = match (token_file, std::env::var(TOKEN_VARIABLE)) {
            (Some(path), _) => Some((path.display().to_string(), String::from_utf8_lossy(&read(path)?).into_owned())),
            (None, Ok(text)) if !text.is_empty() => Some((TOKEN_VARIABLE.to_owned(), text)),
            (None, _) => None,
        };
        let token = token
            .map(|(place, text)| AccessToken::of_file(&text).map_err(|problem| AccessError::Token { place, problem }));
        Ok(Self { ca, token: token.transpose()? })
    }

    /// A line that connects when it is used, and again when it broke.
    ///
    /// # Errors
    /// When the address does not parse, or the token may not travel to it.
    pub fn line(&self, address: &str) -> Result<Channel, AccessError> {
        Ok(self.with_token(self.endpoint(address)?.connect_lazy()))
    }

    /// A line to a coordinator that answers now.
    ///
    /// # Errors
    /// As [`Access::line`], and when it does not answer.
    pub async fn connect(&self, address: &str) -> Result<Channel, ConnectError> {
        let channel = match self.endpoint(address)?.connect().await {
            Ok(channel) => self.with_token(channel),
            Err(error) => return Err(self.trouble(address, &error).await.into()),
        };
        // The connection alone says little: over plain text it stands before the other side has said a word.
        let mut request = Request::new(HealthCheckRequest::default());
        request.set_timeout(CONNECT);
        match HealthClient::new(channel.clone()).check(request).await {
            Err(status) if status.source().is_some() => Err(self.trouble(address, &status).await.into()),
            Ok(_) | Err(_) => Ok(channel),
        }
    }

    /// What an error of a line means: whether to try again, or what to change.
    pub async fn trouble(&self, address: &str, error: &(dyn Error + 'static)) -> Trouble {
        match tls_error(error) {
            Some(rustls::Error::InvalidCertificate(problem)) => Trouble::Refused(self.distrusted(problem)),
            Some(rustls::Error::InvalidMessage(_)) => {
                Trouble::Refused("it answers in plain text: expected http:// in its address".into())
            }
            Some(other) => Trouble::Away(format!("TLS: {other}")),
            None if speaks_tls(address).await => {
                Trouble::Refused("it speaks TLS: expected https:// in its address, and --ca with its CA".into())
            }
            None => Trouble::Away(last_of(error).to_string()),
        }
    }

    /// What is wrong with a coordinator's certificate, and what would be right.
    fn distrusted(&self, problem: &CertificateError) -> String {
        let signers = match &self.ca {
            Some(ca) => format!("the CA in {}", ca.path.display()),
            None => "a CA that this system knows; name its own with --ca".into(),
        };
        match problem {
            // A self-made CA that has the same name as the one expected fails on its signature.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                format!("its certificate is not to be trusted: expected one signed by {signers}")
            }
            other => format!("its certificate is not to be trusted: {other}"),
        }
    }

    fn with_token(&self, channel: transport::Channel) -> Channel {
        let value = self.token.as_ref().map(|token| {
            let mut value: MetadataValue<Ascii> =
                token.bearer().parse().expect("visible ASCII is what a header may hold");
            value.set_sensitive(true);
            value
        });
        InterceptedService::new(channel, Bearer(value))
    }

    fn endpoint(&self, address: &str) -> Result<Endpoint, AccessError> {
        let wrong = |problem: String| AccessError::Address { address: address.to_owned(), problem };
        let uri = address.parse::<Uri>().map_err(|e| wrong(e.to_string()))?;
        let host = uri.host().ok_or_else(|| wrong("has no host".into()))?;
        let secure = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(wrong("has neither scheme".into())),
        };
        if !secure && self.token.is_some() && !is_loopback(host) {
            return Err(AccessError::InTheClear(address.to_owned()));
        }
        let endpoint = Endpoint::from(uri)
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(SIGN_OF_LIFE)
            .keep_alive_timeout(SIGN_OF_LIFE)
            .keep_alive_while_idle(true);
        if !secure {
            return Ok(endpoint);
        }
        let tls = ClientTlsConfig::new().timeout(CONNECT);
        let tls = match &self.ca {
            Some(ca) => tls.ca_certificate(Certificate::from_pem(&ca.pem)),
            None => tls.with_native_roots(),
        };
        endpoint
            .tls_config(tls)
            .map_err(|e| AccessError::Tls { address: address.to_owned(), problem: last_of(&e).to_string() })
    }
}

/// The host of a coordinator's address; empty where there is none.
pub fn host_of(address: &str) -> String {
    address.parse::<Uri>().ok().and_then(|uri| uri.host().map(str::to_owned)).unwrap_or_default()
}

impl Ca {
    fn parsed(path: &Path, pem: Vec<u8>) -> Result<Self, AccessError> {
        match CertificateDer::pem_slice_iter(&pem).next() {
            Some(Ok(_)) => Ok(Self { path: path.to_owned(), pem }),
            Some(Err(_)) | None => Err(AccessError::NoCertificate(path.to_owned())),
        }
    }
}

/// The TLS library's error behind an error, if it is there. An `io::Error` does not name the one it carries as its
/// source, so it is asked for that.
fn tls_error<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        let carried = error.downcast_ref::<std::io::Error>().and_then(|io| io.get_ref());
        let tls = carried.and_then(|inner| inner.downcast_ref()).or_else(|| error.downcast_ref());
        if tls.is_some() {
            return tls;
        }
        next = error.source();
    }
    None
}

/// The error behind all others, which says what really happened.
fn last_of<'e>(error: &'e (dyn Error + 'static)) -> &'e (dyn Error + 'static) {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last
}

/// Whether a plain address is one that speaks TLS: it answers the first bytes of plain HTTP/2 with an alert.
async fn speaks_tls(address: &str) -> bool {
    let Ok(uri) = address.parse::<Uri>() else { return false };
    let (Some("http"), Some(host)) = (uri.scheme_str(), uri.host()) else { return false };
    let at = format!("{host}:{}", uri.port_u16().unwrap_or(80));
    let asked = async {
        let mut stream = TcpStream::connect(at).await?;
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
        let mut answer = [0; 2];
        stream.read_exact(&mut answer).await?;
        std::io::Result::Ok(answer == [21, 3]) // an alert, of some version of TLS
    };
    tokio::time::timeout(CONNECT, asked).await.is_ok_and(|answer| answer.unwrap_or(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(token: Option<&str>) -> Access {
        Access { ca: None, token: token.map(|text| text.parse().unwrap()) }
    }

    #[tokio::test]
    async fn a_token_travels_in_the_clear_within_this_machine_only() {
        let (with, without) = (access(Some("0123456789abcdef")), access(None));
        for address in ["http://127.0.0.1:7461", "http://localhost:7461", "http://[::1]:7461"] {
            with.line(address).unwrap();
        }
        for address in ["http://10.0.0.1:7461", "http://lab1:7461"] {
            without.line(address).unwrap();
            let said = with.line(address).unwrap_err().to_string();
            assert!(said.starts_with(address) && said.ends_with("expected https://"), "{said}");
        }
    }

    #[tokio::test]
    async fn an_address_that_is_none_is_named_with_what_is_wrong() {
        for address in ["", "lab1", "lab1:7461", "ftp://lab1:7461", "http://", "http://a b"] {
            let said = access(None).line(address).unwrap_err().to_string();
            assert!(said.contains(&format!("'{address}'")) && said.contains("https://HOST:PORT"), "{said}");
        }
    }

    #[test]
    fn files_that_hold_something_else_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let (none, text) = (folder.path().join("none"), folder.path().join("text"));
        std::fs::write(&text, "no certificate").unwrap();
        let said = |ca, token| Access::read(ca, token).unwrap_err().to_string();
        assert!(said(Some(none.as_path()), None).contains("No such file"));
        assert!(said(Some(text.as_path()), None).contains("holds no certificate"));
        assert!(said(None, Some(text.as_path())).contains("text: the access token has a space"));
    }
}

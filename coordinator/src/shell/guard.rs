//! Who may call: TLS for the line, an access token for the caller. Both are off only where nobody else can reach.

use std::{
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use insula_proto::access::{AccessToken, Denied, HEADER, NotAToken};
use tonic::{
    Request, Status,
    service::Interceptor,
    transport::{Identity, Server, ServerTlsConfig},
};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What protects a coordinator: files it was told of. `insula coordinator init-tls` makes all three.
#[derive(Debug, Clone, Default)]
pub struct Protection {
    /// The certificate (PEM), and those that it was signed by.
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key (PEM).
    pub tls_key: Option<PathBuf>,
    /// The access token, on the file's first line.
    pub token_file: Option<PathBuf>,
}

/// Why a coordinator cannot be protected as it was told, or must not be reachable so.
#[derive(Debug, thiserror::Error)]
pub enum ProtectionError {
    /// An address others can reach, and something missing for it.
    #[error(
        "{listen} can be reached from other machines, and {missing} not set: expected tls_cert, tls_key and token_file, \
         which `insula coordinator init-tls DIR --host NAME` makes; or a loopback address such as 127.0.0.1; or \
         allow_remote, for plain text and no token, where whoever reaches it may do anything"
    )]
    Remote {
        /// The address.
        listen: SocketAddr,
        /// What is missing, with its verb.
        missing: String,
    },
    /// A certificate without its key, or a key without its certificate.
    #[error("{set} is set and {missing} is not: expected both or neither")]
    Half {
        /// The setting that is there.
        set: &'static str,
        /// The setting that is not.
        missing: &'static str,
    },
    /// A token that would be read on the way.
    #[error(
        "{0} can be reached from other machines, and token_file is set without tls_cert and tls_key: the access token \
         would be read on the way"
    )]
    InTheClear(SocketAddr),
    /// A file cannot be read.
    #[error("{setting} {path}: {source}")]
    Unreadable {
        /// The setting that names it.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The token file holds no token.
    #[error("token_file {path}: {problem}")]
    Token {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: NotAToken,
    },
    /// Certificate and key are none, or do not belong together.
    #[error("tls_cert {cert} and tls_key {key} cannot be used: {problem}")]
    Tls {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What the library said.
        problem: String,
    },
}

impl Protection {
    /// Whether the line is TLS.
    pub fn is_tls(&self) -> bool {
        self.tls_cert.is_some() && self.tls_key.is_some()
    }

    /// Whether this will do for an address, reading nothing yet.
    ///
    /// # Errors
    /// When it will not.
    pub fn check(&self, listen: SocketAddr, allow_remote: bool) -> Result<(), ProtectionError> {
        match (&self.tls_cert, &self.tls_key) {
            (Some(_), None) => return Err(ProtectionError::Half { set: "tls_cert", missing: "tls_key" }),
            (None, Some(_)) => return Err(ProtectionError::Half { set: "tls_key", missing: "tls_cert" }),
            _ => {}
        }
        if listen.ip().is_loopback() {
            return Ok(());
        }
        if !self.is_tls() && self.token_file.is_some() {
            return Err(ProtectionError::InTheClear(listen));
        }
        let settings = [("tls_cert", &self.tls_cert), ("tls_key", &self.tls_key), ("token_file", &self.token_file)];
        let missing: Vec<_> = settings.iter().filter(|(_, path)| path.is_none()).map(|(name, _)| *name).collect();
        match missing.as_slice() {
            [] => Ok(()),
            _ if allow_remote => Ok(()),
            [one] => Err(ProtectionError::Remote { listen, missing: format!("{one} is") }),
            several => Err(ProtectionError::Remote { listen, missing: format!("{} are", several.join(", ")) }),
        }
    }

    /// Reads the files; warns where others on this machine can read what they must not.
    ///
    /// # Errors
    /// When one cannot be read or used.
    pub async fn read(&self) -> Result<Guard, ProtectionError> {
        let token = match &self.token_file {
            Some(path) => {
                let text = secret("token_file", path).await?;
                let token = AccessToken::of_file(&String::from_utf8_lossy(&text));
                Some(token.map_err(|problem| ProtectionError::Token { path: path.clone(), problem })?)
            }
            None => None,
        };
        let tls = match (&self.tls_cert, &self.tls_key) {
            (Some(cert), Some(key)) => {
                let identity = Identity::from_pem(contents("tls_cert", cert).await?, secret("tls_key", key).await?);
                Some(Tls {
                    config: ServerTlsConfig::new().identity(identity).timeout(HANDSHAKE),
                    files: (cert.clone(), key.clone()),
                })
            }
            _ => None,
        };
        Ok(Guard { tls, doorkeeper: Doorkeeper { token } })
    }
}

/// What [`Protection`] names, read.
#[derive(Debug, Clone)]
pub struct Guard {
    tls: Option<Tls>,
    /// Who looks at every call.
    pub doorkeeper: Doorkeeper,
}

#[derive(Debug, Clone)]
struct Tls {
    config: ServerTlsConfig,
    /// Certificate and key, for messages.
    files: (PathBuf, PathBuf),
}

impl Guard {
    /// The server with TLS, if it is to have that.
    ///
    /// # Errors
    /// When certificate and key cannot be used.
    pub fn apply(&self, server: Server) -> Result<Server, ProtectionError> {
        let Some(Tls { config, files: (cert, key) }) = &self.tls else { return Ok(server) };
        server.tls_config(config.clone()).map_err(|error| {
            let mut cause: &dyn std::error::Error = &error;
            while let Some(source) = cause.source() {
                cause = source;
            }
            ProtectionError::Tls { cert: cert.clone(), key: key.clone(), problem: cause.to_string() }
        })
    }
}

/// Looks at the token of every call to the services behind it.
#[derive(Debug, Clone)]
pub struct Doorkeeper {
    token: Option<AccessToken>,
}

impl Interceptor for Doorkeeper {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let Some(token) = &self.token else { return Ok(request) };
        let shown = request.metadata().get(HEADER).map(|value| value.as_encoded_bytes());
        match token.admits(shown) {
            Ok(()) => Ok(request),
            Err(denied) => {
                if denied == Denied::Wrong {
                    tracing::warn!(from = ?request.remote_addr(), "a call with a wrong access token was refused");
                }
                Err(Status::unauthenticated(denied.to_string()))
            }
        }
    }
}

async fn contents(setting: &'static str, path: &Path) -> Result<Vec<u8>, ProtectionError> {
    let unreadable = |source| ProtectionError::Unreadable { setting, path: path.to_owned(), source };
    tokio::fs::read(path).await.map_err(unreadable)
}

/// A file that others should not read; says so where they can.
async fn secret(setting: &'static str, path: &Path) -> Result<Vec<u8>, ProtectionError> {
    if let Ok(metadata) = tokio::fs::metadata(path).await
        && metadata.permissions().mode() & 0o077 != 0
    {
        let path = path.display();
        tracing::warn!("{setting} {path} can be read by others on this machine: expected mode 0600 (chmod 600 {path})");
    }
    contents(setting, path).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(protection: &Protection, listen: &str, allow_remote: bool) -> String {
        match protection.check(listen.parse().unwrap(), allow_remote) {
            Ok(()) => "fine".into(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn what_is_missing_beyond_loopback_is_named() {
        let file = || Some(PathBuf::from("file"));
        let none = Protection::default();
        let tls = Protection { tls_cert: file(), tls_key: file(), token_file: None };
        let whole = Protection { token_file: file(), ..tls.clone() };
        let token = Protection { token_file: file(), ..none.clone() };
        let half = Protection { tls_key: file(), ..none.clone() };
        for (protection, listen, allow_remote, expected) in [
            (&none, "127.0.0.1:1", false, "fine"),
            (&token, "[::1]:1", false, "fine"),
            (&whole, "0.0.0.0:1", false, "fine"),
            (&none, "0.0.0.0:1", true, "fine"),
            (&tls, "0.0.0.0:1", true, "fine"),
            (&none, "0.0.0.0:1", false, "tls_cert, tls_key, token_file are not set: expected"),
            (&tls, "10.0.0.1:1", false, "10.0.0.1:1 can be reached from other machines, and token_file is not set"),
            (&token, "10.0.0.1:1", true, "would be read on the way"),
            (&half, "127.0.0.1:1", true, "tls_key is set and tls_cert is not"),
        ] {
            let said = said(protection, listen, allow_remote);
            assert!(said.contains(expected), "expected '{expected}' of {protection:?} at {listen}: {said}");
        }
    }
}

//! `insula coordinator init-tls`: a certificate, an access token, and settings for both sides, in one folder.
//!
//! ```text
//! DIR/coordinator.toml  server.pem  server.key      stays here
//! DIR/join/worker.toml  ca.pem      token           goes to every other machine
//! ```
//!
//! The CA signs one certificate and its key is thrown away: nobody can make another that this fleet would believe.
#![expect(clippy::disallowed_methods, reason = "makes the files that it was asked for, dated by the clock")]

use std::{
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

use super::out::say;
use crate::{args::InitTlsArgs, failure::Failure};

const DAY: Duration = Duration::from_secs(86_400);
/// How long the certificate is good for.
const VALID_YEARS: u32 = 10;

/// What is made: a file's place in the folder, and what stands in it.
type Files = Vec<(&'static str, String)>;

/// Makes the files; overwrites none.
///
/// # Errors
/// When a host is no name, or a file is there already or cannot be written.
pub fn run(args: &InitTlsArgs) -> Result<(), Failure> {
    let files = files(args).map_err(|e| Failure::Input(format!("--host {}: {e}", args.hosts.join(" --host "))))?;
    let places: Vec<PathBuf> = files.iter().map(|(name, _)| args.dir.join(name)).collect();
    if let Some(there) = places.iter().find(|path| path.exists()) {
        let problem = "is there already, and workers may rely on it: expected a new folder, or remove it";
        return Err(Failure::Input(format!("{}: {problem}", there.display())));
    }
    make_folder(&args.dir.join("join"))?;
    for (path, (_, text)) in places.iter().zip(&files) {
        let mut options = std::fs::OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(path);
        let written = file.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
        written.map_err(|e| Failure::operation(path.display(), e))?;
    }
    say!("{}", told(args));
    Ok(())
}

fn make_folder(path: &Path) -> Result<(), Failure> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|e| Failure::operation(path.display(), e))
}

fn files(args: &InitTlsArgs) -> Result<Files, rcgen::Error> {
    let (ca, server, key) = certificates(&names(args))?;
    let made = "made by insula coordinator init-tls; paths are meant from this file's folder";
    let coordinator = format!(
        "# insula coordinator --config coordinator.toml; {made}\nlisten = \"0.0.0.0:{}\"\n\
         tls_cert = \"server.pem\"\ntls_key = \"server.key\"\ntoken_file = \"join/token\"\n",
        args.port
    );
    let worker = format!(
        "# insula worker --config worker.toml; {made}\ncoordinator = \"{}\"\nca = \"ca.pem\"\ntoken_file = \"token\"\n",
        url(args)
    );
    // Two version-4 identifiers are 244 bits of the system's randomness.
    let token = format!("{}{}\n", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple());
    Ok(vec![
        ("coordinator.toml", coordinator),
        // The CA's certificate goes along, so that commands on this machine know whom to believe.
        ("server.pem", format!("{server}{ca}")),
        ("server.key", key),
        ("join/worker.toml", worker),
        ("join/ca.pem", ca),
        ("join/token", token),
    ])
}

/// Everything the coordinator is called by: as told, and from its own machine.
fn names(args: &InitTlsArgs) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for name in args.hosts.iter().map(String::as_str).chain(["localhost", "127.0.0.1", "::1"]) {
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    names
}

/// A CA's certificate, one that it signed for `names`, and the latter's key.
fn certificates(names: &[String]) -> Result<(String, String, String), rcgen::Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let dated = |mut params: CertificateParams, name: &str| {
        // A day back: the clocks of a lab do not agree.
        params.not_before = date_time_ymd(1970, 1, 1) + now.saturating_sub(DAY);
        params.not_after = date_time_ymd(1970, 1, 1) + now + VALID_YEARS * 365 * DAY;
        params.distinguished_name.push(DnType::CommonName, name);
        params
    };
    let mut ca = dated(CertificateParams::default(), "insula CA");
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate()?)?;
    let mut server = dated(CertificateParams::new(names)?, "insula coordinator");
    server.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    server.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let server = server.signed_by(&key, &ca)?;
    Ok((ca.pem(), server.pem(), key.serialize_pem()))
}

fn url(args: &InitTlsArgs) -> String {
    let host = &args.hosts[0];
    let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    format!("https://{host}:{}", args.port)
}

/// What was made and what to type next.
fn told(args: &InitTlsArgs) -> String {
    let dir = args.dir.display();
    let whole = std::path::absolute(&args.dir).unwrap_or_else(|_| args.dir.clone());
    let whole = whole.display();
    let (host, url) = (&args.hosts[0], url(args));
    format!(
        "made {dir}/ with a certificate for {} (good for {VALID_YEARS} years) and an access token\n\n\
         on this machine:\n  insula coordinator --config {dir}/coordinator.toml\n\n\
         on every other, which needs {dir}/join (it holds the token: whoever has it may do anything here):\n  \
         scp -r {host}:{whole}/join . && insula worker --config join/worker.toml\n\n\
         commands from there:\n  \
         export INSULA_COORDINATOR={url} INSULA_CA=join/ca.pem INSULA_TOKEN_FILE=join/token\n  insula status\n\n\
         for coordinator settings of your own:\n  tls_cert = \"{whole}/server.pem\"\n  tls_key = \"{whole}/server.key\"\n  \
         token_file = \"{whole}/join/token\"",
        names(args).join(", ")
    )
}

//! What the environment sets, read once: the only place of this crate that reads it.
#![expect(clippy::disallowed_methods, reason = "a driver has no other way to be told anything than the environment")]

use std::path::PathBuf;
use std::sync::OnceLock;

use insula_ptxsim::{Checks, Copies};

use crate::faults::Plan;

/// The settings of this process.
pub struct Settings {
    /// `INSULA_FAKECUDA_DEVICES`: how many devices there are; 1.
    pub devices: usize,
    /// `INSULA_FAKECUDA_MEMORY`: bytes of each device; 1 GiB.
    pub memory: u64,
    /// `INSULA_FAKECUDA_CAPABILITY`: compute capability, `8.0`.
    pub capability: (i32, i32),
    /// `INSULA_FAKECUDA_RACES=0` and `INSULA_FAKECUDA_COPIES=eager` change how kernels are checked; races are looked
    /// for and asynchronous copies land as late as they may.
    pub checks: Checks,
    /// `INSULA_FAKECUDA_JITTER_US`: each piece of a stream's work is delayed by up to so many microseconds, so that
    /// a missing wait between streams shows; 0.
    pub jitter_us: u64,
    /// `INSULA_FAKECUDA_LOG`: the file that one line per call is appended to.
    pub log: Option<PathBuf>,
    /// `INSULA_FAKECUDA_LEAKS=1`: allocations that outlive their context are listed on stderr.
    pub leaks: bool,
    /// `INSULA_FAKECUDA_NCCL_HOST`: the address that NCCL's ranks listen on; `127.0.0.1`.
    pub nccl_host: String,
}

/// The settings, read at the first call.
pub fn settings() -> &'static Settings {
    static SETTINGS: OnceLock<Settings> = OnceLock::new();
    SETTINGS.get_or_init(Settings::read)
}

/// `INSULA_FAKECUDA_FAIL` as a plan over the symbols that `known` knows. A text that cannot be read ends the process: a test whose fault is not injected
/// would pass for the wrong reason.
pub fn fault_plan(known: fn(&str) -> bool) -> Plan {
    let text = variable("FAIL").unwrap_or_default();
    Plan::parse(&text, known).unwrap_or_else(|error| refuse("FAIL", &error.to_string()))
}

impl Settings {
    fn read() -> Settings {
        Settings {
            devices: number("DEVICES", 1) as usize,
            memory: number("MEMORY", 1 << 30),
            capability: capability(),
            checks: checks(),
            jitter_us: number("JITTER_US", 0),
            log: variable("LOG").map(PathBuf::from),
            leaks: number("LEAKS", 0) != 0,
            nccl_host: variable("NCCL_HOST").unwrap_or_else(|| "127.0.0.1".to_owned()),
        }
    }
}

fn capability() -> (i32, i32) {
    let text = variable("CAPABILITY").unwrap_or_else(|| "8.0".to_owned());
    let parsed = text.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    parsed.unwrap_or_else(|| refuse("CAPABILITY", "expected major.minor"))
}

fn checks() -> Checks {
    let copies = match variable("COPIES").as_deref() {
        None | Some("lazy") => Copies::Lazy,
        Some("eager") => Copies::Eager,
        Some(_) => refuse("COPIES", "expected `lazy` or `eager`"),
    };
    Checks { races: number("RACES", 1) != 0, copies, ..Checks::default() }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(format!("INSULA_FAKECUDA_{name}")).ok()
}

fn number(name: &str, default: u64) -> u64 {
    match variable(name) {
        None => default,
        Some(text) => text.parse().unwrap_or_else(|_| refuse(name, &format!("`{text}` is no whole number"))),
    }
}

fn refuse(name: &str, why: &str) -> ! {
    eprintln!("fakecuda: INSULA_FAKECUDA_{name}: {why}");
    std::process::exit(2)
}

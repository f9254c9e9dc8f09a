//! `insula doctor`: what this machine has for insula, and what it lacks.

use std::{path::Path, process::Command};

use insula_kernels::Cuda;
use insula_worker::base::default_cache_dir;
use serde::Serialize;

mod gpus;

use super::out::say;
use crate::{args::DoctorArgs, failure::Failure};

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    /// Whether insula can work with it as it is.
    good: bool,
    found: String,
}

/// Looks, prints, and fails where something needed is missing.
pub async fn run(args: DoctorArgs) -> Result<(), Failure> {
    let mut findings =
        vec![cores(), vector_units(), memory(), state(&args.state.state), cache(), python(), gpu(), loopback().await];
    let mut examined = None;
    if args.gpu {
        let found = gpus::examine(args.quick)?;
        findings.extend(found.findings());
        examined = Some(found);
    }
    let mut job = None;
    if args.settings.job.is_some() || !args.settings.sets.is_empty() {
        let predicted = super::memory::of_settings(&args.settings)?;
        let (found, good) = super::memory::line(&predicted, free_bytes());
        findings.push(Finding { what: "the job's memory", good, found });
        job = Some(serde_json::json!({ "peak": predicted.memory.peak(), "parts": predicted.memory }));
    }
    if args.json {
        let version = crate::VERSION_TEXT;
        say!(
            "{}",
            serde_json::json!({ "version": version, "findings": findings, "job_memory_bytes": job, "gpus": examined })
        );
    } else {
        say!("insula {}", crate::VERSION_TEXT);
        for Finding { what, good, found } in &findings {
            say!("{} {what:<16} {found}", if *good { "ok  " } else { "LACK" });
        }
        if let Some(examined) = &examined {
            say!("{}", examined.text());
        }
    }
    let lacking: Vec<_> = findings.iter().filter(|f| !f.good).map(|f| f.what).collect();
    if lacking.is_empty() { Ok(()) } else { Err(Failure::Operation(format!("lacking: {}", lacking.join(", ")))) }
}

fn cores() -> Finding {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Finding { what: "cores", good: true, found: cores.to_string() }
}

fn vector_units() -> Finding {
    let found = insula_kernels::cpu::vector_units();
    Finding { what: "vector units", good: true, found: found.to_owned() }
}

/// Memory that is free, in bytes, where the system says so.
#[expect(clippy::disallowed_methods, reason = "reads what the kernel says of the machine's memory")]
pub fn free_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}

fn memory() -> Finding {
    match free_bytes() {
        // The quickstart stays below 1.3 GB (measured, docs/lab.md).
        Some(bytes) => {
            let hint = if bytes < 1_500_000_000 { "; the quickstart needs about 1.3 GB" } else { "" };
            let found = format!("{:.1} GB{hint}", bytes as f64 / 1e9);
            Finding { what: "free memory", good: hint.is_empty(), found }
        }
        None => Finding { what: "free memory", good: true, found: "this system does not say".into() },
    }
}

fn state(folder: &Path) -> Finding {
    let folder = folder.to_owned();
    folder_finding("state directory", &folder, super::run::make_state_directory(&folder).map_err(|e| e.to_string()))
}

fn cache() -> Finding {
    match default_cache_dir() {
        Some(folder) => folder_finding("base cache", &folder, Ok(())),
        None => {
            let found = "no folder: set INSULA_CACHE, XDG_CACHE_HOME or HOME".into();
            Finding { what: "base cache", good: false, found }
        }
    }
}

/// Whether a folder can be made and written.
#[expect(clippy::disallowed_methods, reason = "tries the folder by writing into it")]
fn folder_finding(what: &'static str, folder: &Path, made: Result<(), String>) -> Finding {
    let probe = folder.join(".doctor");
    let tried = made.and_then(|()| {
        let wrote = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&probe, b""));
        wrote.and_then(|()| std::fs::remove_file(&probe)).map_err(|e| format!("{}: {e}", folder.display()))
    });
    match tried {
        Ok(()) => Finding { what, good: true, found: folder.display().to_string() },
        Err(found) => Finding { what, good: false, found },
    }
}

fn python() -> Finding {
    let what = "python3 and pip";
    match Command::new("python3").args(["-m", "pip", "--version"]).output() {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout);
            let found = text.split(" from ").next().unwrap_or("found").trim().to_owned();
            Finding { what, good: true, found: format!("{found} (for pip: bases)") }
        }
        Ok(_) => Finding { what, good: false, found: "python3 has no pip; pip: bases cannot be fetched".into() },
        Err(_) => Finding { what, good: false, found: "no python3; pip: bases cannot be fetched".into() },
    }
}

fn gpu() -> Finding {
    let what = "GPU";
    match gpus::facts() {
        Ok(gpus) if gpus.is_empty() => Finding { what, good: true, found: "none: computes on the CPU".into() },
        Ok(gpus) => {
            let texts: Vec<String> = gpus.iter().map(gpus::described).collect();
            let lacks = if Cuda::has_libraries() { "" } else { "; cuBLASLt is missing, so it computes on the CPU" };
            Finding { what, good: true, found: format!("{}{lacks}", texts.join("; ")) }
        }
        Err(error) => Finding { what, good: true, found: format!("not used: {error}") },
    }
}

async fn loopback() -> Finding {
    let what = "loopback port";
    match tokio::net::TcpListener::bind(("127.0.0.1", 0)).await {
        Ok(_) => Finding { what, good: true, found: "can listen".into() },
        Err(e) => Finding { what, good: false, found: e.to_string() },
    }
}

//! What the operating system says of this process.

/// The most memory this process has had resident, in bytes; 0 where the system does not say.
#[expect(clippy::disallowed_methods, reason = "the shell reads what the kernel reports of this process")]
pub fn peak_rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|l| l.trim().strip_suffix("kB")).and_then(|n| n.trim().parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

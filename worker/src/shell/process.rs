//! What the operating system says of this process.

/// The most memory this process has had resident, in bytes; 0 where the system does not say.
#[expect(clippy::disallowed_methods, reason = "the shell reads what the kernel reports of this process")]
pub fn peak_rss_bytes() -> u64 {
    memory(&std::fs::read_to_string("/proc/self/status").unwrap_or_default(), "VmHWM:")
}

/// Memory that is resident now, in bytes, and processor time since the process began, in seconds; 0 where the system does
/// not say.
#[expect(clippy::disallowed_methods, reason = "the shell reads what the kernel reports of this process")]
pub fn usage() -> (u64, f64) {
    let text = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
    (memory(&text("/proc/self/status"), "VmRSS:"), processor(&text("/proc/self/stat")))
}

/// A line of a `/proc/PID/status` that tells kilobytes, in bytes.
fn memory(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|l| l.trim().strip_suffix("kB")).and_then(|n| n.trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// `utime` and `stime` of a `/proc/PID/stat`, which counts in hundredths of a second on every Linux. The name before them,
/// in parentheses, may hold anything.
fn processor(stat: &str) -> f64 {
    let fields = stat.rsplit_once(')').map_or("", |(_, after)| after);
    let ticks = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok());
    ticks.sum::<u64>() as f64 / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_writes_is_read() {
        let status = "Name:\tx\nVmHWM:\t  900 kB\nVmRSS:\t  812 kB\n";
        assert_eq!((memory(status, "VmRSS:"), memory(status, "VmHWM:")), (812 * 1024, 900 * 1024));
        let stat = "7 (a (b) c) S 1 7 7 0 -1 4194304 100 0 0 0 250 31 5 6 20 0 4 0 9 1000 200";
        assert!((processor(stat) - 2.81).abs() < 1e-9);
        assert_eq!((memory("", "VmRSS:"), processor("")), (0, 0.0));
    }
}

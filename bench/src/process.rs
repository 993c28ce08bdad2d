//! What the system knows of a process: CPU time and memory, from /proc.

use std::fs;
use std::time::Duration;

use crate::{Result, context};

/// /proc counts CPU time in units of 1/100 s on every Linux (`USER_HZ`), whatever the kernel's own tick.
const TICK: Duration = Duration::from_millis(10);

/// CPU time that a process has used, user and system, its ended threads included.
pub fn cpu(pid: u32) -> Result<Duration> {
    let stat = read(pid, "stat")?;
    parse_cpu(&stat).ok_or_else(|| format!("/proc/{pid}/stat has an unknown form").into())
}

/// Resident memory of a process, bytes.
pub fn resident_bytes(pid: u32) -> Result<u64> {
    let status = read(pid, "status")?;
    parse_kib(&status, "VmRSS:").map(|kib| kib * 1024).ok_or_else(|| format!("/proc/{pid}/status has no VmRSS").into())
}

/// Memory that the kernel holds for itself on this machine, bytes: its tables, and buffers of TCP.
pub fn kernel_bytes() -> Result<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").map_err(context("/proc/meminfo"))?;
    let tables = parse_kib(&meminfo, "Slab:").ok_or("/proc/meminfo has no Slab")? * 1024;
    let sockets = fs::read_to_string("/proc/net/sockstat").map_err(context("/proc/net/sockstat"))?;
    let pages = parse_tcp_pages(&sockets).ok_or("/proc/net/sockstat has an unknown form")?;
    let maps = fs::read_to_string("/proc/self/smaps").map_err(context("/proc/self/smaps"))?;
    let page = parse_kib(&maps, "KernelPageSize:").ok_or("/proc/self/smaps has no KernelPageSize")? * 1024;
    Ok(tables + pages * page)
}

/// The line is `TCP: inuse 4 orphan 0 tw 0 alloc 4 mem 2`.
fn parse_tcp_pages(sockstat: &str) -> Option<u64> {
    sockstat.lines().find_map(|line| line.strip_prefix("TCP:"))?.rsplit_once(" mem ")?.1.trim().parse().ok()
}

/// Raises the number of files that this process, and those it starts, may have open as far as the system allows.
pub fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Where that is refused the limit stays, and who needs more files says so.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// Files that this process may have open.
pub fn open_files_max() -> Result<u64> {
    let limits = fs::read_to_string("/proc/self/limits").map_err(context("/proc/self/limits"))?;
    parse_open_files(&limits).ok_or_else(|| "/proc/self/limits has an unknown form".into())
}

fn parse_open_files(limits: &str) -> Option<u64> {
    let soft = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?.split_whitespace().next()?;
    if soft == "unlimited" { Some(u64::MAX) } else { soft.parse().ok() }
}

/// Bytes that the files of a folder take on disk.
pub fn disk_bytes(folder: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => disk_bytes(&entry.path()),
            // Blocks are of 512 bytes here, whatever the file system's.
            Ok(metadata) => metadata.blocks() * 512,
            // Files come and go while a server runs.
            Err(_) => 0,
        })
        .sum()
}

fn read(pid: u32, file: &str) -> Result<String> {
    fs::read_to_string(format!("/proc/{pid}/{file}")).map_err(context(format!("process {pid}")))
}

/// Fields 14 and 15. The second field, the name, may hold anything, so the count begins after its last parenthesis.
fn parse_cpu(stat: &str) -> Option<Duration> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let user: u32 = fields.next()?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    Some(TICK * (user + system))
}

fn parse_kib(status: &str, key: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix(key))?.trim().strip_suffix(" kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_does_not_shift_the_fields() {
        let stat = "42 (a ) (b) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 7";
        assert_eq!(parse_cpu(stat), Some(Duration::from_secs(3)));
        assert_eq!(parse_cpu("42 (short) S 1"), None);
    }

    #[test]
    fn resident_memory_is_read_in_kib() {
        assert_eq!(parse_kib("Name:\tx\nVmRSS:\t  1234 kB\n", "VmRSS:"), Some(1234));
        assert_eq!(parse_kib("Name:\tx\n", "VmRSS:"), None);
    }

    #[test]
    fn buffers_of_tcp_are_counted_in_pages() {
        let text = "sockets: used 27\nTCP: inuse 4 orphan 0 tw 0 alloc 4 mem 12\nUDP: inuse 0 mem 3\n";
        assert_eq!(parse_tcp_pages(text), Some(12));
        assert!(kernel_bytes().unwrap() > 0);
    }

    #[test]
    fn the_limit_of_open_files_is_the_soft_one() {
        let limits = "Limit  Soft Limit  Hard Limit  Units\nMax open files            1024                 4096                 files\n";
        assert_eq!(parse_open_files(limits), Some(1024));
        assert!(open_files_max().unwrap() > 0);
    }

    #[test]
    fn this_process_has_cpu_time_and_memory() {
        assert!(cpu(std::process::id()).is_ok());
        assert!(resident_bytes(std::process::id()).unwrap() > 100_000);
        assert!(cpu(u32::MAX).is_err());
    }
}

//! What the kernel counts: busy time of cores, steal, sectors read, kernel worker threads.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Ticks per second of /proc/stat, a constant of the kernel's interface.
const TICKS_PER_S: f64 = 100.0;
const SECTOR_LEN: u64 = 512;

/// Counters of the machine at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters {
    /// Seconds the server's core was neither idle nor stolen.
    pub(super) server_core_busy_s: f64,
    /// The same of the client's core.
    pub(super) client_core_busy_s: f64,
    /// Seconds the server's core was idle while something on it waited for a device, or counted as if it did.
    pub(super) server_core_iowait_s: f64,
    /// Seconds stolen by the host, all cores.
    pub(super) steal_s: f64,
    /// Bytes read by the corpus's device; `None` where it has none of its own.
    pub(super) disk_read_len: Option<u64>,
    /// Bytes written by it.
    pub(super) disk_write_len: Option<u64>,
}

impl Counters {
    pub(super) fn read(server_core: usize, client_core: usize, device: Option<&str>) -> Self {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let disk = device.and_then(read_diskstats);
        Self {
            server_core_busy_s: core_busy_s(&stat, server_core).unwrap_or(0.0),
            server_core_iowait_s: field_s(&stat, &format!("cpu{server_core}"), 5).unwrap_or(0.0),
            client_core_busy_s: core_busy_s(&stat, client_core).unwrap_or(0.0),
            steal_s: field_s(&stat, "cpu", 8).unwrap_or(0.0),
            disk_read_len: disk.map(|(read, _)| read),
            disk_write_len: disk.map(|(_, written)| written),
        }
    }
}

/// user, nice, system, idle, iowait, irq, softirq, steal: fields 1 to 8 of a cpu line.
fn field_s(stat: &str, cpu: &str, field: usize) -> Option<f64> {
    let line = stat.lines().find(|line| line.split_whitespace().next() == Some(cpu))?;
    let ticks: f64 = line.split_whitespace().nth(field)?.parse().ok()?;
    Some(ticks / TICKS_PER_S)
}

fn core_busy_s(stat: &str, core: usize) -> Option<f64> {
    let cpu = format!("cpu{core}");
    [1, 2, 3, 6, 7].into_iter().map(|field| field_s(stat, &cpu, field)).sum()
}

/// The name of the device that holds `path`, as /proc/diskstats calls it.
pub(super) fn device_of(path: &Path) -> Option<String> {
    let dev = fs::metadata(path).ok()?.dev();
    let (major, minor) = (rustix::fs::major(dev).to_string(), rustix::fs::minor(dev).to_string());
    let stats = fs::read_to_string("/proc/diskstats").ok()?;
    stats.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let found = fields.next()? == major && fields.next()? == minor;
        found.then(|| fields.next().map(str::to_string)).flatten()
    })
}

fn read_diskstats(device: &str) -> Option<(u64, u64)> {
    parse_diskstats(&fs::read_to_string("/proc/diskstats").ok()?, device)
}

fn parse_diskstats(stats: &str, device: &str) -> Option<(u64, u64)> {
    let line = stats.lines().find(|line| line.split_whitespace().nth(2) == Some(device))?;
    let field = |at| line.split_whitespace().nth(at).and_then(|text: &str| text.parse::<u64>().ok());
    Some((field(5)? * SECTOR_LEN, field(9)? * SECTOR_LEN))
}

/// Bytes of memory a process has resident, and bytes all TCP sockets of the machine hold.
pub(super) fn memory_of(pid: u32) -> [Option<f64>; 2] {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let sockets = fs::read_to_string("/proc/net/sockstat").unwrap_or_default();
    [resident_len(&status), tcp_len(&sockets)]
}

fn resident_len(status: &str) -> Option<f64> {
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    kib.trim().trim_end_matches(" kB").parse().ok().map(|kib: f64| kib * 1024.0)
}

fn tcp_len(sockets: &str) -> Option<f64> {
    let tcp = sockets.lines().find_map(|line| line.strip_prefix("TCP:"))?;
    let pages = tcp.split_whitespace().skip_while(|word| *word != "mem").nth(1)?;
    pages.parse().ok().map(|pages: f64| pages * rustix::param::page_size() as f64)
}

/// Kernel workers of a process's rings. They outlive their work by seconds, so the count at a window's end is
/// the window's maximum.
pub(super) fn iowq_threads(pid: u32) -> u64 {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    tasks
        .flatten()
        .filter(|task| {
            fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.starts_with("iou-wrk"))
        })
        .count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "cpu  100 0 50 1000 5 1 2 300 0 0\n\
                        cpu0 60 1 30 500 3 4 5 150 0 0\n\
                        cpu10 7 0 0 0 0 0 0 0 0 0\n";

    /// Busy is everything but idle, waiting and stolen; `cpu1` is not `cpu10`.
    #[test]
    fn busy_time_leaves_out_idle_and_steal() {
        assert_eq!(core_busy_s(STAT, 0), Some(1.0));
        assert_eq!(core_busy_s(STAT, 10), Some(0.07));
        assert_eq!(core_busy_s(STAT, 1), None);
        assert_eq!(field_s(STAT, "cpu", 8), Some(3.0));
    }

    /// Sectors read and written are fields 6 and 10.
    #[test]
    fn diskstats_are_sectors() {
        let line = " 254 0 vda 29264 5987 3266418 10907 6586 8881 879024 3219 0 4988 14501 0 0 0 0 0 0\n";
        assert_eq!(parse_diskstats(line, "vda"), Some((3_266_418 * 512, 879_024 * 512)));
        assert_eq!(parse_diskstats(line, "vda1"), None);
    }

    /// Resident memory is in KiB, that of sockets in pages.
    #[test]
    fn memory_is_bytes() {
        assert_eq!(resident_len("VmHWM:\t  9 kB\nVmRSS:\t   512 kB\n"), Some(524_288.0));
        let pages =
            tcp_len("sockets: used 9\nTCP: inuse 5 orphan 0 tw 0 alloc 6 mem 3\nUDP: inuse 0 mem 7\n");
        assert_eq!(pages, Some(3.0 * rustix::param::page_size() as f64));
        assert!(memory_of(std::process::id())[0].is_some_and(|len| len > 65_536.0));
    }

    /// The real files have the shape this reads.
    #[test]
    fn the_running_kernel_has_these_files() {
        let core = crate::sys::allowed_cores()[0];
        let counters = Counters::read(core, core, None);
        assert!(counters.server_core_busy_s > 0.0);
        assert_eq!(iowq_threads(std::process::id()), 0);
    }
}

//! The host record: everything about the machine that a number depends on.

use std::fs;
use std::path::Path;

use rustix::process::{Resource, getrlimit};
use serde_json::{Value, json};

fn read(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_string()).filter(|text| !text.is_empty())
}

fn line_of(file: &str, key: &str) -> Option<String> {
    let text = read(file)?;
    let line = text.lines().find(|line| line.split(':').next().is_some_and(|name| name.trim() == key))?;
    line.split_once(':').map(|(_, value)| value.trim().to_string())
}

/// The choice in square brackets of a sysfs file that lists choices.
fn chosen(path: &str) -> Option<String> {
    let text = read(path)?;
    let inside = text.split_once('[')?.1.split_once(']')?.0;
    Some(inside.to_string())
}

/// Mount point, filesystem type, source and options of what holds `path`.
fn mount_of(path: &Path) -> Option<[String; 4]> {
    let path = path.canonicalize().ok()?;
    let mounts = read("/proc/self/mounts")?;
    let mut best: Option<[String; 4]> = None;
    for line in mounts.lines() {
        let fields: Vec<_> = line.split(' ').collect();
        let [source, target, kind, options, ..] = fields[..] else { continue };
        let longer = best.as_ref().is_none_or(|best| target.len() >= best[0].len());
        if path.starts_with(target) && longer {
            best = Some([target.into(), kind.into(), source.into(), options.into()]);
        }
    }
    best
}

/// Filesystem type of what holds `path`, if it can be told.
pub fn filesystem_of(path: &Path) -> Option<String> {
    mount_of(path).map(|mount| mount[1].clone())
}

/// Whether the filesystem keeps a journal, and in which mode its data goes through it.
fn journal(device: Option<&str>, kind: &str, options: &str) -> Option<String> {
    match kind {
        "ext3" | "ext4" => {
            let from_mount = options.split(',').find_map(|option| option.strip_prefix("data="));
            let stats = device.and_then(|device| read(format!("/proc/fs/{kind}/{device}/options")));
            let from_proc = stats.as_deref().and_then(|text| {
                text.lines().find_map(|line| line.strip_prefix("data=")).map(str::to_string)
            });
            let mode = from_mount.map(str::to_string).or(from_proc);
            let has_journal = fs::read_dir("/proc/fs/jbd2").ok().is_some_and(|mut dir| {
                let starts =
                    |name: &str| device.is_some_and(|device| name.starts_with(&format!("{device}-")));
                dir.any(|entry| entry.is_ok_and(|entry| starts(&entry.file_name().to_string_lossy())))
            });
            let mode = mode.unwrap_or_else(|| "mode unknown".to_string());
            Some(if has_journal { format!("jbd2, data={mode}") } else { format!("none seen, data={mode}") })
        }
        "xfs" => Some("xfs log".to_string()),
        "btrfs" => Some("copy on write".to_string()),
        _ => None,
    }
}

fn mitigations() -> Value {
    let mut found = serde_json::Map::new();
    if let Ok(dir) = fs::read_dir("/sys/devices/system/cpu/vulnerabilities") {
        for entry in dir.flatten() {
            if let Some(text) = read(entry.path()).filter(|text| text != "Not affected") {
                found.insert(entry.file_name().to_string_lossy().into_owned(), json!(text));
            }
        }
    }
    Value::Object(found)
}

/// What the run adds to the record.
pub struct RunFacts<'a> {
    /// Directory of the corpus.
    pub data_dir: &'a Path,
    /// Name of its device in /proc/diskstats.
    pub device: Option<&'a str>,
    /// Congestion control of both sides.
    pub congestion: &'a str,
    /// Core of the server.
    pub server_core: usize,
    /// Core of the client.
    pub client_core: usize,
    /// Kernel features the run did without.
    pub mask_features: &'a [String],
}

/// The `host` line.
pub fn host_json(facts: &RunFacts<'_>) -> Value {
    let uname = rustix::system::uname();
    let text = |c: &std::ffi::CStr| c.to_string_lossy().into_owned();
    let mount = mount_of(facts.data_dir);
    let kind = mount.as_ref().map(|mount| mount[1].clone());
    let options = mount.as_ref().map(|mount| mount[3].clone());
    let queue = |name: &str| facts.device.and_then(|d| read(format!("/sys/class/block/{d}/queue/{name}")));
    let memlock = getrlimit(Resource::Memlock).current;
    let journal = kind.as_deref().zip(options.as_deref()).and_then(|(k, o)| journal(facts.device, k, o));
    json!({
        "kind": "host",
        "harness_version": env!("CARGO_PKG_VERSION"),
        "debug_build": cfg!(debug_assertions),
        "kernel": text(uname.release()),
        "kernel_build": text(uname.version()),
        "arch": text(uname.machine()),
        "cpu": line_of("/proc/cpuinfo", "model name"),
        "cpu_count": crate::sys::allowed_cores().len(),
        "server_core": facts.server_core,
        "client_core": facts.client_core,
        "priority_raised": crate::sys::may_raise_priority(),
        "governor": read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "smt": read("/sys/devices/system/cpu/smt/control"),
        "hypervisor": read("/sys/hypervisor/type").or_else(|| {
            line_of("/proc/cpuinfo", "flags").filter(|flags| flags.contains(" hypervisor")).map(|_| "yes".into())
        }),
        "memory_total": line_of("/proc/meminfo", "MemTotal"),
        "memory_available": line_of("/proc/meminfo", "MemAvailable"),
        "clock": read("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        "transparent_hugepages": chosen("/sys/kernel/mm/transparent_hugepage/enabled"),
        "shmem_hugepages": chosen("/sys/kernel/mm/transparent_hugepage/shmem_enabled"),
        "memlock_bytes": memlock,
        "open_files_max": getrlimit(Resource::Nofile).current,
        "io_uring_disabled": read("/proc/sys/kernel/io_uring_disabled"),
        "filesystem": kind,
        "mount_options": options,
        "journal": journal,
        "device": facts.device,
        "device_read_ahead_kib": queue("read_ahead_kb"),
        "device_scheduler": facts.device.and_then(|d| chosen(&format!("/sys/class/block/{d}/queue/scheduler"))),
        "device_logical_block": queue("logical_block_size"),
        "device_write_cache": queue("write_cache"),
        "network": "loopback",
        "congestion_control": facts.congestion,
        "congestion_control_default": read("/proc/sys/net/ipv4/tcp_congestion_control"),
        "mitigations": mitigations(),
        "masked_features": facts.mask_features,
        "load_average": read("/proc/loadavg"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The record is made on any Linux, with null where the machine does not say.
    #[test]
    fn a_host_record_is_made_here() {
        let facts = RunFacts {
            data_dir: Path::new("."),
            device: None,
            congestion: "cubic",
            server_core: 0,
            client_core: 1,
            mask_features: &[],
        };
        let host = host_json(&facts);
        assert_eq!(host["kind"], "host");
        assert!(host["kernel"].as_str().unwrap().contains('.'));
        assert!(host["filesystem"].is_string());
        assert_eq!(host["device_read_ahead_kib"], Value::Null);
    }
}

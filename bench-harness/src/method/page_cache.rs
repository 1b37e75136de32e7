//! Puts the page cache into the state a window needs, and looks whether it worked.

use std::io;
use std::ops::Range;

use rohrpost_engine_linux::residency::ResidencyMap;
use rustix::fs::{Advice, fadvise, fdatasync};
use std::num::NonZeroU64;

use crate::corpus::ServedLog;
use crate::error::{BenchError, Result};

/// Drops a range of the log from the page cache. Dirty pages are written first: a range given with
/// `--segments` may have been appended a moment ago.
pub(super) fn drop_range(log: &ServedLog, range: Range<u64>) -> Result<()> {
    for (segment, range) in log.file_ranges(range) {
        let file = log.file(segment);
        let _ = fdatasync(file);
        // Whole pages within the range are dropped; the file's last, partial page needs the range to end
        // behind it.
        let at_end = range.end == log.segment_len(segment);
        let len = if at_end { None } else { NonZeroU64::new(range.end - range.start) };
        fadvise(file, range.start, len, Advice::DontNeed)
            .map_err(io::Error::from)
            .map_err(BenchError::file("drop from the page cache", log.path(segment)))?;
    }
    Ok(())
}

/// Reads a range of the log into the page cache.
pub(super) fn warm_range(log: &ServedLog, range: Range<u64>) -> Result<()> {
    let mut buffer = vec![0; 1 << 20];
    for (segment, range) in log.file_ranges(range) {
        let mut position = range.start;
        while position < range.end {
            let len = (range.end - position).min(buffer.len() as u64) as usize;
            log.read_exact(&mut buffer[..len], segment, position)
                .map_err(BenchError::file("read", log.path(segment)))?;
            position += len as u64;
        }
    }
    Ok(())
}

/// Share of a range's pages that are resident, `None` where the kernel does not say.
pub(super) fn resident_share(log: &ServedLog, range: Range<u64>) -> Option<f64> {
    let (mut resident, mut count) = (0, 0);
    for (segment, range) in log.file_ranges(range) {
        let mut map = ResidencyMap::new(log.file(segment), log.segment_len(segment)).ok()?;
        let pages = map.resident_pages(range).ok()?;
        resident += pages.0;
        count += pages.1;
    }
    (count > 0).then(|| resident as f64 / count as f64)
}

/// Bytes of page cache that may be filled without squeezing anybody: half of MemAvailable.
pub(super) fn free_len_max() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok());
    kib.map_or(0, |kib| (kib << 10) / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::generate::{Shape, ensure};

    /// The running kernel says how much memory is available.
    #[test]
    fn available_memory_is_known() {
        assert!(free_len_max() > 1 << 19);
    }

    /// A dropped range is gone, its neighbour stays, a warmed one is back. On a filesystem without a cache to
    /// drop (tmpfs) nothing leaves, which the residency then says.
    #[test]
    fn ranges_are_dropped_and_warmed() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let shape = Shape { cold_segments: 2, segment_len: 4 << 20, hot_len: 4 << 20 };
        let log = ServedLog::open(&ensure(dir.path(), shape, |_, _| {}).unwrap()).unwrap();
        let cold = 0..8 << 20;
        let hot = 9 << 20..log.len();
        warm_range(&log, 0..log.len()).unwrap();
        assert_eq!(resident_share(&log, cold.clone()), Some(1.0));
        drop_range(&log, cold.clone()).unwrap();
        let dropped = resident_share(&log, cold.clone()).unwrap();
        let on_tmpfs = rustix::fs::statfs(dir.path()).unwrap().f_type == 0x0102_1994;
        assert!(on_tmpfs || dropped < 0.05, "{dropped} still resident");
        assert!(resident_share(&log, hot).unwrap() > 0.95);
        warm_range(&log, cold.clone()).unwrap();
        assert!(resident_share(&log, cold).unwrap() > 0.95);
    }
}

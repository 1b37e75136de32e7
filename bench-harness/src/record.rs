//! What a window records: one histogram of all latencies and twenty points a second.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Length of a point of a series: twenty a second.
const POINT_NS: u64 = 50_000_000;
/// Longest latency a histogram holds; longer ones count as this.
const LATENCY_NS_MAX: u64 = 120_000_000_000;

/// A twentieth of a second.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// End of the point, milliseconds since the window's start.
    pub t_ms: u64,
    /// Responses (or acknowledgements) in it.
    pub responses: u64,
    /// Body bytes (or acknowledged bytes) in it.
    pub bytes: u64,
    /// Of these, bytes of cold readers.
    pub cold_bytes: u64,
    /// Median latency, microseconds; null without responses.
    pub p50_us: Option<f64>,
    /// 99th percentile of this point alone.
    pub p99_us: Option<f64>,
    /// Longest latency.
    pub max_us: Option<f64>,
}

/// A window's record, as it travels between processes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Recorded {
    /// Latencies: (nanoseconds, how many).
    pub latencies: Vec<(u64, u64)>,
    /// Responses or acknowledgements with a latency.
    pub count: u64,
    /// Body bytes of those readers.
    pub bytes: u64,
    /// Body bytes of cold readers.
    pub cold_bytes: u64,
    /// Twenty points a second.
    pub series: Vec<Point>,
}

/// Records a window.
pub struct WindowRecorder {
    start_ns: u64,
    all: Histogram<u64>,
    point: Histogram<u64>,
    point_bytes: u64,
    point_cold_bytes: u64,
    recorded: Recorded,
}

/// A histogram of nanoseconds with three significant digits.
///
/// # Panics
/// Never: the bounds are constants that the library accepts.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, LATENCY_NS_MAX, 3).expect("constant bounds")
}

impl WindowRecorder {
    /// A record that starts now.
    pub fn new(start_ns: u64) -> Self {
        let point = Histogram::new_with_bounds(1_000, LATENCY_NS_MAX, 2).expect("constant bounds");
        Self {
            start_ns,
            all: histogram(),
            point,
            point_bytes: 0,
            point_cold_bytes: 0,
            recorded: Recorded::default(),
        }
    }

    /// Starts again.
    pub fn restart(&mut self, start_ns: u64) {
        self.start_ns = start_ns;
        self.all.reset();
        self.point.reset();
        (self.point_bytes, self.point_cold_bytes) = (0, 0);
        self.recorded = Recorded::default();
    }

    /// One latency.
    #[inline]
    pub fn latency(&mut self, ns: u64, now_ns: u64) {
        self.roll(now_ns);
        self.all.saturating_record(ns);
        self.point.saturating_record(ns);
        self.recorded.count += 1;
    }

    /// Body bytes that arrived.
    #[inline]
    pub fn bytes(&mut self, hot: u64, cold: u64, now_ns: u64) {
        self.roll(now_ns);
        self.point_bytes += hot;
        self.point_cold_bytes += cold;
        self.recorded.bytes += hot;
        self.recorded.cold_bytes += cold;
    }

    fn roll(&mut self, now_ns: u64) {
        let passed = now_ns.saturating_sub(self.start_ns) / POINT_NS;
        while (self.recorded.series.len() as u64) < passed {
            self.end_point();
        }
    }

    fn end_point(&mut self) {
        let some = !self.point.is_empty();
        let us = |ns: u64| some.then_some(ns as f64 / 1e3);
        let point = Point {
            t_ms: (self.recorded.series.len() as u64 + 1) * POINT_NS / 1_000_000,
            responses: self.point.len(),
            bytes: self.point_bytes + self.point_cold_bytes,
            cold_bytes: self.point_cold_bytes,
            p50_us: us(self.point.value_at_quantile(0.5)),
            p99_us: us(self.point.value_at_quantile(0.99)),
            max_us: us(self.point.max()),
        };
        self.recorded.series.push(point);
        self.point.reset();
        (self.point_bytes, self.point_cold_bytes) = (0, 0);
    }

    /// Ends the record. Latencies may still be added afterwards (requests of the window that are answered
    /// late); points may not.
    pub fn end(&mut self, now_ns: u64) {
        self.roll(now_ns);
        if !self.point.is_empty() || self.point_bytes + self.point_cold_bytes > 0 {
            self.end_point();
        }
    }

    /// A latency that belongs to the window but ended after it.
    pub fn late_latency(&mut self, ns: u64) {
        self.all.saturating_record(ns);
        self.recorded.count += 1;
    }

    /// The record so far.
    pub fn recorded(&self) -> Recorded {
        let latencies = self
            .all
            .iter_recorded()
            .map(|v| (v.value_iterated_to(), v.count_since_last_iteration()))
            .collect();
        Recorded { latencies, ..self.recorded.clone() }
    }
}

impl Recorded {
    /// The latencies as a histogram.
    pub fn histogram(&self) -> Histogram<u64> {
        let mut histogram = histogram();
        for (ns, count) in &self.latencies {
            histogram.saturating_record_n(*ns, *count);
        }
        histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts, bytes and points add up, gaps make empty points, and the histogram survives its journey.
    #[test]
    fn a_window_adds_up() {
        let mut recorder = WindowRecorder::new(1_000);
        recorder.latency(50_000, 2_000);
        recorder.bytes(100, 7, 2_000);
        recorder.latency(70_000, 1_000 + 3 * POINT_NS + 1);
        recorder.end(1_000 + 3 * POINT_NS + 5);
        recorder.late_latency(9_000_000);
        let recorded = recorder.recorded();
        assert_eq!((recorded.count, recorded.bytes, recorded.cold_bytes), (3, 100, 7));
        let responses: Vec<_> = recorded.series.iter().map(|point| point.responses).collect();
        assert_eq!(responses, [1, 0, 0, 1]);
        assert_eq!((recorded.series[0].bytes, recorded.series[1].p50_us), (107, None));
        let histogram = recorded.histogram();
        assert_eq!(histogram.len(), 3);
        assert!((69_000..=71_000).contains(&histogram.value_at_quantile(0.5)));
        recorder.restart(0);
        assert_eq!(recorder.recorded(), Recorded::default());
    }
}

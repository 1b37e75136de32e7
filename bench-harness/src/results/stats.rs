//! Order statistics: medians, intervals of paired ratios with their coverage, HdrHistogram's text format.

use std::fmt::Write;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Coverage an interval should have where the number of rounds allows it. Five rounds give 93.75 % by their
/// minimum and maximum.
const COVERAGE_MIN: f64 = 0.93;

/// A median of paired ratios and the interval that holds the true median with [`coverage`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interval {
    /// The median ratio.
    pub median: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Paired rounds.
    pub n: usize,
}

impl Interval {
    /// Whether the interval holds 1: no difference has been shown.
    pub fn holds_one(&self) -> bool {
        self.low <= 1.0 && 1.0 <= self.high
    }
}

/// The median; the mean of the middle two of an even number. `None` of nothing.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    (n > 0).then(|| (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0)
}

/// How many of the smallest and of the largest of `n` values the interval leaves out: as many as keep the
/// coverage.
fn trimmed(n: usize) -> usize {
    (0..n / 2).rev().find(|k| coverage_of(n, *k) >= COVERAGE_MIN).unwrap_or(0)
}

/// Probability that the true median lies between the `k`-th smallest and the `k`-th largest (from 0) of `n`
/// values: 1 - 2 P(Binomial(n, 1/2) <= k).
fn coverage_of(n: usize, k: usize) -> f64 {
    let mut term = 0.5f64.powi(n as i32);
    let mut below = 0.0;
    for i in 0..=k {
        below += term;
        term *= (n - i) as f64 / (i + 1) as f64;
    }
    1.0 - 2.0 * below
}

/// Coverage of the interval that [`ratio_interval`] gives for `n` rounds; 0 for one round.
pub fn coverage(n: usize) -> f64 {
    if n == 0 { 0.0 } else { coverage_of(n, trimmed(n)).max(0.0) }
}

/// Median and interval of paired ratios; `None` of nothing.
pub fn ratio_interval(ratios: &[f64]) -> Option<Interval> {
    let mut sorted = ratios.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    let k = trimmed(n);
    Some(Interval { median: median(ratios)?, low: sorted[k], high: sorted[n - 1 - k], n })
}

/// The percentile distribution in HdrHistogram's text format, values in microseconds.
pub fn hgrm(histogram: &Histogram<u64>) -> String {
    let mut out = String::from("       Value     Percentile TotalCount 1/(1-Percentile)\n\n");
    let mut total = 0;
    for value in histogram.iter_quantiles(5) {
        total += value.count_since_last_iteration();
        let quantile = value.quantile_iterated_to();
        let inverse = if quantile < 1.0 { format!("{:14.2}", 1.0 / (1.0 - quantile)) } else { String::new() };
        let us = value.value_iterated_to() as f64 / 1e3;
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{us:12.3} {quantile:2.12} {total:10} {inverse}");
    }
    let us = |ns: f64| ns / 1e3;
    let _ = writeln!(
        out,
        "#[Mean    = {:12.3}, StdDeviation   = {:12.3}]",
        us(histogram.mean()),
        us(histogram.stdev())
    );
    let _ = writeln!(
        out,
        "#[Max     = {:12.3}, Total count    = {:12}]",
        us(histogram.max() as f64),
        histogram.len()
    );
    let _ = writeln!(
        out,
        "#[Buckets = {:12}, SubBuckets     = {:12}]",
        histogram.buckets(),
        histogram.distinct_values() / usize::from(histogram.buckets()).max(1)
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Five rounds: minimum and maximum, 93.75 %. More rounds leave out extremes as soon as coverage allows.
    #[test]
    fn intervals_are_order_statistics() {
        assert_eq!(coverage(1), 0.0);
        assert_eq!(coverage(2), 0.5);
        assert_eq!(coverage(5), 0.9375);
        assert_eq!(trimmed(5), 0);
        assert_eq!((trimmed(7), trimmed(8), trimmed(9)), (0, 0, 1));
        assert!((coverage(9) - 0.9609375).abs() < 1e-12);
        let interval = ratio_interval(&[3.0, 1.0, 2.0, 5.0, 4.0]).unwrap();
        assert_eq!(interval, Interval { median: 3.0, low: 1.0, high: 5.0, n: 5 });
        let nine = ratio_interval(&[9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]).unwrap();
        assert_eq!((nine.low, nine.high), (2.0, 8.0));
        assert_eq!(ratio_interval(&[]), None);
    }

    /// The interval holds 1 at its ends as well.
    #[test]
    fn one_at_the_end_is_no_difference() {
        let interval = |low, high| Interval { median: 1.0, low, high, n: 5 };
        assert!(interval(0.5, 1.0).holds_one());
        assert!(interval(1.0, 2.0).holds_one());
        assert!(!interval(1.01, 2.0).holds_one());
        assert!(!interval(0.5, 0.99).holds_one());
    }

    /// Medians of odd and even numbers.
    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0]), Some(2.5));
        assert_eq!(median(&[4.0, 1.0, 3.0]), Some(3.0));
    }

    /// The text format ends with the total and the maximum of what was recorded.
    #[test]
    fn hgrm_lists_the_distribution() {
        let mut histogram = crate::record::histogram();
        for us in 1..=1000 {
            histogram.record(us * 1000).unwrap();
        }
        let text = hgrm(&histogram);
        assert!(text.contains("Total count    =         1000"), "{text}");
        let last = text.lines().rfind(|line| !line.starts_with('#')).unwrap();
        assert!(last.trim_start().starts_with("1000"), "{last}");
    }
}

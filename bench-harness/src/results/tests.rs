//! Results: percentiles only with enough samples, ratios of paired rounds, the documented fields.

use super::*;

fn round(path: &str, number: usize, gb_per_s: f64, samples: u64) -> Round {
    let mut latencies = histogram();
    latencies.record_n(100_000, samples).unwrap();
    let mut metrics = Metrics { gb_per_s: Some(gb_per_s), ..Metrics::default() };
    round_latencies(&mut metrics, &latencies);
    Round {
        workload: "w".into(),
        path: path.into(),
        round: number,
        metrics,
        note: String::new(),
        flags: vec!["steal".into()],
        extra: BTreeMap::new(),
        latencies,
        series: Vec::new(),
    }
}

/// A p99 pools the rounds and appears at its sample count, not one sample earlier.
#[test]
fn percentiles_appear_at_their_sample_count() {
    for (samples, shown) in [(1_999, false), (2_000, true)] {
        let rounds: Vec<_> = (0..5).map(|n| round("a", n, 1.0, samples)).collect();
        let summary = summarize(&rounds.iter().collect::<Vec<_>>(), &[]).unwrap();
        assert_eq!(summary.median.p99_us.is_some(), shown);
        assert_eq!(summary.median.p999_us, None);
        assert!(summary.median.p50_us.is_some());
    }
    let rounds = [round("a", 0, 1.0, P999_SAMPLES_MIN)];
    let summary = summarize(&rounds.iter().collect::<Vec<_>>(), &[]).unwrap();
    assert!(summary.median.p999_us.is_some());
}

/// Ratios pair rounds of the same number; a round that one side lacks pairs with nothing.
#[test]
fn ratios_pair_rounds() {
    let ours: Vec<_> = [2.0, 30.0, 2.0, 2.2].iter().enumerate().map(|(n, v)| round("a", n, *v, 1)).collect();
    let theirs: Vec<_> = [1.0, 10.0, 1.0].iter().enumerate().map(|(n, v)| round("b", n, *v, 1)).collect();
    let baselines = [("b", theirs.iter().collect::<Vec<_>>()), ("a", ours.iter().collect())];
    let summary = summarize(&ours.iter().collect::<Vec<_>>(), &baselines).unwrap();
    assert_eq!(summary.ratio.keys().collect::<Vec<_>>(), ["b"]);
    let interval = summary.ratio["b"]["gb_per_s"];
    assert_eq!((interval.median, interval.low, interval.high, interval.n), (2.0, 2.0, 3.0, 3));
    assert!(!summary.ratio["b"].contains_key("samples"));
}

/// The lines have the documented fields; what does not apply is null; counts have no fraction.
#[test]
fn lines_have_the_documented_fields() {
    let round = round("a", 3, 1.25, 12);
    let line = round.to_json();
    for field in ["workload", "path", "round", "gb_per_s", "resident_after", "flags"] {
        assert!(line.get(field).is_some(), "{field}");
    }
    assert_eq!((&line["kind"], &line["zc_copied_share"]), (&json!("round"), &Value::Null));
    assert_eq!(line["samples"].to_string(), "12");
    let summary = summarize(&[&round], &[]).unwrap().to_json();
    for field in ["gb_per_s", "gb_per_s_min", "p50_us_max", "ratio"] {
        assert!(summary.get(field).is_some(), "{field}");
    }
}

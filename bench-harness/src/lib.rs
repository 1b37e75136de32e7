//! rohrpost-bench.

//! rohrpost-bench.

pub mod inspect;

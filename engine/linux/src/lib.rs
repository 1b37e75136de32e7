//! rohrpost-engine-linux.

pub mod residency;

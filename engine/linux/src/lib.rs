//! rohrpost-engine-linux.

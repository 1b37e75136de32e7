//! rohrpost-engine.

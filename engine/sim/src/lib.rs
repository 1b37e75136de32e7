//! rohrpost-engine-sim.

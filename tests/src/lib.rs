//! rohrpost-tests.

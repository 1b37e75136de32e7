//! The test suite: one binary, one module for each topic.

mod golden;
mod interop;

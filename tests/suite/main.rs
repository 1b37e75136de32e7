//! The test suite: one binary, one module for each topic.

mod engine_files;
mod golden;
mod interop;
mod reopen;
mod shard;
mod simulation;
mod tidy;

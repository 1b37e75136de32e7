//! The test suite: one binary, one module for each topic.

mod bad_directory;
mod bad_disk;
mod bad_host;
mod bad_peer;
mod bad_segment;
mod bad_space;
mod conformance;
mod crash;
mod dump;
mod engine_files;
mod fetch;
mod fetch_changes;
mod golden;
mod history;
mod holes;
mod interop;
mod letters;
mod many;
mod modes;
mod reopen;
mod shard;
mod shards;
mod simulation;
mod tidy;

//! The benchmark harness of rohrpost: delivery paths, ours and baselines, measured the way a sceptic would.
//!
//! [`paths`] is the table of what is compared, [`workload`] of under which load, [`method`] makes the rounds,
//! [`client`] and [`server`] are the two processes of a window, [`results`] writes what came out, [`cli`] is the
//! command line. WIRE.md describes the wire, RESULTS.md the files.

pub mod cli;
pub mod client;
pub mod corpus;
mod doctor;
pub mod error;
pub mod flame;
pub mod inspect;
mod interrupt;
mod ipc;
pub mod method;
pub mod null;
pub mod paths;
pub mod record;
pub mod repair;
pub mod results;
pub mod server;
pub mod sys;
pub mod wire;
pub mod workload;

//! The bytes on disk and on the wire: pure functions and types over byte slices, no I/O.
//!
//! Everything here except the side file and the guard slot is Apache Kafka's own format, byte for byte; `engine/docs/FORMAT.md`
//! has the tables. Parsing yields a type that cannot be wrong or a typed error, and never panics on foreign bytes.

mod attributes;
pub mod batch;
mod batch_error;
pub mod build;
pub mod checkpoint;
pub mod crc;
pub mod guard_slot;
pub mod index;
pub mod index_build;
pub mod meta_properties;
pub mod names;
pub mod producer_snapshot;
pub mod record;
pub mod side_file;
mod side_load;
pub mod txn_index;
pub mod varint;
pub mod walk;

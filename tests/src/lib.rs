//! Helpers of the test suite in `suite/`: the golden directories, and a real Apache Kafka broker.

pub mod dump;
pub mod engine;
pub mod golden;
pub mod kafka;
pub mod writer;

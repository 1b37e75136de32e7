//! Helpers of the test suite in `suite/`: the golden directories, a real Apache Kafka broker, an engine to
//! ill-treat, and hosts that ill-treat it.

pub mod disk;
pub mod engine;
pub mod golden;
pub mod host;
pub mod kafka;
pub mod log;
pub mod served;
pub mod service;
pub mod writer;

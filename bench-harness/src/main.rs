//! The binary `rohrpost-bench`.

fn main() {}

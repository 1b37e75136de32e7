//! The binary `rohrpost-bench`.

use std::process::ExitCode;

fn main() -> ExitCode {
    rohrpost_bench::cli::main()
}

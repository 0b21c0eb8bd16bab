//! `make bench`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    firebreak_bench::run(firebreak_bench::Allocator::Agents)
}

//! The parts of `make bench` that measure what is the controller's, with its allocator. `firebreak-bench` runs it.
#![forbid(unsafe_code)]

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    firebreak_bench::run(firebreak_bench::Allocator::Controllers)
}

//! `make demo-docker`: the demo of `examples/docker/`, with a real Docker engine. Exits 0 only if every probe went as it should.

use std::process::ExitCode;

fn main() -> ExitCode {
    match firebreak_tests::docker_demo::run(&format!("fbdk{}", std::process::id())) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("\nsome probes did not go as they should");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("\nthe demo broke off: {error:#}");
            ExitCode::FAILURE
        }
    }
}

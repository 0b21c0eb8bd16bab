//! `firebreak`: the command line of network teams and the SOC.

use clap::Parser as _;
use std::process::ExitCode;

fn main() -> ExitCode {
    firebreak_cli::run(firebreak_cli::args::Firebreak::parse())
}

//! Generates the Rust code of `firebreak.v1` without a protoc on the machine: protox compiles, tonic-prost-build writes.

use std::path::PathBuf;

const FILES: [&str; 5] = [
    "firebreak/v1/common.proto",
    "firebreak/v1/state.proto",
    "firebreak/v1/agent.proto",
    "firebreak/v1/flow.proto",
    "firebreak/v1/operator.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("firebreak.v1.bin"), prost::Message::encode_to_vec(&descriptors))?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}

//! Compiles the protocol files in pure Rust: neither a developer nor CI needs `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = [
        "berth/v1/facts.proto",
        "berth/v1/link.proto",
        "berth/probe/v1/probe.proto",
        "podresources/v1/podresources.proto",
    ];
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}

//! Compiles the schema with protox, a protobuf compiler in Rust: no `protoc` needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=schema/control.proto");
    let descriptors = protox::compile(["schema/control.proto"], ["schema"])?;
    let path = std::path::PathBuf::from(std::env::var("OUT_DIR")?).join("control.descriptors.bin");
    std::fs::write(path, prost_encode(&descriptors))?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}

fn prost_encode(descriptors: &tonic_prost_build::FileDescriptorSet) -> Vec<u8> {
    use prost::Message as _;
    descriptors.encode_to_vec()
}

//! Compiles the schema with protox, a protobuf compiler in Rust: no `protoc` needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=schema/control.proto");
    let mut compiler = protox::Compiler::new(["schema"])?;
    compiler.open_file("control.proto")?;
    let path = std::path::PathBuf::from(std::env::var("OUT_DIR")?).join("control.descriptors.bin");
    std::fs::write(path, compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure().compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}

//! Compiles the schema with protox, so that building needs cargo alone (no protoc).
#![expect(clippy::disallowed_methods, reason = "a build script reads its environment and writes its output")]
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["jobs", "fleet", "corpora", "logs", "artifacts"].map(|f| format!("schema/insula/v1/{f}.proto"));
    let schema = protox::compile(&files, ["schema"])?;
    println!("cargo::rerun-if-changed=schema");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is unset")?);
    std::fs::write(out.join("insula.bin"), prost::Message::encode_to_vec(&schema))?;
    tonic_prost_build::configure().compile_fds(schema)?;
    Ok(())
}

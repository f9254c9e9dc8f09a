//! Compiles the schema with protox, so that building needs cargo alone (no protoc).
#![expect(clippy::disallowed_methods, reason = "a build script reads its environment and writes its output")]
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let coordinator = ["jobs", "fleet", "corpora", "logs", "artifacts"].map(|f| format!("schema/insula/v1/{f}.proto"));
    let predictor = ["schema/insula/v1/predict.proto".to_owned()];
    println!("cargo::rerun-if-changed=schema");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is unset")?);
    // Each server's reflection shows its own services alone.
    for (name, files) in [("insula.bin", &coordinator[..]), ("predict.bin", &predictor)] {
        let schema = protox::compile(files, ["schema"])?;
        std::fs::write(out.join(name), prost::Message::encode_to_vec(&schema))?;
    }
    let whole = protox::compile(coordinator.iter().chain(&predictor), ["schema"])?;
    tonic_prost_build::configure().compile_fds(whole)?;
    Ok(())
}

//! `insula model`: bases on this machine.

use insula_worker::base::{
    Base, default_cache_dir,
    fetch::{self, ResolvedBase},
};

use super::out::say;
use crate::{
    args::{ModelArgs, ModelCommand},
    failure::Failure,
};

/// `insula model`
pub fn run(command: ModelCommand) -> Result<(), Failure> {
    match command {
        ModelCommand::Fetch(args) => fetch(&args),
        ModelCommand::Describe(args) => describe(&args),
    }
}

/// Brings a base to this machine, or finds it in the cache, and checks its digest.
///
/// # Errors
/// When the source cannot be had, or is not what the digest says.
pub fn resolve(source: &str, digest: Option<&str>) -> Result<ResolvedBase, Failure> {
    let cache = default_cache_dir()
        .ok_or_else(|| Failure::Input("no folder to keep bases in: set INSULA_CACHE, XDG_CACHE_HOME or HOME".into()))?;
    fetch::resolve(source, digest, &cache).map_err(|e| Failure::Input(e.to_string()))
}

fn fetch(args: &ModelArgs) -> Result<(), Failure> {
    let base = resolve(&args.source, args.digest.as_deref())?;
    if args.json {
        let (source, path, digest) = (&base.source, &base.path, &base.digest);
        say!("{}", serde_json::json!({ "source": source, "path": path, "digest": digest }));
    } else {
        say!("{}\n{}", base.path.display(), base.digest);
    }
    Ok(())
}

fn describe(args: &ModelArgs) -> Result<(), Failure> {
    let resolved = resolve(&args.source, args.digest.as_deref())?;
    let base = Base::open(&resolved.path).map_err(|e| Failure::Input(e.to_string()))?;
    let tokenizer = base.tokenizer().map_err(|e| Failure::Input(e.to_string()))?;
    let c = &base.config;
    let attention = c.hidden * c.head_dim * (c.heads + c.kv_heads) * 2;
    let layers = c.layers * (attention + 3 * c.hidden * c.intermediate + 2 * c.hidden);
    let embedding = c.vocab * c.hidden;
    let parameters = layers + embedding * if c.tied { 1 } else { 2 } + c.hidden;
    let json = serde_json::json!({
        "source": resolved.source, "path": resolved.path, "digest": resolved.digest, "architecture": "llama",
        "parameters": parameters, "layers": c.layers, "hidden": c.hidden, "intermediate": c.intermediate,
        "heads": c.heads, "kv_heads": c.kv_heads, "head_dim": c.head_dim, "vocab": c.vocab, "context": c.context,
        "rope_theta": c.rope_theta, "rms_eps": c.rms_eps.to_string().parse::<f64>().unwrap_or_default(), "tied": c.tied, "eos": tokenizer.eos(),
        "f32_bytes": 4 * parameters, "bf16_bytes": 2 * parameters,
    });
    if args.json {
        say!("{json}");
        return Ok(());
    }
    for (key, value) in json.as_object().into_iter().flatten() {
        say!("{key:<14} {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned));
    }
    Ok(())
}

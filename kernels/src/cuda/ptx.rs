//! The kernels' PTX, embedded, and proof at compile time that it belongs to the sources beside it.
//!
//! `kernels/regenerate` compiles every `cu/NAME.cu` to `ptx/NAME.ptx` and writes a hash of the headers and the source
//! on its first line. Here the same hash is computed from the files again, by the compiler: an edited source whose
//! PTX was not regenerated does not build.

/// One PTX module: the kernels of one `cu/NAME.cu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Module {
    /// NAME.
    pub name: &'static str,
    /// The PTX text, compiled for compute capability 8.0; newer devices take it too.
    pub text: &'static str,
    /// Its kernels.
    pub kernels: &'static [&'static str],
}

/// The hash of the headers, which every source goes on from.
const HEADERS: u64 = {
    let hash = fnv1a(FNV_OFFSET, include_bytes!("../../cu/attention.cuh"));
    let hash = fnv1a(hash, include_bytes!("../../cu/dev.cuh"));
    fnv1a(hash, include_bytes!("../../cu/quantised.cuh"))
};

/// A module by its name, checked against its source.
macro_rules! module {
    ($name:literal, $kernels:expr) => {{
        const TEXT: &str = include_str!(concat!("../../ptx/", $name, ".ptx"));
        const SOURCES: u64 = fnv1a(HEADERS, include_bytes!(concat!("../../cu/", $name, ".cu")));
        const {
            assert!(
                SOURCES == noted(TEXT.as_bytes()),
                concat!("kernels/ptx/", $name, ".ptx does not belong to its source: run kernels/regenerate")
            );
        }
        Module { name: $name, text: TEXT, kernels: $kernels }
    }};
}

/// All modules, by name.
pub const MODULES: &[Module] = &[
    module!("adamw", &["adamw"]),
    module!(
        "attention",
        &[
            "attention_16",
            "attention_32",
            "attention_64",
            "attention_80",
            "attention_96",
            "attention_128",
            "attention_256"
        ]
    ),
    module!(
        "attention_back",
        &[
            "attention_delta",
            "attention_dq_16",
            "attention_dq_32",
            "attention_dq_64",
            "attention_dq_80",
            "attention_dq_96",
            "attention_dq_128",
            "attention_dq_256",
            "attention_dkv_16",
            "attention_dkv_32",
            "attention_dkv_64",
            "attention_dkv_80",
            "attention_dkv_96",
            "attention_dkv_128",
            "attention_dkv_256"
        ]
    ),
    module!("cast", &["merge", "to_bf16", "to_f32"]),
    module!("cross_entropy", &["cross_entropy", "read_out"]),
    module!("dequantise", &["dequantise_q4", "dequantise_q8"]),
    module!("embed", &["embed_bf16", "embed_q4", "embed_q8"]),
    module!("rms_norm", &["gain_gradient", "inverse_rms", "rms_norm", "rms_norm_back"]),
    module!("rotary", &["rotary"]),
    module!("rows", &["gather_rows_bf16", "gather_rows_f32", "scatter_add_rows"]),
    module!("sum_squares", &["sum_squares"]),
    module!("swiglu", &["swiglu", "swiglu_back"]),
];

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;

/// 64-bit FNV-1a, going on from `hash`: enough to notice an edit, and short enough to run in the compiler.
const fn fnv1a(mut hash: u64, bytes: &[u8]) -> u64 {
    let mut i = 0;
    while i < bytes.len() {
        hash = (hash ^ bytes[i] as u64).wrapping_mul(0x0100_0000_01b3);
        i += 1;
    }
    hash
}

/// The hash on a PTX's first line, `// sources: ` and 16 hexadecimal digits; 0 where there is none.
const fn noted(text: &[u8]) -> u64 {
    const MARK: &[u8] = b"// sources: ";
    let mut hash = 0;
    let mut i = 0;
    while i < MARK.len() + 16 {
        if i < MARK.len() {
            if text[i] != MARK[i] {
                return 0;
            }
        } else {
            match (text[i] as char).to_digit(16) {
                Some(digit) => hash = hash << 4 | digit as u64,
                None => return 0,
            }
        }
        i += 1;
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_module_lists_the_kernels_of_its_text() {
        for module in MODULES {
            let entries = module.text.lines().filter_map(|line| line.split_once(".entry ").map(|(_, name)| name));
            let mut found: Vec<&str> = entries.map(|name| name.trim_end_matches('(')).collect();
            let mut listed = module.kernels.to_vec();
            found.sort_unstable();
            listed.sort_unstable();
            assert_eq!(found, listed, "{}", module.name);
        }
    }

    #[test]
    fn an_edited_source_or_a_missing_hash_is_noticed() {
        let module = &MODULES[0];
        let source = include_bytes!("../../cu/adamw.cu");
        assert_eq!(fnv1a(HEADERS, source), noted(module.text.as_bytes()));
        let mut edited = source.to_vec();
        edited[100] ^= 1;
        assert_ne!(fnv1a(HEADERS, &edited), noted(module.text.as_bytes()));
        assert_eq!(noted(b"// no hash at all, but long enough"), 0);
    }
}

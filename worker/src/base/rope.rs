//! Rotary frequencies, and Llama 3's scaling of them.

use std::f64::consts::TAU;

use serde_json::{Map, Value, json};

use super::error::Refusal;

/// Llama 3's scaling (`rope_type` "llama3"): slow frequencies are slowed by `factor`, fast ones stay, those between are
/// blended. As transformers' `_compute_llama3_parameters` has it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeScaling {
    /// By how much slow frequencies are slowed.
    pub factor: f64,
    /// Turns within the original context below which a frequency is slow.
    pub low_freq_factor: f64,
    /// Turns within the original context above which a frequency is fast.
    pub high_freq_factor: f64,
    /// The context that the base was first trained on, tokens.
    pub original_context: f64,
}

impl RopeScaling {
    /// What `rope_scaling` or `rope_parameters` asks for; `None`: nothing.
    pub(crate) fn parse(key: &str, rope: &Map<String, Value>) -> Result<Option<Self>, Refusal> {
        let kind = rope.get("rope_type").or_else(|| rope.get("type")).and_then(Value::as_str).unwrap_or("default");
        let of_llama3 = ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"];
        let expected: &[&str] = match kind {
            "default" => &[],
            "llama3" => &of_llama3,
            _ => {
                return Refusal::unsupported(format!(
                    "{key} asks for rope scaling {kind:?}, which is not supported yet"
                ));
            }
        };
        let known = |entry: &(&String, &Value)| match entry.0.as_str() {
            "rope_theta" | "rope_type" | "type" => true,
            name if expected.contains(&name) => true,
            "partial_rotary_factor" | "factor" => entry.1.as_f64() == Some(1.0),
            _ => entry.1.is_null(),
        };
        if let Some((other, value)) = rope.iter().find(|entry| !known(entry)) {
            return Refusal::unsupported(format!("{key}.{other} is {value}, which is not supported"));
        }
        if expected.is_empty() {
            return Ok(None);
        }
        let number = |name: &str| match rope.get(name).and_then(Value::as_f64) {
            Some(number) if number.is_finite() && number > 0.0 => Ok(number),
            _ => Refusal::malformed(format!("{key}.{name} is missing or not a number above 0")),
        };
        let scaling = Self {
            factor: number(of_llama3[0])?,
            low_freq_factor: number(of_llama3[1])?,
            high_freq_factor: number(of_llama3[2])?,
            original_context: number(of_llama3[3])?,
        };
        if scaling.high_freq_factor <= scaling.low_freq_factor {
            return Refusal::malformed(format!("{key}.high_freq_factor is not above low_freq_factor"));
        }
        Ok(Some(scaling))
    }

    /// As `rope_scaling` has it.
    pub(crate) fn json(self) -> Value {
        json!({
            "rope_type": "llama3",
            "factor": self.factor,
            "low_freq_factor": self.low_freq_factor,
            "high_freq_factor": self.high_freq_factor,
            "original_max_position_embeddings": self.original_context as u64,
        })
    }

    fn apply(self, frequency: f64) -> f64 {
        let turns = self.original_context * frequency / TAU;
        let fast = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor);
        let fast = fast.clamp(0.0, 1.0);
        (1.0 - fast) * frequency / self.factor + fast * frequency
    }
}

/// Radians a token of each pair of a head, `[head_dim / 2]`.
pub(crate) fn frequencies(theta: f64, head_dim: usize, scaling: Option<RopeScaling>) -> Vec<f64> {
    let plain = (0..head_dim / 2).map(|i| theta.powf(-((2 * i) as f64) / head_dim as f64));
    plain.map(|frequency| scaling.map_or(frequency, |scaling| scaling.apply(frequency))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_frequencies_are_slowed_and_fast_ones_stay() {
        let scaling =
            RopeScaling { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192.0 };
        let plain = frequencies(5e5, 128, None);
        let scaled = frequencies(5e5, 128, Some(scaling));
        assert_eq!(scaled[0], 1.0);
        assert_eq!(scaled[63], plain[63] / 8.0);
        let between =
            plain.iter().zip(&scaled).filter(|(plain, scaled)| **scaled < **plain && **scaled > **plain / 8.0);
        assert!(between.count() > 1);
        assert!(scaled.is_sorted_by(|a, b| a > b), "the order of frequencies stays");
    }
}

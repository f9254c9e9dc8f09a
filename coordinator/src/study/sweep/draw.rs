//! What a random key is drawn from.

use insula_proto::ids::Hasher;
use rand::Rng as _;
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng as _};
use toml::Value;

/// The ways of a range, by their names in the file.
const WAYS: [&str; 4] = ["choice", "uniform", "log", "integer"];

/// What a key's values are drawn from. Ends belong to a range.
#[derive(Debug, Clone, PartialEq)]
pub enum Range {
    /// One of these, each as likely.
    Choice(Vec<Value>),
    /// A number between two.
    Uniform(f64, f64),
    /// A number between two positive ones whose logarithm is uniform.
    Log(f64, f64),
    /// A whole number from the first to the second.
    Integer(i64, i64),
}

impl Range {
    /// Whether a table is a range and not a group of keys.
    pub(super) fn is_one(table: &toml::Table) -> bool {
        table.iter().any(|(way, value)| WAYS.contains(&way.as_str()) && value.is_array())
    }

    /// The range `value` describes, or what is wrong with it.
    pub(super) fn of(value: Value) -> Result<Self, String> {
        let expected = "expected { choice = [..] }, { uniform = [a, b] }, { log = [a, b] } or { integer = [a, b] }";
        let Value::Table(table) = &value else { return Err(format!("{value}: {expected}")) };
        let mut ways = table.iter();
        let (Some((way, Value::Array(values))), None) = (ways.next(), ways.next()) else {
            return Err(format!("{value}: {expected}"));
        };
        let ends = || match values.as_slice() {
            [a, b] => number(a).zip(number(b)).filter(|(a, b)| a < b && (b - a).is_finite()),
            _ => None,
        };
        let refuse = |what: &str| Err(format!("{way} = {}: expected {what}", Value::Array(values.clone())));
        match way.as_str() {
            "choice" if values.is_empty() => refuse("some values"),
            "choice" => Ok(Range::Choice(values.clone())),
            "uniform" => {
                ends().map_or_else(|| refuse("two numbers, the smaller first"), |(a, b)| Ok(Range::Uniform(a, b)))
            }
            "log" => match ends() {
                Some((a, b)) if a > 0.0 => Ok(Range::Log(a, b)),
                _ => refuse("two positive numbers, the smaller first"),
            },
            "integer" => match values.as_slice() {
                [Value::Integer(a), Value::Integer(b)] if a < b => Ok(Range::Integer(*a, *b)),
                _ => refuse("two whole numbers, the smaller first"),
            },
            _ => Err(format!("'{way}' is no way to draw: {expected}")),
        }
    }

    /// Values that stand for all it can draw: whether a key takes them tells whether it takes the range.
    pub(super) fn samples(&self) -> Vec<Value> {
        match self {
            Range::Choice(values) => values.clone(),
            Range::Uniform(a, b) | Range::Log(a, b) => vec![Value::Float(*a), Value::Float(*b)],
            Range::Integer(a, b) => vec![Value::Integer(*a), Value::Integer(*b)],
        }
    }

    /// The next value of a key's stream.
    pub(super) fn draw(&self, chance: &mut ChaCha8Rng) -> Value {
        match self {
            Range::Choice(values) => values[chance.random_range(0..values.len())].clone(),
            Range::Uniform(a, b) => Value::Float(short(chance.random_range(*a..=*b), *a, *b)),
            Range::Log(a, b) => Value::Float(short(chance.random_range(a.ln()..=b.ln()).exp(), *a, *b)),
            Range::Integer(a, b) => Value::Integer(chance.random_range(*a..=*b)),
        }
    }
}

/// The stream of one key.
pub(super) fn stream(seed: u64, key: &str) -> ChaCha8Rng {
    let mut hasher = Hasher::default();
    hasher.update(format!("insula sweep {seed} for {key}").as_bytes());
    ChaCha8Rng::from_seed(hasher.finish().bytes())
}

/// Four significant digits, which no setting feels and a person can read, within `a` and `b`.
fn short(drawn: f64, a: f64, b: f64) -> f64 {
    format!("{drawn:.3e}").parse().unwrap_or(drawn).clamp(a, b)
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Float(number) => Some(*number),
        Value::Integer(number) => Some(*number as f64),
        _ => None,
    }
}

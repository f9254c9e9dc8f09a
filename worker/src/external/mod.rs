//! A model that is asked elsewhere, over OpenAI's chat completions: what is sent, what comes back, and what is kept.
//!
//! ```text
//! prompt --request--> endpoint --judge--> answer | try again after a pause | give up
//!    `-- its digest -- kept answers, one file for each model and way of asking
//! ```
//! All of it is pure; threads, sockets, files and clocks are in `shell`.

mod exchange;
mod kept;

use insula_proto::{endpoint::Endpoint, ids::Digest};

pub use exchange::{Answered, Heard, Verdict, judge, pause, request, retry_after};
pub use kept::{Kept, line, read};

/// What stands in reports for the digest of a base whose weights nobody here sees: the digest of its name and place.
pub fn base_digest(endpoint: &Endpoint) -> Digest {
    Digest::of(format!("insula endpoint\nurl {}\nmodel {}\n", endpoint.url, endpoint.model).as_bytes())
}

/// Name of the file of kept answers: of everything an answer depends on but its prompt.
pub fn kept_file(endpoint: &Endpoint, max_new_tokens: u32) -> String {
    let settings = format!("{endpoint}\ntemperature 0\nmax_tokens {max_new_tokens}\n");
    format!("{}.jsonl", Digest::of(settings.as_bytes()).hex())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_model_place_or_way_of_asking_is_another_base_or_file() {
        let endpoint = |text: &str| text.parse::<Endpoint>().unwrap();
        let (a, b) = (endpoint("endpoint:a@http://h/v1"), endpoint("endpoint:b@http://h/v1"));
        assert_eq!(base_digest(&a), base_digest(&endpoint("endpoint:a@http://h/v1/")));
        assert_ne!(base_digest(&a), base_digest(&b));
        assert_eq!(kept_file(&a, 8), kept_file(&a.clone(), 8));
        assert_ne!(kept_file(&a, 8), kept_file(&b, 8));
        assert_ne!(kept_file(&a, 8), kept_file(&a, 9));
    }
}

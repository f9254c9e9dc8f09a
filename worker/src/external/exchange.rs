//! One request and what is made of its answer.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::seed::{self, Purpose};

/// The first pause before another try, and the longest one that doubling leads to.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// An endpoint that wants to be left alone for longer is not waited for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(600);
/// Characters of a body that a message shows.
const SHOWN: usize = 200;

/// The request for an answer to `prompt` of at most `max_new_tokens`: the likeliest, as far as a model can be told so.
pub fn request(model: &str, prompt: &str, max_new_tokens: u32) -> Vec<u8> {
    let body = json!({
        "model": model,
        "messages": [{ "role": "user", "content": prompt }],
        "temperature": 0,
        "max_tokens": max_new_tokens,
    });
    body.to_string().into_bytes()
}

/// What came of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// The endpoint spoke.
    Response {
        /// HTTP's status.
        status: u16,
        /// How long it wants to be left alone.
        retry_after: Option<Duration>,
        /// The body.
        body: Vec<u8>,
    },
    /// It did not, or not in time.
    Nothing(String),
}

/// A model's answer, and what it took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /// The text.
    pub text: String,
    /// Tokens of the prompt; 0 where the endpoint does not say.
    pub input_tokens: u64,
    /// Tokens of the answer; 0 where the endpoint does not say.
    pub output_tokens: u64,
}

/// What to do about what was heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Take it.
    Answer(Answered),
    /// Try again, but not before so long.
    Again {
        /// What was wrong.
        why: String,
        /// The endpoint's own wish.
        after: Option<Duration>,
    },
    /// Another try would end alike.
    Final(String),
}

/// Judges what came of a request: limits, failures of the server and of the line, and bodies that are no answer are worth
/// another try; everything else that is no answer is final.
pub fn judge(heard: &Heard) -> Verdict {
    let (status, retry_after, body) = match heard {
        Heard::Nothing(why) => return Verdict::Again { why: why.clone(), after: None },
        Heard::Response { status, retry_after, body } => (*status, *retry_after, body),
    };
    let said = || format!("it answered {status}: {}", shown(body));
    match (status, retry_after) {
        (200, _) => match answered(body) {
            Ok(answered) => Verdict::Answer(answered),
            Err(problem) => {
                let why = format!("its answer {problem}, expected a chat completion: {}", shown(body));
                Verdict::Again { why, after: None }
            }
        },
        // OpenAI says "too many requests" to an empty account, too.
        (429, _) if shown(body).contains("insufficient_quota") => Verdict::Final(said()),
        (408 | 429 | 500.., Some(after)) if after > RETRY_AFTER_MAX => {
            let (asked, most) = (after.as_secs(), RETRY_AFTER_MAX.as_secs());
            Verdict::Final(format!("{} (it asks for {asked} s of peace, at most {most} are waited)", said()))
        }
        (408 | 429 | 500.., after) => Verdict::Again { why: said(), after },
        _ => Verdict::Final(said()),
    }
}

/// The answer in a body, or what is wrong with the body.
fn answered(body: &[u8]) -> Result<Answered, String> {
    let body: Value = serde_json::from_slice(body).map_err(|_| "is not JSON".to_owned())?;
    let choice = body.get("choices").and_then(|choices| choices.get(0)).ok_or("has no choices")?;
    let text = match choice.pointer("/message/content") {
        Some(Value::String(text)) => text.clone(),
        // A model that will not say anything has answered: nothing readable.
        None | Some(Value::Null) if choice.get("finish_reason") == Some(&"content_filter".into()) => String::new(),
        _ => return Err("has no text in choices[0].message.content".to_owned()),
    };
    let tokens = |name: &str| body.pointer(&format!("/usage/{name}")).and_then(Value::as_u64).unwrap_or(0);
    Ok(Answered { text, input_tokens: tokens("prompt_tokens"), output_tokens: tokens("completion_tokens") })
}

/// The first characters of a body, on one line.
fn shown(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(8 * SHOWN)]);
    let line: Vec<&str> = text.split_whitespace().collect();
    let line = line.join(" ");
    match line.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None if line.is_empty() => "(nothing)".into(),
        None => line,
    }
}

/// The wish in a `Retry-After` header: seconds, or a date; `None` where it is neither.
pub fn retry_after(header: &str, now: SystemTime) -> Option<Duration> {
    match header.trim().parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).ok(),
        Err(_) => Some(httpdate::parse_http_date(header.trim()).ok()?.duration_since(now).unwrap_or_default()),
    }
}

/// How long `request` waits after its try number `attempt` (from 1) failed: doubled each time, shortened by up to half
/// at random so that requests that failed together do not come back together; never less than the endpoint wishes.
pub fn pause(seed: u64, request: u64, attempt: u32, wish: Option<Duration>) -> Duration {
    let (first, longest) = PAUSE;
    let doubled = first.saturating_mul(1 << attempt.saturating_sub(1).min(16)).min(longest);
    let chance = seed::number(seed, Purpose::Pause { request, attempt });
    let part = 0.5 + 0.5 * ((chance >> 11) as f64 / (1u64 << 53) as f64);
    doubled.mul_f64(part) + wish.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(status: u16, body: &str) -> Heard {
        Heard::Response { status, retry_after: None, body: body.into() }
    }

    const GOOD: &str = r#"{"choices":[{"message":{"role":"assistant","content":" joyful"}}],
        "usage":{"prompt_tokens":120,"completion_tokens":3}}"#;

    #[test]
    fn a_request_is_the_prompt_as_the_only_message_at_temperature_zero() {
        let body: Value = serde_json::from_slice(&request("gpt-4o", "Hi \"there\"\n", 8)).unwrap();
        let expected = json!({ "model": "gpt-4o", "messages": [{ "role": "user", "content": "Hi \"there\"\n" }],
            "temperature": 0, "max_tokens": 8 });
        assert_eq!(body, expected);
    }

    #[test]
    fn an_answer_is_taken_with_its_tokens() {
        let answered = Answered { text: " joyful".into(), input_tokens: 120, output_tokens: 3 };
        assert_eq!(judge(&response(200, GOOD)), Verdict::Answer(answered));
        let silent = r#"{"choices":[{"finish_reason":"content_filter","message":{"content":null}}]}"#;
        let nothing = Answered { text: String::new(), input_tokens: 0, output_tokens: 0 };
        assert_eq!(judge(&response(200, silent)), Verdict::Answer(nothing));
    }

    #[test]
    fn limits_failures_and_garbage_are_worth_another_try_and_refusals_are_not() {
        for (heard, part) in [
            (response(429, "slow down"), "it answered 429: slow down"),
            (response(500, ""), "it answered 500: (nothing)"),
            (response(503, "<html>\n  busy</html>"), "503: <html> busy</html>"),
            (response(200, "<html>"), "its answer is not JSON, expected a chat completion: <html>"),
            (response(200, "{\"choices\":[]}"), "has no choices"),
            (response(200, "{\"choices\":[{\"message\":{\"content\":null}}]}"), "choices[0].message.content"),
            (Heard::Nothing("connection refused".into()), "connection refused"),
        ] {
            match judge(&heard) {
                Verdict::Again { why, after: None } => assert!(why.contains(part), "{why}"),
                other => panic!("{heard:?} was judged {other:?}"),
            }
        }
        let quota = r#"{"error":{"code":"insufficient_quota"}}"#;
        for (status, body) in [(401, "bad key"), (404, "no such model"), (302, "elsewhere"), (429, quota)] {
            assert_eq!(judge(&response(status, body)), Verdict::Final(format!("it answered {status}: {body}")));
        }
    }

    #[test]
    fn the_wish_to_be_left_alone_is_heard_within_reason() {
        let wish = |seconds| Heard::Response {
            status: 429,
            retry_after: Some(Duration::from_secs(seconds)),
            body: "wait".into(),
        };
        let again = Verdict::Again { why: "it answered 429: wait".into(), after: Some(Duration::from_secs(7)) };
        assert_eq!(judge(&wish(7)), again);
        assert!(matches!(judge(&wish(86_400)), Verdict::Final(why) if why.contains("86400 s")));
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_770);
        for (header, seconds) in [("3", Some(3)), (" 0 ", Some(0)), ("Sun, 06 Nov 1994 08:49:37 GMT", Some(7))] {
            assert_eq!(retry_after(header, now), seconds.map(Duration::from_secs), "{header}");
        }
        assert_eq!(retry_after("Sat, 06 Nov 1993 08:49:37 GMT", now), Some(Duration::ZERO), "a date gone by");
        assert_eq!((retry_after("soon", now), retry_after("-1", now), retry_after("nan", now)), (None, None, None));
    }

    #[test]
    fn pauses_grow_to_a_bound_differ_between_requests_and_repeat_with_the_seed() {
        let ms = |request, attempt| pause(1, request, attempt, None).as_millis();
        for attempt in 1..=20 {
            let whole = (500u128 << (attempt - 1)).min(30_000);
            assert!((whole / 2..=whole).contains(&ms(3, attempt)), "attempt {attempt}: {} ms", ms(3, attempt));
        }
        assert_eq!(pause(1, 3, 2, None), pause(1, 3, 2, None));
        assert_ne!(ms(3, 2), ms(4, 2));
        assert!(pause(1, 3, 1, Some(Duration::from_secs(9))) >= Duration::from_secs(9));
    }

    #[test]
    fn a_long_body_is_cut_at_a_character() {
        let long = "é".repeat(3000);
        let cut = shown(long.as_bytes());
        assert_eq!(cut, format!("{}...", "é".repeat(200)));
    }
}

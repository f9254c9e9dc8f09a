//! Requests over HTTP, so many at a time, each tried again as its answer calls for.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, SystemTime},
};

use insula_proto::{VERSION, endpoint::Endpoint, job::JobSpec};
use ureq::Agent;

use crate::external::{self, Answered, Heard, Verdict};

/// Largest body that is read; an answer of a few words is a few hundred bytes.
const BODY_BYTES_MAX: u64 = 1 << 20;
/// While it waits, a thread looks so often whether to leave off.
const LOOK: Duration = Duration::from_millis(50);

/// The way to an endpoint.
pub struct Line {
    agent: Agent,
    url: String,
    model: String,
    key: Option<String>,
    max_new_tokens: u32,
    retries: u32,
    seed: u64,
}

/// What a request came to.
pub enum Word {
    /// Its answer, or why there is none.
    Done(usize, Result<Answered, String>),
    /// Why it is tried again.
    Again(String),
}

/// What the threads share.
struct Shared {
    line: Line,
    prompts: Vec<String>,
    next: AtomicUsize,
    halted: AtomicBool,
}

/// Threads that ask. Dropped, they leave off after the request in hand; nobody waits for them.
pub struct Crew {
    shared: Arc<Shared>,
    words: Receiver<Word>,
}

impl Line {
    /// The way to `endpoint` with the job's settings; `key` is sent along with each request.
    pub fn new(endpoint: &Endpoint, spec: &JobSpec, key: Option<String>) -> Self {
        let timeout = Duration::from_secs(spec.endpoint.timeout_s.into());
        let config = Agent::config_builder()
            .timeout_global(Some(timeout))
            .http_status_as_error(false)
            .max_redirects(0) // the key is for this place alone
            .max_idle_connections_per_host(spec.endpoint.concurrency as usize)
            .user_agent(format!("insula/{VERSION}"))
            .build();
        Self {
            agent: config.into(),
            url: format!("{}/chat/completions", endpoint.url),
            model: endpoint.model.clone(),
            key,
            max_new_tokens: spec.evaluate.max_new_tokens,
            retries: spec.endpoint.retries,
            seed: spec.seed,
        }
    }

    fn post(&self, body: &[u8]) -> Heard {
        let nothing = |error: ureq::Error| Heard::Nothing(format!("it gave no answer: {error}"));
        let request = self.agent.post(&self.url).header("Content-Type", "application/json");
        let request = match &self.key {
            Some(key) => request.header("Authorization", format!("Bearer {key}")),
            None => request,
        };
        let mut response = match request.send(body) {
            Ok(response) => response,
            Err(error) => return nothing(error),
        };
        let status = response.status().as_u16();
        let header = response.headers().get("Retry-After").and_then(|value| value.to_str().ok());
        let retry_after = header.and_then(|text| external::retry_after(text, now()));
        match response.body_mut().with_config().limit(BODY_BYTES_MAX).read_to_vec() {
            Ok(body) => Heard::Response { status, retry_after, body },
            Err(error) => nothing(error),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a date in Retry-After is a wait from now on")]
fn now() -> SystemTime {
    SystemTime::now()
}

impl Crew {
    /// Sets `threads` to work on `prompts`.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn start(line: Line, prompts: Vec<String>, threads: usize) -> std::io::Result<Self> {
        let (next, halted) = (AtomicUsize::new(0), AtomicBool::new(false));
        let threads = threads.min(prompts.len());
        let shared = Arc::new(Shared { line, prompts, next, halted });
        let (sender, words) = channel();
        for _ in 0..threads {
            let (shared, sender) = (shared.clone(), sender.clone());
            thread::Builder::new().name("asking".into()).spawn(move || shared.work(&sender))?;
        }
        Ok(Self { shared, words })
    }

    /// What was said since; `Ok(None)`: nothing for that long. `Err`: all threads have ended.
    pub fn listen(&self, patience: Duration) -> Result<Option<Word>, ()> {
        use std::sync::mpsc::RecvTimeoutError::{Disconnected, Timeout};
        match self.words.recv_timeout(patience) {
            Ok(word) => Ok(Some(word)),
            Err(Timeout) => Ok(None),
            Err(Disconnected) => Err(()),
        }
    }

    /// Lets no request begin any more, and none be tried again.
    pub fn halt(&self) {
        self.shared.halted.store(true, Ordering::Relaxed);
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.halt();
    }
}

impl Shared {
    fn work(&self, words: &Sender<Word>) {
        loop {
            let place = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(prompt) = self.prompts.get(place) else { return };
            let Some(outcome) = self.ask(place, prompt, words) else { return };
            if words.send(Word::Done(place, outcome)).is_err() {
                return;
            }
        }
    }

    /// The answer, or why there is none; `None` once halted.
    fn ask(&self, place: usize, prompt: &str, words: &Sender<Word>) -> Option<Result<Answered, String>> {
        let line = &self.line;
        let body = external::request(&line.model, prompt, line.max_new_tokens);
        let mut attempt = 1;
        loop {
            if self.halted.load(Ordering::Relaxed) {
                return None;
            }
            let (why, after) = match external::judge(&line.post(&body)) {
                Verdict::Answer(answered) => return Some(Ok(answered)),
                Verdict::Final(why) => return Some(Err(why)),
                Verdict::Again { why, .. } if attempt > line.retries => {
                    return Some(Err(format!("{why} (tried {attempt} times)")));
                }
                Verdict::Again { why, after } => (why, after),
            };
            let pause = external::pause(line.seed, place as u64, attempt, after);
            words.send(Word::Again(format!("{why}; trying again in {:.1} s", pause.as_secs_f64()))).ok()?;
            self.rest(pause);
            attempt += 1;
        }
    }

    /// Waits, or until halted.
    fn rest(&self, mut left: Duration) {
        while !left.is_zero() && !self.halted.load(Ordering::Relaxed) {
            let step = left.min(LOOK);
            thread::sleep(step);
            left -= step;
        }
    }
}

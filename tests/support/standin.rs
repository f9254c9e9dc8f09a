//! A stand-in for a model behind an endpoint: HTTP on loopback, and whatever answers a test wants.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// What a request is answered with.
pub enum Reply {
    /// A chat completion with this text, of 100 tokens of prompt and 2 of answer.
    Answer(String),
    /// A status, header lines and a body.
    Status(u16, &'static str, &'static str),
    /// Nothing for so long, then the end of the connection.
    Hang(Duration),
    /// The end of the connection in the middle of the answer.
    Cut,
    /// Nothing until the stand-in is told to go on, and then not either.
    Hold,
}

type Behaviour = Box<dyn Fn(usize, &str) -> Reply + Send + Sync>;

/// The server; it runs until the test's process ends.
pub struct StandIn {
    address: SocketAddr,
    /// Requests so far.
    pub requests: Arc<AtomicUsize>,
    behaviour: Arc<Mutex<Arc<Behaviour>>>,
    heard: Arc<Mutex<Vec<Heard>>>,
}

/// One request.
struct Heard {
    prompt: String,
    key: String,
    at: Instant,
}

impl StandIn {
    /// Starts one that answers request number n (from 0) for a prompt as `behaviour` says.
    pub fn start(behaviour: impl Fn(usize, &str) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let boxed: Behaviour = Box::new(behaviour);
        let standin = Self {
            address: listener.local_addr().unwrap(),
            requests: Arc::default(),
            behaviour: Arc::new(Mutex::new(Arc::new(boxed))),
            heard: Arc::default(),
        };
        let (requests, behaviour, heard) = (standin.requests.clone(), standin.behaviour.clone(), standin.heard.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (requests, behaviour, heard) = (requests.clone(), behaviour.clone(), heard.clone());
                // A client that goes away in the middle is what some tests are about.
                thread::spawn(move || drop(serve(stream, &requests, &behaviour, &heard)));
            }
        });
        standin
    }

    /// The base URL.
    pub fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// From now on every prompt is answered so.
    pub fn go_on(&self, behaviour: impl Fn(&str) -> Reply + Send + Sync + 'static) {
        let boxed: Behaviour = Box::new(move |_, prompt| behaviour(prompt));
        *self.behaviour.lock().unwrap() = Arc::new(boxed);
    }

    /// The prompts of all requests.
    pub fn prompts(&self) -> Vec<String> {
        self.heard.lock().unwrap().iter().map(|heard| heard.prompt.clone()).collect()
    }

    /// Time from the first request, to the next with the same prompt.
    pub fn first_retried_after(&self) -> Duration {
        let heard = self.heard.lock().unwrap();
        let again = heard.iter().skip(1).find(|again| again.prompt == heard[0].prompt).unwrap();
        again.at - heard[0].at
    }

    /// The Authorization headers of all requests.
    pub fn keys(&self) -> Vec<String> {
        self.heard.lock().unwrap().iter().map(|heard| heard.key.clone()).collect()
    }
}

/// One connection, one request.
fn serve(
    stream: TcpStream,
    requests: &AtomicUsize,
    behaviour: &Mutex<Arc<Behaviour>>,
    heard: &Mutex<Vec<Heard>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut length, mut key, mut first) = (0, String::new(), String::new());
    reader.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(':') else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().unwrap(),
            "authorization" => key = value.trim().to_owned(),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    assert_eq!(first.trim(), "POST /v1/chat/completions HTTP/1.1");
    let body: Value = serde_json::from_slice(&body)?;
    assert_eq!((&body["model"], &body["temperature"]), (&"stand-in".into(), &0.into()), "{body}");
    let prompt = body["messages"][0]["content"].as_str().unwrap().to_owned();
    let number = {
        let mut heard = heard.lock().unwrap(); // numbered in the order they are listed
        heard.push(Heard { prompt: prompt.clone(), key, at: Instant::now() });
        requests.fetch_add(1, SeqCst)
    };
    let behave = behaviour.lock().unwrap().clone();
    match behave(number, &prompt) {
        Reply::Answer(text) => {
            let body = json!({ "id": "x", "object": "chat.completion",
                "choices": [{ "index": 0, "finish_reason": "stop", "message": { "role": "assistant", "content": text } }],
                "usage": { "prompt_tokens": 100, "completion_tokens": 2, "total_tokens": 102 } });
            respond(stream, 200, "", &body.to_string(), usize::MAX)
        }
        Reply::Status(status, headers, body) => respond(stream, status, headers, body, usize::MAX),
        Reply::Cut => respond(stream, 200, "", "{\"choices\": [", 5),
        Reply::Hang(pause) => {
            thread::sleep(pause);
            Ok(())
        }
        Reply::Hold => {
            thread::sleep(Duration::from_secs(600));
            Ok(())
        }
    }
}

/// Sends an answer of which only the body's first bytes arrive.
fn respond(mut stream: TcpStream, status: u16, headers: &str, body: &str, bytes: usize) -> std::io::Result<()> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status} Said\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(head.as_bytes())?;
    stream.write_all(&body.as_bytes()[..bytes.min(length)])?;
    stream.flush()
}

//! Cables between members: they carry what is sent, and can be cut or damage a bit after so many bytes.
#![allow(dead_code, reason = "each test crate uses some of it")]

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    thread,
};

/// All cables of a fleet.
#[derive(Clone)]
pub struct Cables(Arc<State>);

struct State {
    /// Whose cables are cut.
    victim: usize,
    /// After so many bytes over them.
    cut_after: AtomicI64,
    dead: AtomicBool,
    /// The byte, of all cables, in which a bit is flipped.
    flip: AtomicI64,
    carried: AtomicU64,
    streams: Mutex<Vec<(usize, usize, TcpStream)>>,
}

impl Cables {
    /// Cables of which those of `victim` are cut after so many bytes.
    pub fn cut_after(victim: usize, bytes: i64) -> Self {
        Self::new(victim, bytes, i64::MAX)
    }

    /// Cables that flip a bit of the byte at `place`.
    pub fn flipping(place: i64) -> Self {
        Self::new(usize::MAX, i64::MAX, place)
    }

    fn new(victim: usize, bytes: i64, place: i64) -> Self {
        Self(Arc::new(State {
            victim,
            cut_after: AtomicI64::new(bytes),
            dead: AtomicBool::new(false),
            flip: AtomicI64::new(place),
            carried: AtomicU64::new(0),
            streams: Mutex::default(),
        }))
    }

    /// Whether the victim is cut off.
    pub fn is_cut(&self) -> bool {
        self.0.dead.load(Ordering::SeqCst)
    }

    /// Whether the bit was flipped.
    pub fn has_flipped(&self) -> bool {
        self.0.flip.load(Ordering::SeqCst) < 0
    }

    /// Bytes over the victim's cables, or over all where there is none.
    pub fn carried(&self) -> u64 {
        self.0.carried.load(Ordering::SeqCst)
    }

    /// A cable from one member to another's address.
    pub fn lay(&self, from: usize, to: usize, address: &str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let here = listener.local_addr().unwrap();
        let (state, address) = (Arc::clone(&self.0), address.to_owned());
        thread::spawn(move || {
            for caller in listener.incoming() {
                let (caller, called) = (caller.unwrap(), TcpStream::connect(&address));
                if state.dead.load(Ordering::SeqCst) && [from, to].contains(&state.victim) {
                    continue;
                }
                let Ok(called) = called else { continue };
                [&caller, &called].iter().for_each(|end| end.set_nodelay(true).unwrap());
                let mut streams = state.streams.lock().unwrap();
                streams.push((from, to, caller.try_clone().unwrap()));
                streams.push((from, to, called.try_clone().unwrap()));
                let counts = state.victim == usize::MAX || [from, to].contains(&state.victim);
                for (out, into) in [(&caller, &called), (&called, &caller)] {
                    let (out, into, state) = (out.try_clone().unwrap(), into.try_clone().unwrap(), Arc::clone(&state));
                    thread::spawn(move || state.carry(&out, &into, counts));
                }
            }
        });
        here
    }
}

impl State {
    fn carry(&self, mut out: &TcpStream, mut into: &TcpStream, counts: bool) {
        let mut bytes = [0; 512];
        while let Ok(read) = out.read(&mut bytes)
            && read > 0
        {
            if counts {
                self.carried.fetch_add(read as u64, Ordering::SeqCst);
                let left = self.cut_after.fetch_sub(read as i64, Ordering::SeqCst);
                let place = self.flip.fetch_sub(read as i64, Ordering::SeqCst);
                if (0..read as i64).contains(&place) {
                    bytes[place as usize] ^= 0x10;
                }
                if left < read as i64 {
                    let _ = into.write_all(&bytes[..left.max(0) as usize]);
                    self.cut();
                    return;
                }
            }
            if into.write_all(&bytes[..read]).is_err() {
                break;
            }
        }
        let _ = into.shutdown(Shutdown::Both);
    }

    fn cut(&self) {
        self.dead.store(true, Ordering::SeqCst);
        for (from, to, stream) in &*self.streams.lock().unwrap() {
            if [*from, *to].contains(&self.victim) {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
    }
}

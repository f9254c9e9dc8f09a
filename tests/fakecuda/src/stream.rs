//! A stream: a thread that does queued work in order. While a stream is captured, work goes to the capture instead.
//!
//! ```text
//! submit -> capturing? -> the capture's list
//!           otherwise  -> queue -> thread: one piece at a time; a failure makes the context fail,
//!                                  and from then on only `Always` work is done
//! ```

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::capture::Capture;
use crate::codes::Code;
use crate::health::{Failure, Health};

/// When a piece of work is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// While the context is sound.
    Sound,
    /// Also after a failure: whoever waits for it must not wait forever.
    Always,
}

/// One piece of work of a stream; a graph does it again and again.
#[derive(Clone)]
pub struct Work {
    when: When,
    run: Arc<dyn Fn() -> Result<(), Failure> + Send + Sync>,
}

impl Work {
    /// Work that is skipped once the context has failed.
    pub fn new(run: impl Fn() -> Result<(), Failure> + Send + Sync + 'static) -> Work {
        Work { when: When::Sound, run: Arc::new(run) }
    }

    /// Work that is done in any case.
    pub fn always(run: impl Fn() + Send + Sync + 'static) -> Work {
        let run = move || {
            run();
            Ok(())
        };
        Work { when: When::Always, run: Arc::new(run) }
    }

    fn run(&self, health: &Health) {
        if self.when == When::Sound && health.check().is_err() {
            return;
        }
        // A panic here would end the stream's thread, and everybody who waits for the stream would wait forever.
        let outcome = catch_unwind(AssertUnwindSafe(|| (self.run)()));
        let outcome = outcome.unwrap_or_else(|_| Err(Failure::new(Code::UNKNOWN, "the stand-in itself panicked")));
        if let Err(failure) = outcome {
            health.fail(&failure);
        }
    }
}

/// What waits to be done, and whether more may come. Pure; `Stream` puts a lock and a thread around it.
#[derive(Default)]
struct Queue {
    waiting: VecDeque<Work>,
    running: bool,
    closed: bool,
}

enum Next {
    Do(Work),
    Wait,
    End,
}

impl Queue {
    fn take(&mut self) -> Next {
        match self.waiting.pop_front() {
            Some(work) => {
                self.running = true;
                Next::Do(work)
            }
            None if self.closed => Next::End,
            None => Next::Wait,
        }
    }

    fn idle(&self) -> bool {
        !self.running && self.waiting.is_empty()
    }
}

struct Shared {
    health: Arc<Health>,
    queue: Mutex<Queue>,
    changed: Condvar,
    jitter_us: u64,
}

/// A stream of one context.
pub struct Stream {
    shared: Arc<Shared>,
    capture: Mutex<Option<Arc<Capture>>>,
}

impl Stream {
    /// A new stream, with its thread. `jitter_us` is the longest delay before a piece of work.
    pub fn start(name: String, health: Arc<Health>, jitter_us: u64) -> std::io::Result<Arc<Stream>> {
        let shared = Arc::new(Shared { health, queue: Mutex::default(), changed: Condvar::new(), jitter_us });
        let worker = shared.clone();
        std::thread::Builder::new().name(name).spawn(move || worker.serve())?;
        Ok(Arc::new(Stream { shared, capture: Mutex::new(None) }))
    }

    /// Queues work, or adds it to the capture this stream is in.
    pub fn submit(self: &Arc<Self>, work: Work) -> Result<(), Code> {
        match self.capture() {
            Some(capture) => capture.add(self, work),
            None => self.queue(work),
        }
    }

    fn queue(&self, work: Work) -> Result<(), Code> {
        let mut queue = self.shared.queue();
        if queue.closed {
            // Its thread may be gone: whoever waited for this work would wait forever.
            return Err(Code::INVALID_HANDLE);
        }
        queue.waiting.push_back(work);
        drop(queue);
        self.shared.changed.notify_all();
        Ok(())
    }

    /// Waits until all queued work is done.
    pub fn synchronise(&self) {
        let mut queue = self.shared.queue();
        while !queue.idle() {
            queue = self.shared.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whether all queued work is done.
    pub fn idle(&self) -> bool {
        self.shared.queue().idle()
    }

    /// No more work will come: the thread ends after what is queued.
    pub fn close(&self) {
        self.shared.queue().closed = true;
        self.shared.changed.notify_all();
    }

    /// Whether no more work will come and all of it is done.
    pub fn ended(&self) -> bool {
        let queue = self.shared.queue();
        queue.closed && queue.idle()
    }

    /// The capture that this stream is in.
    pub fn capture(&self) -> Option<Arc<Capture>> {
        self.capture_slot().clone()
    }

    /// Enters or leaves a capture.
    pub fn set_capture(&self, capture: Option<Arc<Capture>>) {
        *self.capture_slot() = capture;
    }

    fn capture_slot(&self) -> MutexGuard<'_, Option<Arc<Capture>>> {
        self.capture.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Option<Work> {
        let mut queue = self.queue();
        loop {
            match queue.take() {
                Next::Do(work) => return Some(work),
                Next::End => return None,
                Next::Wait => queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    fn serve(&self) {
        let mut done = 0;
        while let Some(work) = self.next() {
            if self.jitter_us > 0 {
                std::thread::sleep(Duration::from_micros(delay(done) % self.jitter_us));
            }
            work.run(&self.health);
            // Whatever the work holds (blocks, host memory) is let go before anybody is told that it is done.
            drop(work);
            done += 1;
            self.queue().running = false;
            self.changed.notify_all();
        }
    }
}

/// The next number after the `n`-th of a fixed scattered sequence (splitmix64's finaliser).
fn delay(n: u64) -> u64 {
    let mixed = n.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 33
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    fn stream(jitter_us: u64) -> (Arc<Stream>, Arc<Health>) {
        let health = Arc::new(Health::default());
        (Stream::start("test".into(), health.clone(), jitter_us).unwrap(), health)
    }

    #[test]
    fn work_is_done_in_order() {
        let (stream, _) = stream(50);
        let seen = Arc::new(Mutex::new(Vec::new()));
        for i in 0..100 {
            let seen = seen.clone();
            stream.submit(Work::always(move || seen.lock().unwrap().push(i))).unwrap();
        }
        stream.synchronise();
        assert_eq!(*seen.lock().unwrap(), (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn after_a_failure_only_what_others_wait_for_is_done() {
        let (stream, health) = stream(0);
        let count = Arc::new(AtomicUsize::new(0));
        let (plain, always) = (count.clone(), count.clone());
        stream.submit(Work::new(|| Err(Failure::new(Code::LAUNCH_FAILED, "planted")))).unwrap();
        let add = move || {
            plain.fetch_add(1, SeqCst);
            Ok(())
        };
        stream.submit(Work::new(add)).unwrap();
        let add = move || {
            always.fetch_add(100, SeqCst);
        };
        stream.submit(Work::always(add)).unwrap();
        stream.synchronise();
        assert_eq!((count.load(SeqCst), health.check()), (100, Err(Code::LAUNCH_FAILED)));
    }

    #[test]
    fn a_panic_in_a_piece_of_work_fails_the_context_and_not_the_stream() {
        let (stream, health) = stream(0);
        stream.submit(Work::new(|| panic!("planted"))).unwrap();
        stream.synchronise();
        assert_eq!(health.check(), Err(Code::UNKNOWN));
    }

    #[test]
    fn a_closed_stream_finishes_what_is_queued() {
        let (stream, _) = stream(1000);
        let (sender, receiver) = std::sync::mpsc::channel();
        for i in 0..3 {
            let sender = sender.clone();
            stream.submit(Work::always(move || sender.send(i).unwrap())).unwrap();
        }
        drop(sender);
        stream.close();
        assert_eq!(stream.submit(Work::always(|| {})), Err(Code::INVALID_HANDLE));
        assert_eq!(receiver.iter().collect::<Vec<i32>>(), [0, 1, 2]);
    }
}

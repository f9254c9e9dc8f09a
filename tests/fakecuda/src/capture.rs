//! Stream capture: the work of one stream, and of the streams that wait for it, is listed instead of done.
//!
//! ```text
//! begin(A)          A: kernel 1, record e      B: wait e (B joins the capture), kernel 2, record f      A: wait f
//! end(A) -> Graph [kernel 1, kernel 2]         B's work must have been waited for, or the capture is unjoined
//! ```
//! The list in the order of the calls is one valid order of the graph, so a graph is that list and replays it on one
//! stream. Branches that could run at the same time therefore do not: what a graph gains in speed is not modelled.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::ThreadId;

use crate::codes::Code;
use crate::stream::{Stream, Work};

/// Which calls a capture forbids (`CUstreamCaptureMode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Calls that may wait are forbidden on every thread.
    Global,
    /// They are forbidden on the thread that began the capture.
    ThreadLocal,
    /// Nothing is forbidden.
    Relaxed,
}

impl Mode {
    /// The mode of a `CUstreamCaptureMode`.
    pub fn from_number(number: i32) -> Option<Mode> {
        [Mode::Global, Mode::ThreadLocal, Mode::Relaxed].get(usize::try_from(number).ok()?).copied()
    }
}

/// A capture under way.
pub struct Capture {
    mode: Mode,
    thread: ThreadId,
    origin: Weak<Stream>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    work: Vec<Work>,
    invalid: bool,
    branches: BTreeMap<usize, Branch>,
}

/// A stream that joined the capture.
struct Branch {
    stream: Arc<Stream>,
    /// Length of the capture's list after the stream's last work.
    last: usize,
    /// Whether somebody has waited for that.
    joined: bool,
}

/// The place in a capture that an event marks.
#[derive(Clone)]
pub struct Mark {
    capture: Weak<Capture>,
    stream: usize,
    /// Length of the list when the event was recorded: work of the branch after that is not waited for.
    length: usize,
}

impl Mark {
    /// The capture, while it is under way.
    pub fn capture(&self) -> Option<Arc<Capture>> {
        self.capture.upgrade()
    }
}

/// The captures under way in this process.
static ACTIVE: Mutex<Vec<Arc<Capture>>> = Mutex::new(Vec::new());

fn active() -> MutexGuard<'static, Vec<Arc<Capture>>> {
    ACTIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Refuses a call that must not be made during a capture; the capture is then invalid.
pub fn forbid() -> Result<(), Code> {
    let here = std::thread::current().id();
    let forbids = |capture: &Arc<Capture>| match capture.mode {
        Mode::Global => true,
        Mode::ThreadLocal => capture.thread == here,
        Mode::Relaxed => false,
    };
    match active().iter().find(|capture| forbids(capture)) {
        None => Ok(()),
        Some(capture) => {
            capture.invalidate();
            Err(Code::STREAM_CAPTURE_UNSUPPORTED)
        }
    }
}

fn identity(stream: &Arc<Stream>) -> usize {
    Arc::as_ptr(stream).addr()
}

impl Capture {
    /// Begins to capture `stream`.
    pub fn begin(stream: &Arc<Stream>, mode: Mode) -> Result<(), Code> {
        if stream.capture().is_some() {
            return Err(Code::ILLEGAL_STATE);
        }
        let thread = std::thread::current().id();
        let capture = Arc::new(Capture { mode, thread, origin: Arc::downgrade(stream), state: Mutex::default() });
        active().push(capture.clone());
        stream.set_capture(Some(capture));
        Ok(())
    }

    /// Ends the capture that began in `stream` and returns its work.
    pub fn end(stream: &Arc<Stream>) -> Result<Vec<Work>, Code> {
        let capture = stream.capture().ok_or(Code::ILLEGAL_STATE)?;
        if !std::ptr::eq(capture.origin.as_ptr(), Arc::as_ptr(stream)) {
            return Err(Code::STREAM_CAPTURE_UNMATCHED);
        }
        if capture.mode != Mode::Relaxed && capture.thread != std::thread::current().id() {
            return Err(Code::STREAM_CAPTURE_WRONG_THREAD);
        }
        active().retain(|other| !Arc::ptr_eq(other, &capture));
        let state = std::mem::take(&mut *capture.state());
        stream.set_capture(None);
        state.branches.values().for_each(|branch| branch.stream.set_capture(None));
        match () {
            () if state.invalid => Err(Code::STREAM_CAPTURE_INVALIDATED),
            () if state.branches.values().any(|branch| !branch.joined) => Err(Code::STREAM_CAPTURE_UNJOINED),
            () => Ok(state.work),
        }
    }

    /// Adds work of one of the capture's streams.
    pub fn add(&self, stream: &Arc<Stream>, work: Work) -> Result<(), Code> {
        let mut state = self.state();
        if state.invalid {
            return Err(Code::STREAM_CAPTURE_INVALIDATED);
        }
        state.work.push(work);
        let last = state.work.len();
        if let Some(branch) = state.branches.get_mut(&identity(stream)) {
            (branch.last, branch.joined) = (last, false);
        }
        Ok(())
    }

    /// The present place of `stream` in this capture, for an event.
    pub fn mark(self: &Arc<Self>, stream: &Arc<Stream>) -> Mark {
        Mark { capture: Arc::downgrade(self), stream: identity(stream), length: self.state().work.len() }
    }

    /// `stream` waits for `mark` of this capture: it joins the capture, and the marked stream is waited for.
    pub fn join(self: &Arc<Self>, stream: &Arc<Stream>, mark: &Mark) -> Result<(), Code> {
        match stream.capture() {
            Some(other) if !Arc::ptr_eq(&other, self) => return Err(Code::STREAM_CAPTURE_MERGE),
            Some(_) => {}
            None => {
                stream.set_capture(Some(self.clone()));
                // A branch that does nothing at all still has to be waited for.
                let branch = Branch { stream: stream.clone(), last: 0, joined: false };
                self.state().branches.insert(identity(stream), branch);
            }
        }
        if let Some(branch) = self.state().branches.get_mut(&mark.stream) {
            branch.joined |= mark.length >= branch.last;
        }
        Ok(())
    }

    /// Something forbidden was done: nothing will come of this capture.
    pub fn invalidate(&self) {
        self.state().invalid = true;
    }

    /// Whether something forbidden was done.
    pub fn is_invalid(&self) -> bool {
        self.state().invalid
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::Health;

    fn stream() -> Arc<Stream> {
        Stream::start("test".into(), Arc::new(Health::default()), 0).unwrap()
    }

    fn nothing() -> Work {
        Work::always(|| {})
    }

    #[test]
    fn a_captured_stream_lists_its_work_instead_of_doing_it() {
        let (a, done) = (stream(), Arc::new(Mutex::new(0)));
        Capture::begin(&a, Mode::Relaxed).unwrap();
        let count = done.clone();
        a.submit(Work::always(move || *count.lock().unwrap() += 1)).unwrap();
        let work = Capture::end(&a).unwrap();
        a.synchronise();
        assert_eq!((work.len(), *done.lock().unwrap()), (1, 0));
        for _ in 0..2 {
            work.iter().for_each(|work| a.submit(work.clone()).unwrap());
        }
        a.synchronise();
        assert_eq!(*done.lock().unwrap(), 2);
    }

    #[test]
    fn a_branch_must_be_waited_for() {
        let (a, b) = (stream(), stream());
        for rejoin in [true, false] {
            Capture::begin(&a, Mode::Relaxed).unwrap();
            let capture = a.capture().unwrap();
            capture.join(&b, &capture.mark(&a)).unwrap();
            let early = capture.mark(&b);
            b.submit(nothing()).unwrap();
            let late = capture.mark(&b);
            a.submit(nothing()).unwrap();
            capture.join(&a, if rejoin { &late } else { &early }).unwrap();
            let ended = Capture::end(&a).map(|work| work.len());
            assert_eq!(ended, if rejoin { Ok(2) } else { Err(Code::STREAM_CAPTURE_UNJOINED) });
            assert!(b.capture().is_none());
        }
    }

    #[test]
    fn a_forbidden_call_is_refused_and_spoils_the_capture() {
        let a = stream();
        Capture::begin(&a, Mode::ThreadLocal).unwrap();
        assert_eq!(forbid(), Err(Code::STREAM_CAPTURE_UNSUPPORTED));
        assert_eq!(std::thread::spawn(forbid).join().unwrap(), Ok(()), "another thread is free to wait");
        assert_eq!(a.submit(nothing()), Err(Code::STREAM_CAPTURE_INVALIDATED));
        assert_eq!(Capture::end(&a).err(), Some(Code::STREAM_CAPTURE_INVALIDATED));
        assert_eq!(forbid(), Ok(()));
    }

    #[test]
    fn the_wrong_stream_and_the_wrong_thread_cannot_end_a_capture() {
        let (a, b) = (stream(), stream());
        Capture::begin(&a, Mode::ThreadLocal).unwrap();
        let capture = a.capture().unwrap();
        capture.join(&b, &capture.mark(&a)).unwrap();
        assert_eq!(Capture::end(&b).err(), Some(Code::STREAM_CAPTURE_UNMATCHED));
        let other = a.clone();
        let ended = std::thread::spawn(move || Capture::end(&other).err()).join().unwrap();
        assert_eq!(ended, Some(Code::STREAM_CAPTURE_WRONG_THREAD));
        assert_eq!(Capture::begin(&a, Mode::ThreadLocal).err(), Some(Code::ILLEGAL_STATE));
        assert_eq!(Capture::end(&a).err(), Some(Code::STREAM_CAPTURE_UNJOINED));
    }
}

//! Events: places in the work of a stream that others wait for.
//!
//! An event counts its recordings and the recordings that have been reached. Who waits, waits for the recording that
//! was the last one at the time of the call; recording the event again changes nothing for it.
#![expect(clippy::disallowed_methods, reason = "elapsed time between events is what the clock says")]

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::capture::Mark;
use crate::codes::Code;
use crate::stream::{Stream, Work};

/// An event of one context.
pub struct Event {
    timed: bool,
    state: Mutex<State>,
    reached: Condvar,
}

#[derive(Default)]
struct State {
    recorded: u64,
    reached: u64,
    at: Option<Instant>,
    /// Where in a capture the event was recorded last, if it was.
    mark: Option<Mark>,
}

impl Event {
    /// An event that was never recorded; `timed` if it also notes when it was reached.
    pub fn new(timed: bool) -> Arc<Event> {
        Arc::new(Event { timed, state: Mutex::default(), reached: Condvar::new() })
    }

    /// Marks the end of what `stream` has been given so far.
    pub fn record(self: &Arc<Self>, stream: &Arc<Stream>) -> Result<(), Code> {
        if let Some(capture) = stream.capture() {
            if capture.is_invalid() {
                return Err(Code::STREAM_CAPTURE_INVALIDATED);
            }
            self.state().mark = Some(capture.mark(stream));
            return Ok(());
        }
        let recording = {
            let mut state = self.state();
            state.mark = None;
            state.recorded += 1;
            state.recorded
        };
        let event = self.clone();
        stream.submit(Work::always(move || event.reach(recording)))
    }

    /// Lets later work of `stream` wait for the last recording.
    pub fn hold(self: &Arc<Self>, stream: &Arc<Stream>) -> Result<(), Code> {
        let mark = self.state().mark.clone();
        match (mark.and_then(|mark| Some((mark.capture()?, mark))), stream.capture()) {
            (Some((capture, mark)), _) => capture.join(stream, &mark),
            (None, Some(capture)) => {
                capture.invalidate();
                Err(Code::STREAM_CAPTURE_ISOLATION)
            }
            (None, None) => {
                let (event, recording) = (self.clone(), self.state().recorded);
                stream.submit(Work::always(move || event.wait(recording)))
            }
        }
    }

    /// Waits on this thread for the last recording.
    pub fn synchronise(&self) -> Result<(), Code> {
        self.refuse_captured()?;
        let recording = self.state().recorded;
        self.wait(recording);
        Ok(())
    }

    /// Whether the last recording has been reached; an event that was never recorded has.
    pub fn query(&self) -> Result<(), Code> {
        self.refuse_captured()?;
        let state = self.state();
        if state.reached < state.recorded { Err(Code::NOT_READY) } else { Ok(()) }
    }

    /// Milliseconds from `self` to `end`.
    pub fn elapsed_ms(&self, end: &Event) -> Result<f32, Code> {
        let (from, to) = (self.time()?, end.time()?);
        let forward = to.saturating_duration_since(from).as_secs_f32();
        let backward = from.saturating_duration_since(to).as_secs_f32();
        Ok((forward - backward) * 1e3)
    }

    fn time(&self) -> Result<Instant, Code> {
        if !self.timed {
            return Err(Code::INVALID_HANDLE);
        }
        self.query()?;
        self.state().at.ok_or(Code::INVALID_HANDLE)
    }

    fn refuse_captured(&self) -> Result<(), Code> {
        match self.state().mark.as_ref().and_then(Mark::capture) {
            Some(_) => Err(Code::CAPTURED_EVENT),
            None => Ok(()),
        }
    }

    fn reach(&self, recording: u64) {
        let mut state = self.state();
        if recording > state.reached {
            (state.reached, state.at) = (recording, Some(Instant::now()));
        }
        self.reached.notify_all();
    }

    fn wait(&self, recording: u64) {
        let mut state = self.state();
        while state.reached < recording {
            state = self.reached.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::capture::{Capture, Mode};
    use crate::health::Health;

    fn stream() -> Arc<Stream> {
        Stream::start("test".into(), Arc::new(Health::default()), 0).unwrap()
    }

    fn pause(stream: &Arc<Stream>, ms: u64) {
        stream.submit(Work::always(move || std::thread::sleep(Duration::from_millis(ms)))).unwrap();
    }

    #[test]
    fn work_behind_a_wait_comes_after_the_recorded_work() {
        let (a, b, event) = (stream(), stream(), Event::new(false));
        let order = Arc::new(Mutex::new(Vec::new()));
        pause(&a, 30);
        for (stream, name) in [(&a, "a"), (&b, "b")] {
            if name == "b" {
                event.hold(&b).unwrap();
            }
            let order = order.clone();
            stream.submit(Work::always(move || order.lock().unwrap().push(name))).unwrap();
            if name == "a" {
                event.record(&a).unwrap();
                assert_eq!(event.query(), Err(Code::NOT_READY));
            }
        }
        b.synchronise();
        assert_eq!((order.lock().unwrap().clone(), event.query()), (vec!["a", "b"], Ok(())));
    }

    #[test]
    fn an_event_that_was_never_recorded_holds_nobody() {
        let event = Event::new(true);
        assert_eq!((event.query(), event.synchronise()), (Ok(()), Ok(())));
        assert_eq!(event.elapsed_ms(&event), Err(Code::INVALID_HANDLE));
    }

    #[test]
    fn elapsed_time_is_that_of_the_work_between() {
        let (a, from, to) = (stream(), Event::new(true), Event::new(true));
        from.record(&a).unwrap();
        pause(&a, 20);
        to.record(&a).unwrap();
        to.synchronise().unwrap();
        let (forward, backward) = (from.elapsed_ms(&to).unwrap(), to.elapsed_ms(&from).unwrap());
        assert!(forward >= 20.0 && backward == -forward, "{forward} {backward}");
        let untimed = Event::new(false);
        untimed.record(&a).unwrap();
        untimed.synchronise().unwrap();
        assert_eq!(untimed.elapsed_ms(&to), Err(Code::INVALID_HANDLE));
    }

    #[test]
    fn a_capture_may_not_depend_on_uncaptured_work_nor_be_waited_for() {
        let (a, before, inside) = (stream(), Event::new(false), Event::new(false));
        before.record(&a).unwrap();
        Capture::begin(&a, Mode::Relaxed).unwrap();
        inside.record(&a).unwrap();
        assert_eq!(inside.query(), Err(Code::CAPTURED_EVENT));
        assert_eq!(inside.synchronise(), Err(Code::CAPTURED_EVENT));
        assert_eq!(before.hold(&a), Err(Code::STREAM_CAPTURE_ISOLATION));
        assert_eq!(Capture::end(&a).err(), Some(Code::STREAM_CAPTURE_INVALIDATED));
        assert_eq!(inside.query(), Ok(()));
    }
}

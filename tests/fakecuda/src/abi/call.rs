//! What every entry point does around its work: the planned faults, the log, the status.

use std::cell::Cell;
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::codes::Status;
use crate::faults::{Plan, Planned};
use crate::journal;
use crate::settings::fault_plan;

thread_local! {
    static HANG: Cell<bool> = const { Cell::new(false) };
}

/// Defines entry points: `fn name(arguments) -> Kind { body }`, where the body ends in a `Result<(), Kind>`.
macro_rules! entry_points {
    ($(fn $name:ident($($argument:ident: $type:ty),* $(,)?) -> $kind:ident $body:block)*) => { $(
        #[doc = concat!("`", stringify!($name), "` of the C interface.")]
        #[unsafe(no_mangle)]
        #[allow(non_snake_case, clippy::too_many_arguments, reason = "the C interface says so")]
        pub extern "C" fn $name($($argument: $type),*) -> std::ffi::c_int {
            $crate::abi::call::enter(stringify!($name), || -> Result<(), $kind> { $body })
        }
    )*
        /// The entry points of this file, for the fault plan.
        pub const NAMES: &[&str] = &[$(stringify!($name)),*];
    };
}
pub(crate) use entry_points;

/// Does the work of one call, unless a fault is planned for it, and returns the number for the C caller.
pub fn enter<S: Status>(symbol: &str, work: impl FnOnce() -> Result<(), S>) -> i32 {
    let outcome = match planned(symbol) {
        Some(Planned::Code(number)) => Err(S::from_number(number)),
        plan => {
            HANG.set(plan == Some(Planned::Hang));
            work()
        }
    };
    let number = outcome.map_or_else(|status| status.number(), |()| 0);
    journal::call(symbol, number);
    number
}

/// Whether the collective that this thread is in the call of shall hang; asked once.
pub fn take_hang() -> bool {
    HANG.take()
}

fn planned(symbol: &str) -> Option<Planned> {
    static PLAN: OnceLock<Mutex<Plan>> = OnceLock::new();
    let plan = PLAN.get_or_init(|| Mutex::new(fault_plan(super::is_entry_point)));
    plan.lock().unwrap_or_else(PoisonError::into_inner).call(symbol)
}

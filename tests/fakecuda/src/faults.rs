//! Faults injected by plan: "the third `cuMemAlloc_v2` returns 2". Pure; the plan's text comes from
//! `INSULA_FAKECUDA_FAIL`, the calls from the entry points.
//!
//! ```text
//! symbol:nth:code[;symbol:nth:code]...     code: a number of that library, or `hang` for a collective
//! ```

use std::collections::BTreeMap;
use std::fmt;

/// What one planned call does instead of its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planned {
    /// Returns this number at once.
    Code(i32),
    /// Is accepted, and then its stream hangs until the communicator is aborted.
    Hang,
}

/// A text that is no fault plan.
#[derive(Debug, PartialEq, Eq)]
pub enum PlanError {
    /// An entry that is not of the form.
    Form(String),
    /// An entry for a symbol that does not exist, and would never strike.
    Symbol(String),
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PlanError::Form(entry) => {
                write!(f, "`{entry}` is not symbol:nth:code, with nth from 1 and code a number, or `hang` for nccl")
            }
            PlanError::Symbol(symbol) => write!(f, "there is no entry point `{symbol}`"),
        }
    }
}

impl std::error::Error for PlanError {}

/// Which call of which symbol fails, and how many calls each symbol has had.
#[derive(Debug, Default)]
pub struct Plan {
    entries: Vec<(String, u64, Planned)>,
    calls: BTreeMap<String, u64>,
}

impl Plan {
    /// Reads a plan; an empty text is the plan without faults.
    ///
    /// # Errors
    /// An entry that cannot be read, or names a symbol that `known` does not know.
    pub fn parse(text: &str, known: impl Fn(&str) -> bool) -> Result<Plan, PlanError> {
        let entries = text.split(';').map(str::trim).filter(|entry| !entry.is_empty()).map(entry);
        let entries = entries.collect::<Result<Vec<_>, _>>()?;
        if let Some((symbol, ..)) = entries.iter().find(|(symbol, ..)| !known(symbol)) {
            return Err(PlanError::Symbol(symbol.clone()));
        }
        Ok(Plan { entries, calls: BTreeMap::new() })
    }

    /// Counts one call of `symbol` and says what the plan has for it.
    pub fn call(&mut self, symbol: &str) -> Option<Planned> {
        if !self.entries.iter().any(|(name, ..)| name == symbol) {
            return None;
        }
        let calls = self.calls.entry(symbol.to_owned()).or_default();
        *calls += 1;
        self.entries.iter().find(|(name, nth, _)| name == symbol && nth == calls).map(|(.., planned)| *planned)
    }
}

fn entry(text: &str) -> Result<(String, u64, Planned), PlanError> {
    let wrong = || PlanError::Form(text.to_owned());
    let [symbol, nth, code] = text.split(':').collect::<Vec<_>>().try_into().map_err(|_| wrong())?;
    let nth = nth.parse().ok().filter(|nth| *nth > 0).ok_or_else(wrong)?;
    let planned = if code == "hang" && symbol.starts_with("nccl") {
        Planned::Hang
    } else {
        Planned::Code(code.parse().map_err(|_| wrong())?)
    };
    Ok((symbol.to_owned(), nth, planned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_planned_call_and_no_other_fails() {
        let mut plan = Plan::parse("cuMemAlloc_v2:3:2; ncclAllReduce:1:hang", |_| true).unwrap();
        let seen: Vec<_> = (0..4).map(|_| plan.call("cuMemAlloc_v2")).collect();
        assert_eq!(seen, [None, None, Some(Planned::Code(2)), None]);
        assert_eq!(plan.call("ncclAllReduce"), Some(Planned::Hang));
        assert_eq!(plan.call("ncclAllReduce"), None);
        assert_eq!(plan.call("cuInit"), None);
    }

    #[test]
    fn a_symbol_may_fail_more_than_once() {
        let mut plan = Plan::parse("cuLaunchKernel:1:719;cuLaunchKernel:2:1", |_| true).unwrap();
        assert_eq!(plan.call("cuLaunchKernel"), Some(Planned::Code(719)));
        assert_eq!(plan.call("cuLaunchKernel"), Some(Planned::Code(1)));
    }

    #[test]
    fn a_malformed_plan_is_refused() {
        for text in ["cuInit", "cuInit:0:1", "cuInit:x:1", "cuInit:1:y", "cuInit:1:2:3", "cuInit:1:hang"] {
            assert_eq!(Plan::parse(text, |_| true).err(), Some(PlanError::Form(text.to_owned())));
        }
        let misspelt = Plan::parse("cuMemAloc:1:2", |symbol| symbol == "cuMemAlloc_v2");
        assert_eq!(misspelt.err(), Some(PlanError::Symbol("cuMemAloc".to_owned())));
    }
}

//! `insula doctor --gpu`: every operation of every GPU against the CPU's, what the GPUs reach, and whether NCCL joins
//! them. What it prints is made to be pasted into an issue.

use std::thread;

use insula_kernels::{
    Cpu, Cuda, KernelError,
    check::{self, Checked},
    cuda::{
        Facts,
        measure::{Reached, Size},
        nccl::{self, Communicator},
    },
};
use serde_json::{Value, json};

use super::Finding;
use crate::failure::Failure;

/// What there is.
pub fn facts() -> Result<Vec<Facts>, KernelError> {
    (0..Cuda::count()?).map(Cuda::facts_of).collect()
}

/// A GPU in a line.
pub fn described(facts: &Facts) -> String {
    let Facts { ordinal, name, compute_capability: (major, minor), memory, free, .. } = facts;
    let gigabytes = |bytes: usize| bytes as f64 / 1e9;
    format!(
        "cuda:{ordinal} {name}, compute capability {major}.{minor}, {:.1} of {:.1} GB free",
        gigabytes(*free),
        gigabytes(*memory)
    )
}

/// One GPU, looked at closely.
struct Examined {
    facts: Facts,
    checked: Vec<Checked>,
    reached: Vec<Reached>,
}

/// All of them.
pub struct Gpus {
    gpus: Vec<Examined>,
    /// What NCCL did; `None`: there are not two, or it is missing.
    joined: Option<Result<(), String>>,
}

/// Looks at every GPU.
///
/// # Errors
/// When there is none, or a device refuses.
pub fn examine(quick: bool) -> Result<Gpus, Failure> {
    let failed = |error: KernelError| Failure::Operation(error.to_string());
    let count = Cuda::count().map_err(failed)?;
    if count == 0 {
        // The error says what is missing.
        Cuda::open(0).map_err(failed)?;
    }
    let (scale, size) = match quick {
        true => (check::Scale::SMALL, Size::SMALL),
        false => (check::Scale::USUAL, Size::USUAL),
    };
    let cpu = Cpu::new(0).map_err(failed)?;
    let examined = |ordinal| {
        let gpu = Cuda::open(ordinal)?;
        let (facts, checked) = (gpu.facts()?, check::operations(&cpu, &gpu, scale)?);
        Ok(Examined { facts, checked, reached: gpu.measure(size)? })
    };
    let gpus = (0..count).map(examined).collect::<Result<_, _>>().map_err(failed)?;
    let joined = (count > 1 && nccl::is_available()).then(|| ring(count));
    Ok(Gpus { gpus, joined })
}

/// Sends round all GPUs and adds over all of them; says what went wrong.
fn ring(world: usize) -> Result<(), String> {
    let id = nccl::unique_id().map_err(|error| error.to_string())?;
    let of_rank = |rank: usize| -> Result<(), KernelError> {
        let gpu = Cuda::open(rank)?;
        let communicator = Communicator::begin(&gpu, &id, rank, world)?;
        communicator.await_ready()?;
        let value = |rank: usize| vec![rank as f32 + 0.5; 1000];
        let (next, before) = ((rank + 1) % world, (rank + world - 1) % world);
        let outgoing: Vec<_> = (0..world).map(|to| if to == next { value(rank) } else { vec![] }).collect();
        let lengths: Vec<_> = (0..world).map(|from| if from == before { 1000 } else { 0 }).collect();
        let received = communicator.trade(&outgoing, &lengths)?;
        let sum = communicator.sum(&value(rank))?;
        let expected: f32 = (0..world).map(|rank| rank as f32 + 0.5).sum();
        let right = received[before] == value(before) && sum.iter().all(|found| *found == expected);
        match right {
            true => Ok(()),
            false => Err(KernelError::Device { operation: "nccl", reason: "other values than were sent".into() }),
        }
    };
    thread::scope(|scope| {
        let ranks: Vec<_> = (0..world).map(|rank| scope.spawn(move || of_rank(rank))).collect();
        let ended = ranks.into_iter().enumerate().map(|(rank, ended)| match ended.join() {
            Ok(result) => result.map_err(|error| format!("rank {rank}: {error}")),
            Err(_) => Err(format!("rank {rank} panicked")),
        });
        ended.collect()
    })
}

impl Gpus {
    /// What is wrong or right, in a line each.
    pub fn findings(&self) -> Vec<Finding> {
        let of_gpu = |gpu: &Examined| {
            let wrong: Vec<_> = gpu.checked.iter().filter(|checked| !checked.agrees()).collect();
            let found = match wrong.first() {
                None => format!("cuda:{}: {} results as the CPU's", gpu.facts.ordinal, gpu.checked.len()),
                Some(first) => format!(
                    "cuda:{}: {} of {} results differ from the CPU's, {} first",
                    gpu.facts.ordinal,
                    wrong.len(),
                    gpu.checked.len(),
                    first.operation
                ),
            };
            Finding { what: "GPU operations", good: wrong.is_empty(), found }
        };
        let nccl = match &self.joined {
            Some(Ok(())) => Finding { what: "NCCL", good: true, found: "joins all GPUs".into() },
            Some(Err(why)) => Finding { what: "NCCL", good: false, found: why.clone() },
            None if self.gpus.len() > 1 => {
                let found = "libnccl.so not found: GPUs exchange over the network".into();
                Finding { what: "NCCL", good: true, found }
            }
            None => Finding { what: "NCCL", good: true, found: "not needed for one GPU".into() },
        };
        self.gpus.iter().map(of_gpu).chain([nccl]).collect()
    }

    /// Tables.
    pub fn text(&self) -> String {
        let mut lines = Vec::new();
        for Examined { facts, checked, reached } in &self.gpus {
            lines.push(format!("\n{}", described(facts)));
            lines.push(format!("{:<28} {:<34} {:>9} {:>9}", "operation", "shape", "off by", "at most"));
            for Checked { operation, shape, off, most } in checked {
                let mark = if off <= most { "" } else { "  DIFFERS" };
                lines.push(format!("{operation:<28} {shape:<34} {off:>9.1e} {most:>9.1e}{mark}"));
            }
            let ceiling = |what| reached.iter().find(|reached| reached.what == what);
            let (copy, product) = (ceiling("copy").map(|c| c.bytes), ceiling("product").map(|p| p.operations));
            lines.push(format!(
                "\n{:<24} {:>10} {:>10} {:>9} {:>10} {:>9}",
                "reached", "ms", "GB/s", "of copy", "TFLOP/s", "of GEMM"
            ));
            for Reached { what, seconds, bytes, operations } in reached {
                let part =
                    |of: f64, whole: Option<f64>| whole.map_or(String::new(), |w| format!("{:.0}%", 100.0 * of / w));
                lines.push(format!(
                    "{what:<24} {:>10.3} {:>10.0} {:>9} {:>10.2} {:>9}",
                    seconds * 1e3,
                    bytes / 1e9,
                    part(*bytes, copy),
                    operations / 1e12,
                    part(*operations, product)
                ));
            }
        }
        lines.join("\n")
    }

    fn json(&self) -> Value {
        let checked = |c: &Checked| json!({ "operation": c.operation, "shape": c.shape, "off": c.off, "most": c.most });
        let reached = |r: &Reached| json!({ "what": r.what, "seconds": r.seconds, "bytes_per_second": r.bytes, "operations_per_second": r.operations });
        let of_gpu = |gpu: &Examined| {
            json!({
                "name": gpu.facts.name,
                "compute_capability": gpu.facts.compute_capability,
                "memory_bytes": gpu.facts.memory,
                "multiprocessors": gpu.facts.multiprocessors,
                "checked": gpu.checked.iter().map(checked).collect::<Vec<_>>(),
                "reached": gpu.reached.iter().map(reached).collect::<Vec<_>>(),
            })
        };
        Value::Array(self.gpus.iter().map(of_gpu).collect())
    }
}

impl serde::Serialize for Gpus {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.json().serialize(serializer)
    }
}

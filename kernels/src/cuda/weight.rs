//! Frozen matrices on a GPU: bfloat16, or quantised and widened to bfloat16 whenever a product reads them.

use half::bf16;

use super::{
    Cuda,
    device::Arg,
    launch,
    memory::{Block, Element},
};
use crate::{
    backend::Precision,
    cpu::quant::{BLOCK, Bits, Step},
    error::KernelError,
};

/// How the values lie there.
#[derive(Debug)]
enum Stored {
    /// Row-major.
    Bf16(Block),
    /// Rows of blocks of 32 values: a byte each, and a float16 scale for each block.
    Q8 { values: Block, scales: Block },
    /// Half a byte each (of a block's 16 bytes, byte k holds values k and k + 16), a scale and a least value.
    Q4 { values: Block, scales: Block, leasts: Block },
}

/// A frozen matrix `[rows, columns]` on a GPU.
#[derive(Debug)]
pub struct CudaWeight {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    stored: Stored,
}

/// A matrix in bfloat16: the weight itself, or what was made of it for now.
pub(crate) enum Dense<'a> {
    Own(&'a Block),
    Widened(Block),
}

impl Dense<'_> {
    pub(crate) fn address(&self) -> u64 {
        match self {
            Self::Own(block) => block.address(),
            Self::Widened(block) => block.address(),
        }
    }
}

impl Cuda {
    /// A matrix from row-major float32 values. float32 is held as bfloat16: products read nothing else.
    pub(super) fn hold(
        &self,
        [rows, columns]: [usize; 2],
        values: &[f32],
        precision: Precision,
    ) -> Result<CudaWeight, KernelError> {
        assert_eq!(values.len(), rows * columns, "a weight holds rows x columns values");
        let stored = match precision {
            Precision::F32 | Precision::Bf16 => {
                let rounded: Vec<u8> = values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect();
                Stored::Bf16(self.sent(&rounded)?)
            }
            Precision::Q8 => {
                let Planes { values, scales, .. } = Planes::of(values, columns, Bits::Eight);
                Stored::Q8 { values: self.sent(&values)?, scales: self.sent(&scales)? }
            }
            Precision::Q4 => {
                let Planes { values, scales, leasts } = Planes::of(values, columns, Bits::Four);
                Stored::Q4 { values: self.sent(&values)?, scales: self.sent(&scales)?, leasts: self.sent(&leasts)? }
            }
        };
        Ok(CudaWeight { rows, columns, stored })
    }

    /// A matrix that a kernel has written.
    pub(super) fn held(&self, [rows, columns]: [usize; 2], block: Block) -> CudaWeight {
        CudaWeight { rows, columns, stored: Stored::Bf16(block) }
    }

    fn sent(&self, bytes: &[u8]) -> Result<Block, KernelError> {
        let block = self.pool.kept(bytes.len())?;
        self.device.write(block.address(), bytes)?;
        Ok(block)
    }

    /// The matrix as products read it.
    pub(super) fn dense<'a>(&self, weight: &'a CudaWeight) -> Result<Dense<'a>, KernelError> {
        let (rows, columns) = (weight.rows, weight.columns);
        let widened = || self.pool.scratch(rows * columns * Element::Bf16.bytes());
        let size = [Arg::U32(rows as u32), Arg::U32(columns as u32)];
        match &weight.stored {
            Stored::Bf16(block) => Ok(Dense::Own(block)),
            Stored::Q8 { values, scales } => {
                let to = widened()?;
                let args = [values, scales, &to].map(|block| Arg::Address(block.address()));
                self.device.launch(&launch::dequantise_q8(rows, columns)?, &[&args[..], &size].concat())?;
                Ok(Dense::Widened(to))
            }
            Stored::Q4 { values, scales, leasts } => {
                let to = widened()?;
                let args = [values, scales, leasts, &to].map(|block| Arg::Address(block.address()));
                self.device.launch(&launch::dequantise_q4(rows, columns)?, &[&args[..], &size].concat())?;
                Ok(Dense::Widened(to))
            }
        }
    }

    /// `out[t] = weight[ids[t]]`.
    pub(super) fn rows_of(&self, weight: &CudaWeight, ids: u64, count: usize, out: u64) -> Result<(), KernelError> {
        let last = [Arg::Address(ids), Arg::Address(out), Arg::U32(weight.columns as u32)];
        let (launch, planes) = match &weight.stored {
            Stored::Bf16(block) => (launch::embed_bf16(count, weight.columns)?, vec![block]),
            Stored::Q8 { values, scales } => (launch::embed_q8(count, weight.columns)?, vec![values, scales]),
            Stored::Q4 { values, scales, leasts } => {
                (launch::embed_q4(count, weight.columns)?, vec![values, scales, leasts])
            }
        };
        let planes = planes.into_iter().map(|block| Arg::Address(block.address()));
        self.device.launch(&launch, &planes.chain(last).collect::<Vec<_>>())
    }
}

/// Quantised values as the kernels read them, each plane's bytes.
struct Planes {
    values: Vec<u8>,
    scales: Vec<u8>,
    leasts: Vec<u8>,
}

impl Planes {
    fn of(values: &[f32], columns: usize, bits: Bits) -> Self {
        let mut planes = Self { values: Vec::new(), scales: Vec::new(), leasts: Vec::new() };
        for block in values.chunks(columns).flat_map(|row| row.chunks(BLOCK)) {
            let step = Step::of(block.iter().copied(), bits);
            let mut counts = [0; BLOCK];
            block.iter().zip(&mut counts).for_each(|(value, count)| *count = step.count(*value, bits));
            match bits {
                Bits::Eight => planes.values.extend(counts),
                Bits::Four => planes.values.extend((0..BLOCK / 2).map(|k| counts[k] | counts[k + BLOCK / 2] << 4)),
            }
            planes.scales.extend(step.scale.to_le_bytes());
            planes.leasts.extend(step.least.to_le_bytes());
        }
        planes
    }
}

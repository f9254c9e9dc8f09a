//! What a worker computes on: the choice a person makes, and the device it comes to.

use std::{fmt, str::FromStr};

use insula_kernels::{Cpu, Cuda, KernelError, Precision};

use crate::{
    base::{ModelConfig, TensorSource},
    engine::{Compute, Engine, EngineError},
};

/// What a person asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// A GPU where there is one, else the CPU.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// The GPU of this number.
    Cuda(usize),
}

/// A device's name that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("device {found:?}: expected auto, cpu, cuda or cuda:N")]
pub struct UnknownDevice {
    /// What was given.
    pub found: String,
}

impl FromStr for DeviceChoice {
    type Err = UnknownDevice;

    fn from_str(text: &str) -> Result<Self, UnknownDevice> {
        let unknown = || UnknownDevice { found: text.to_owned() };
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => text.strip_prefix("cuda:").and_then(|n| n.parse().ok()).map(Self::Cuda).ok_or_else(unknown),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

/// A device that is there.
#[derive(Debug, Clone)]
pub enum Device {
    /// The processor, with so many threads (0: one per core).
    Cpu {
        /// Compute threads.
        threads: usize,
    },
    /// A GPU, open.
    Cuda {
        /// It.
        gpu: Cuda,
        /// What computes the same bits: [`Cuda::kind`].
        kind: String,
    },
}

impl Device {
    /// The device of a choice. A GPU that `auto` finds and cannot use is told of in the log, and the CPU taken.
    ///
    /// # Errors
    /// When a GPU is asked for and is not there, or what drives it is missing.
    pub fn of(choice: DeviceChoice, threads: usize) -> Result<Self, KernelError> {
        let open = |ordinal| -> Result<Self, KernelError> {
            let gpu = Cuda::open(ordinal)?;
            let kind = gpu.kind()?;
            Ok(Self::Cuda { gpu, kind })
        };
        let on_cpu = |error: KernelError| -> Result<Self, KernelError> {
            tracing::warn!("computing on the CPU: {error}");
            Ok(Self::Cpu { threads })
        };
        match choice {
            DeviceChoice::Cpu => Ok(Self::Cpu { threads }),
            DeviceChoice::Cuda(ordinal) => open(ordinal),
            DeviceChoice::Auto => match Cuda::count() {
                Ok(0) => Ok(Self::Cpu { threads }),
                Ok(_) => open(0).or_else(on_cpu),
                Err(error) => on_cpu(error),
            },
        }
    }

    /// Its kind: two devices of one kind compute the same bits.
    #[must_use]
    pub fn kind(&self) -> String {
        match self {
            Self::Cpu { .. } => "cpu".to_owned(),
            Self::Cuda { kind, .. } => format!("cuda {kind}"),
        }
    }

    /// The GPU, if it is one.
    #[must_use]
    pub fn gpu(&self) -> Option<&Cuda> {
        match self {
            Self::Cpu { .. } => None,
            Self::Cuda { gpu, .. } => Some(gpu),
        }
    }

    /// Loads a base onto it.
    ///
    /// # Errors
    /// As [`Engine::load`].
    pub fn load(
        &self,
        config: &ModelConfig,
        source: &dyn TensorSource,
        precision: Precision,
    ) -> Result<Box<dyn Compute>, EngineError> {
        match self {
            Self::Cpu { threads } => Ok(Box::new(Engine::load(Cpu::new(*threads)?, config, source, precision)?)),
            Self::Cuda { gpu, .. } => Ok(Box::new(Engine::load(gpu.clone(), config, source, precision)?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_are_written() {
        for (text, choice) in [
            ("auto", DeviceChoice::Auto),
            ("cpu", DeviceChoice::Cpu),
            ("cuda:0", DeviceChoice::Cuda(0)),
            ("cuda:11", DeviceChoice::Cuda(11)),
        ] {
            assert_eq!(text.parse(), Ok(choice));
            assert_eq!(choice.to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
            let refused = text.parse::<DeviceChoice>().unwrap_err().to_string();
            assert_eq!(refused, format!("device {text:?}: expected auto, cpu, cuda or cuda:N"));
        }
    }
}

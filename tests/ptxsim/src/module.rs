//! The public face of parsed text: a module, its kernels, their parameters.

use std::collections::BTreeMap;

use crate::parse::{self, ParseError};
use crate::program::Program;

/// A parsed PTX text.
#[derive(Debug, Clone)]
pub struct Module {
    pub(crate) kernels: BTreeMap<String, Kernel>,
}

impl Module {
    /// Parses a whole text.
    ///
    /// # Errors
    /// The first statement that is malformed or not modelled, with its line.
    pub fn parse(text: &str) -> Result<Module, ParseError> {
        parse::module(text)
    }

    /// The kernel of that name.
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.get(name)
    }

    /// All kernels, by name.
    pub fn kernels(&self) -> impl Iterator<Item = &Kernel> {
        self.kernels.values()
    }
}

/// One `.entry`.
#[derive(Debug, Clone)]
pub struct Kernel {
    pub(crate) name: String,
    pub(crate) params: Vec<Param>,
    pub(crate) shared_bytes: usize,
    pub(crate) max_threads: Option<u32>,
    pub(crate) program: Program,
}

/// A parameter's place in the parameter bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Param {
    /// Bytes from the start.
    pub offset: usize,
    /// Bytes.
    pub size: usize,
}

impl Kernel {
    /// The entry's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The parameters in order.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// Bytes of all parameters, padding between them included.
    pub fn param_bytes(&self) -> usize {
        self.params.last().map_or(0, |param| param.offset + param.size)
    }

    /// Bytes of shared memory that the kernel declares, the dynamic part not included.
    pub fn shared_bytes(&self) -> usize {
        self.shared_bytes
    }

    /// The most threads a block may have, when the kernel was compiled with launch bounds.
    pub fn max_threads(&self) -> Option<u32> {
        self.max_threads
    }
}

//! Kernels broken on purpose.

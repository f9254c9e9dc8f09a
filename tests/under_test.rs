//! The binary `insula`.
fn main() {}

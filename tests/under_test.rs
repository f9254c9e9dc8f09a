//! The binary under test: the same `main` as `insula`, built here so that cargo tells the tests where it lies.

fn main() -> std::process::ExitCode {
    insula::main()
}

//! The binary `insula`.

fn main() -> std::process::ExitCode {
    insula::main()
}

//! The `fusebox` binary.

fn main() -> std::process::ExitCode {
    fusebox::cli::main()
}

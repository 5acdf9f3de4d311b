//! The `stokehold-agent` program.

fn main() -> std::process::ExitCode {
    agent::cli()
}

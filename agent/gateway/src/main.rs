//! The `stokehold-gateway` program.

fn main() -> std::process::ExitCode {
    gateway::cli()
}

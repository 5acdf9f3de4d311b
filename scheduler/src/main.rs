//! The `stokehold-scheduler` program.

fn main() -> std::process::ExitCode {
    scheduler::cli()
}

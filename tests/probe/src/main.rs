//! The `stokehold-probe` program.

fn main() -> std::process::ExitCode {
    probe::cli()
}

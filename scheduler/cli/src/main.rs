//! The `stokehold` program.

fn main() -> std::process::ExitCode {
    cli::cli()
}

//! The `stokehold-logshim` program.

fn main() -> std::process::ExitCode {
    logshim::cli()
}

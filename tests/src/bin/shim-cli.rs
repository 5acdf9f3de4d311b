//! The shipped program, built here so that the tests never run a stale one.

fn main() -> std::process::ExitCode {
    cli::cli()
}

//! `stokehold`, the program for operators.
//!
//! It talks REST to a scheduler and to gateways, and, for `up` and `down`, runs a whole Stokehold on
//! one machine.
//!
//! # Exit codes
//!
//! | code | meaning |
//! | --- | --- |
//! | 0 | done |
//! | 1 | the operation failed, or the server refused it |
//! | 2 | the command line is wrong |
//! | 3 | the server cannot be reached, or does not accept the token |
//! | 4 | what was named does not exist |
//! | 124 | the time to wait is over; the operation itself goes on |
//! | 130 | interrupted while waiting; the operation itself goes on |
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`args`](mod@args) | the command line |
//! | `context` | which server, which token |
//! | `client` | HTTPS with the context's CA, and what errors mean |
//! | `output` | tables, JSON, progress |
//! | `commands` | one file for each noun |
//! | `load` | an open load on an endpoint, and what came of it |
//! | `push` | models and images: hash, upload what is missing, register |
//! | `up` | one machine: start, supervise, take away |

pub mod args;
mod client;
mod commands;
mod context;
mod duration;
mod exit;
mod load;
mod output;
mod push;
mod up;

use std::process::ExitCode;

use clap::Parser as _;

/// Parses the command line, runs the command, prints its error.
pub fn cli() -> ExitCode {
    let args = match args::Cli::try_parse() {
        Ok(args) => args,
        Err(error) => return exit::of_clap(&error, args::asks_for_json(std::env::args_os())),
    };
    daemon::tls::install_crypto_provider();
    let output = output::Output::new(&args.shown);
    exit::code(commands::run(args, &output), &output)
}

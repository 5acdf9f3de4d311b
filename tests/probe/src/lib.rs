//! A model server for tests and benchmarks: it answers as MLflow's scoring server and OpenAI's API do,
//! and waits, burns CPU, fails, hangs or dies as its settings or a request ask it to.
//!
//! As a program (`stokehold-probe`) it is the replica of end-to-end tests; it links statically, since
//! its image holds nothing else. In process, for the tests of other crates:
//!
//! ```no_run
//! # async fn example() -> std::io::Result<()> {
//! let listener = probe::Listener::unix("/tmp/replica/http.sock".as_ref())?;
//! let probe = probe::Probe::new(probe::Settings::default(), probe::Identity::default());
//! let server = tokio::spawn(probe::serve(probe.clone(), listener, std::future::pending()));
//! assert_eq!(probe.stats().requests, 0);
//! server.abort(); // drops all connections, as a crash does
//! # Ok(())
//! # }
//! ```
//!
//! `serve` never ends the process: what would ends `serve`, with the exit code (see [`End`]).
#![forbid(unsafe_code)]

mod answer;
mod chat;
mod cli;
mod input;
mod listener;
mod load;
mod server;
mod settings;
mod state;

pub use cli::cli;
pub use listener::Listener;
pub use server::{End, serve};
pub use settings::{Settings, SettingsError};
pub use state::{Identity, Probe, Stats};

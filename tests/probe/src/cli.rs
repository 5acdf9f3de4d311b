//! The program `stokehold-probe`.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use crate::listener::Listener;
use crate::load;
use crate::server::{End, serve};
use crate::settings::Settings;
use crate::state::{Identity, Probe};

/// CPU is burnt on these threads: few, since a replica's number of processes is limited.
const BLOCKING_THREADS: usize = 32;

/// A model server for tests and benchmarks
///
/// It answers as MLflow's scoring server and OpenAI's API do, and misbehaves as the model's probe.json,
/// or the "params" of a request, ask it to. SIGTERM: requests in flight are finished.
#[derive(Debug, Parser)]
#[command(name = "stokehold-probe", version)]
struct Args {
    /// Unix socket to listen on; a stale one is replaced [env: STOKEHOLD_SOCKET, if no --listen is given]
    #[arg(long, value_name = "PATH", conflicts_with = "listen")]
    uds: Option<PathBuf>,
    /// Address and port to listen on [env: PROBE_LISTEN, or STOKEHOLD_PORT on 0.0.0.0, if no socket is given]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// The model: a folder that may hold probe.json and VERSION
    #[arg(long, value_name = "DIR", env = "STOKEHOLD_MODEL_DIR")]
    model: Option<PathBuf>,
}

pub fn cli() -> ExitCode {
    match run(&Args::parse()) {
        Ok(code) => code,
        Err(message) => {
            let _ = writeln!(std::io::stderr(), "stokehold-probe: {message}");
            ExitCode::from(2)
        }
    }
}

enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

fn run(args: &Args) -> Result<ExitCode, String> {
    let address = address(args)?;
    let settings = match &args.model {
        Some(dir) => Settings::load(dir).map_err(|err| err.to_string())?,
        None => Settings::default(),
    };
    let _ = load::log(settings.log_bytes_at_start, std::io::stdout().lock());
    if let Some(code) = settings.exit_at_start {
        return Ok(ExitCode::from(code));
    }
    let probe = Probe::new(settings, Identity::of_process(args.model.as_deref()));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .map_err(|err| format!("start the runtime: {err}"))?;
    let end = runtime.block_on(async {
        let mut terminate =
            signal(SignalKind::terminate()).map_err(|err| format!("await SIGTERM: {err}"))?;
        let listener = listen(&address).await?;
        let stop = async move {
            terminate.recv().await;
        };
        Ok::<_, String>(serve(probe, listener, stop).await)
    })?;
    runtime.shutdown_background(); // threads that burn CPU are not waited for
    match end {
        End::Stopped => {
            if let Address::Unix(path) = &address {
                let _ = std::fs::remove_file(path);
            }
            Ok(ExitCode::SUCCESS)
        }
        End::Died(code) => Ok(ExitCode::from(code)),
    }
}

fn address(args: &Args) -> Result<Address, String> {
    let env = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    match (&args.uds, args.listen) {
        (Some(path), _) => return Ok(Address::Unix(path.clone())),
        (None, Some(addr)) => return Ok(Address::Tcp(addr)),
        (None, None) => {}
    }
    if let Some(path) = env("STOKEHOLD_SOCKET") {
        return Ok(Address::Unix(path.into()));
    }
    let port = env("STOKEHOLD_PORT").map(|port| format!("0.0.0.0:{}", port.to_string_lossy()));
    let listen = env("PROBE_LISTEN").map(|addr| addr.to_string_lossy().into_owned());
    let Some(addr) = listen.or(port) else {
        return Err("nowhere to listen: give --uds PATH or --listen ADDR:PORT".to_owned());
    };
    let parsed = addr
        .parse()
        .map_err(|err| format!("PROBE_LISTEN {addr:?}: {err}; give ADDR:PORT"));
    parsed.map(Address::Tcp)
}

async fn listen(address: &Address) -> Result<Listener, String> {
    match address {
        Address::Unix(path) => {
            Listener::unix(path).map_err(|err| format!("listen on {}: {err}", path.display()))
        }
        Address::Tcp(addr) => {
            let listener = Listener::tcp(*addr).await;
            let listener = listener.map_err(|err| format!("listen on {addr}: {err}"))?;
            if let Some(addr) = listener.tcp_addr() {
                let _ = writeln!(std::io::stdout(), "listening on {addr}"); // port 0 became another one
            }
            Ok(listener)
        }
    }
}

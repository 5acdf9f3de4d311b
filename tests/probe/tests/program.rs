//! The program: sockets, signals and exit codes.

#![allow(clippy::unwrap_used)] // helpers of tests, too, may panic

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn probe(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stokehold-probe"));
    command.args(arguments).stdin(Stdio::null());
    for name in ["STOKEHOLD_SOCKET", "PROBE_LISTEN", "STOKEHOLD_MODEL_DIR"] {
        command.env_remove(name);
    }
    command
}

fn output(command: &mut Command) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = command.output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

fn connect(socket: &Path) -> UnixStream {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return stream,
            Err(err) => assert!(Instant::now() < deadline, "{err}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn send(mut stream: &UnixStream, body: &str) {
    let head = format!(
        "POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + body).as_bytes()).unwrap();
}

fn in_flight(socket: &Path) -> bool {
    let mut stream = connect(socket);
    stream
        .write_all(b"GET /stats HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.contains("\"in_flight\":1")
}

/// A probe that does not outlive its test.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }

    fn terminate(&self) {
        kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM).unwrap();
    }

    fn exit_code(mut self) -> Option<i32> {
        self.0.wait().unwrap().code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).map_or(0, |status| status.permissions().mode() & 0o777)
}

#[test]
fn a_stale_socket_is_replaced_and_sigterm_finishes_the_request_in_flight() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("http.sock");
    drop(UnixListener::bind(&socket).unwrap()); // its file stays
    let child = Running::start(probe(&[]).env("STOKEHOLD_SOCKET", &socket));
    // The old socket may still be alive for a moment, in a process that another test is forking.
    let deadline = Instant::now() + Duration::from_secs(20);
    while mode(&socket) != 0o666 {
        assert!(Instant::now() < deadline, "mode {:o}", mode(&socket));
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut stream = connect(&socket);
    send(&stream, r#"{"inputs": [7], "params": {"sleep_ms": 1000}}"#);
    while !in_flight(&socket) {
        assert!(Instant::now() < deadline);
    }
    child.terminate();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200 OK") && answer.contains("[7.0]"),
        "{answer}"
    );
    assert_eq!(child.exit_code(), Some(0));
    assert!(!socket.exists());
}

#[test]
fn a_request_can_kill_the_program() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("http.sock");
    let child = Running::start(&mut probe(&["--uds", socket.to_str().unwrap()]));
    let mut stream = connect(&socket);
    send(&stream, r#"{"params": {"exit": 7}}"#);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer); // the end, or a reset
    assert!(answer.is_empty());
    assert_eq!(child.exit_code(), Some(7));
}

#[test]
fn the_model_decides_how_the_program_starts() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().to_str().unwrap();
    let start = || probe(&["--listen", "127.0.0.1:0", "--model", model]);
    let settings = dir.path().join("probe.json");
    std::fs::write(
        &settings,
        r#"{"exit_at_start": 3, "log_bytes_at_start": 100000}"#,
    )
    .unwrap();
    let Output { status, stdout, .. } = start().output().unwrap();
    assert_eq!((status.code(), stdout.len()), (Some(3), 100_000));

    std::fs::write(&settings, r#"{"service_s": 3}"#).unwrap();
    let (code, message) = output(&mut start());
    assert_eq!(code, Some(2));
    assert!(
        message.contains("probe.json: unknown field `service_s`"),
        "{message}"
    );
}

#[test]
fn wrong_arguments_are_explained() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    for (arguments, want) in [
        (vec![], "give --uds PATH or --listen ADDR:PORT"),
        (
            vec!["--listen", "localhost:80"],
            "invalid socket address syntax",
        ),
        (
            vec!["--uds", "/x", "--listen", "127.0.0.1:0"],
            "cannot be used with",
        ),
        (
            vec!["--uds", file.to_str().unwrap()],
            "not a socket: remove it",
        ),
        (
            vec!["--uds", "/x", "--model", "/nonexistent"],
            "there is no such folder",
        ),
    ] {
        let (code, message) = output(&mut probe(&arguments));
        assert_eq!(code, Some(2), "{arguments:?}: {message}");
        assert!(message.contains(want), "{arguments:?}: {message}");
    }
    assert_eq!(std::fs::read_to_string(file).unwrap(), "precious");
}

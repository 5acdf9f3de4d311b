//! The process that talks to a registry: what it may, what it holds, and when it has read the credentials.
//! Needs root, since there is nothing to give up otherwise.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// `user:s3cret` in base64.
const AUTH: &str = "dXNlcjpzM2NyZXQ=";
const NOBODY: &str = "65534";

/// The head of the next request, line by line.
fn head(stream: &TcpStream) -> Vec<String> {
    let lines = BufReader::new(stream).lines();
    let lines = lines.map_while(Result::ok);
    lines.take_while(|line| !line.is_empty()).collect()
}

fn accept(listener: &TcpListener) -> TcpStream {
    listener.set_nonblocking(true).expect("set");
    let begun = Instant::now();
    loop {
        if let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(false).expect("set");
            return stream;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "it does not connect"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.strip_prefix(':'))
        .expect(name)
        .trim()
}

#[test]
fn it_reads_the_credentials_as_root_and_opens_its_socket_as_nobody_with_no_right_left() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root has rights to give up");
        return;
    }
    let folder = tempfile::tempdir().expect("folder");
    let listener = TcpListener::bind("127.0.0.1:0").expect("port");
    let registry = format!("127.0.0.1:{}", listener.local_addr().expect("bound").port());
    let auth_file = folder.path().join("auth.json");
    let text = format!(r#"{{"auths": {{"{registry}": {{"auth": "{AUTH}"}}}}}}"#);
    fs::write(&auth_file, text).expect("file");
    fs::set_permissions(&auth_file, fs::Permissions::from_mode(0o600)).expect("mode");
    // Something that is not closed when a program starts another one.
    let open = fs::File::create(folder.path().join("inherited")).expect("file");
    let inherited = nix::unistd::dup(&open).expect("a descriptor");

    let mut child = Command::new(env!("CARGO_BIN_EXE_stokehold-agent"))
        .arg("fetch-blob")
        .args(["--image", &format!("{registry}/a/b:1")])
        .args(["--digest", &format!("sha256:{}", "0".repeat(64))])
        .args(["--size", "1000", "--offset", "0"])
        .args(["--uid", NOBODY, "--gid", NOBODY])
        .arg("--hosts-dir")
        .arg(folder.path())
        .arg("--auth-file")
        .arg(&auth_file)
        .env_clear()
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the agent");
    let mut stream = accept(&listener);
    let asked = head(&stream);
    assert!(
        asked[0].starts_with("GET /v2/a/b/blobs/sha256:0000"),
        "{asked:?}"
    );
    assert!(
        !asked
            .iter()
            .any(|line| line.to_lowercase().starts_with("authorization"))
    );

    let proc = format!("/proc/{}", child.id());
    let status = fs::read_to_string(format!("{proc}/status")).expect("it runs");
    let four = [NOBODY; 4].join("\t");
    assert_eq!(
        (field(&status, "Uid"), field(&status, "Gid")),
        (four.as_str(), four.as_str())
    );
    assert_eq!(field(&status, "Groups"), "");
    for set in ["CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(field(&status, set), "0000000000000000", "{set}");
    }
    assert_eq!(field(&status, "NoNewPrivs"), "1");
    let limits = fs::read_to_string(format!("{proc}/limits")).expect("it runs");
    let size = limits
        .lines()
        .find(|line| line.starts_with("Max file size"))
        .expect("limits");
    assert_eq!(size.split_whitespace().nth(3), Some("0"), "{size}");
    let held: Vec<_> = fs::read_dir(format!("{proc}/fd"))
        .expect("it runs")
        .filter_map(|entry| fs::read_link(entry.expect("entry").path()).ok())
        .collect();
    assert!(
        !held.iter().any(|path| path.starts_with(folder.path())),
        "{held:?}"
    );
    for file in ["cmdline", "environ"] {
        let text = fs::read(format!("{proc}/{file}")).expect("it runs");
        let text = String::from_utf8_lossy(&text);
        assert!(
            !text.contains(AUTH) && !text.contains("s3cret"),
            "{file}: {text}"
        );
    }
    assert!(inherited.as_raw_fd() > 2);

    // It has the password, although it could not read the file any more.
    let challenge =
        "HTTP/1.1 401 X\r\nwww-authenticate: Basic realm=\"x\"\r\ncontent-length: 0\r\n\r\n";
    stream.write_all(challenge.as_bytes()).expect("answered");
    let asked = head(&stream);
    let shown = asked
        .iter()
        .find(|line| line.to_lowercase().starts_with("authorization"));
    assert!(shown.is_some_and(|line| line.ends_with(AUTH)), "{asked:?}");
    let refusal = "HTTP/1.1 404 X\r\ncontent-length: 0\r\n\r\n";
    stream.write_all(refusal.as_bytes()).expect("answered");
    drop(stream);
    let output = {
        drop(child.stdin.take());
        child.wait_with_output().expect("it ends")
    };
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(
        said.contains("does not exist") && said.lines().count() == 1,
        "{said}"
    );
}

#[test]
fn who_is_not_told_to_become_somebody_else_refuses_to_go_on_as_root() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let refused = Command::new(env!("CARGO_BIN_EXE_stokehold-agent"))
        .args(["fetch-blob", "--image", "127.0.0.1:1/a:1", "--size", "1"])
        .args(["--digest", &format!("sha256:{}", "0".repeat(64))])
        .args(["--uid", "0", "--gid", "0"])
        .args(["--hosts-dir", "/nonexistent", "--auth-file", "/nonexistent"])
        .output()
        .expect("the agent");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success(), "{said}");
    assert!(said.contains("CapPrm"), "{said}");
}

//! What runs in the test's containers: says what it finds, then does as its argument says. Compiled by
//! the test itself into a static binary, with nothing but the standard library.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;

unsafe extern "C" {
    fn signal(number: i32, handler: usize) -> usize;
    fn unshare(flags: i32) -> i32;
    fn mount(s: *const u8, t: *const u8, k: *const u8, f: u64, d: *const u8) -> i32;
    fn _exit(code: i32) -> !;
}

extern "C" fn on_term(_: i32) {
    unsafe { _exit(0) }
}

fn tell(name: &str, value: impl std::fmt::Display) {
    println!("{name}={value}");
}

fn outcome<T>(result: std::io::Result<T>) -> String {
    match result {
        Ok(_) => "ok".into(),
        Err(e) => format!("errno {}", e.raw_os_error().unwrap_or(-1)),
    }
}

fn main() {
    let status = fs::read_to_string("/proc/self/status").expect("status");
    for line in status.lines() {
        if let Some((name, value)) = line.split_once(':') {
            if ["CapEff", "CapBnd", "CapPrm", "NoNewPrivs", "Seccomp", "Uid", "Gid"].contains(&name) {
                tell(name, value.trim().split('\t').next().unwrap_or(""));
            }
        }
    }
    tell("pid", std::process::id());
    tell("hostname", fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim());
    tell("home", std::env::var("HOME").unwrap_or_default());
    tell("socket", std::env::var("STOKEHOLD_SOCKET").unwrap_or_default());
    tell("endpoint", std::env::var("STOKEHOLD_ENDPOINT").unwrap_or_default());
    tell("model", fs::read_to_string("/model/weights").unwrap_or_default());
    tell("write root", outcome(fs::write("/x", "x")));
    tell("write model", outcome(fs::write("/model/x", "x")));
    tell("write tmp", outcome(fs::write("/tmp/x", "x")));
    tell("fill tmp", outcome(fs::write("/tmp/big", vec![1u8; 20 << 20])));
    let _ = fs::remove_file("/tmp/big");
    tell("write proc", outcome(fs::write("/proc/sys/vm/swappiness", "1")));
    tell("unshare", unsafe { unshare(0x1000_0000) });
    let none = b"none\0".as_ptr();
    tell("mount", unsafe { mount(none, b"/tmp\0".as_ptr(), b"tmpfs\0".as_ptr(), 0, none) });
    let interfaces = fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let names: Vec<_> = interfaces.lines().skip(2).filter_map(|l| l.split(':').next()).map(str::trim).collect();
    tell("interfaces", names.join(","));
    tell("loopback", outcome(std::net::TcpListener::bind("127.0.0.1:0")));
    let folder = fs::metadata("/run/stokehold").expect("folder");
    tell("folder", format!("{:o} {}", folder.mode() & 0o7777, folder.uid()));
    let listener = UnixListener::bind("/run/stokehold/http.sock");
    tell("listen", outcome(listener.as_ref().map(|_| ()).map_err(|e| std::io::Error::from_raw_os_error(e.raw_os_error().unwrap_or(-1)))));
    let mode = fs::metadata("/run/stokehold/http.sock").map(|m| m.mode() & 0o777).unwrap_or(0);
    tell("socket mode", format!("{mode:o}"));
    let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(|| 1)).collect();
    tell("threads", threads.into_iter().map(|t| t.join().unwrap_or(0)).sum::<i32>());

    match std::env::args().nth(1).as_deref() {
        Some("serve") => unsafe {
            signal(15, on_term as extern "C" fn(i32) as usize);
        },
        // The first process of a pid namespace ignores signals that it has no handler for.
        Some("stubborn") => {}
        Some("exit") => std::process::exit(42),
        Some("eat") => {
            let mut eaten = Vec::new();
            loop {
                eaten.push(vec![1u8; 1 << 20]);
            }
        }
        other => panic!("unknown argument {other:?}"),
    }
    tell("ready", "yes");
    loop {
        std::thread::park();
    }
}

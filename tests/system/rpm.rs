//! The .rpm packages, looked at with rpm itself: nothing here can boot the systems that they are for.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::root::{host, target};

const PACKAGES: [&str; 3] = ["stokehold-node", "stokehold-scheduler", "stokehold"];

fn packages() -> impl Iterator<Item = (&'static str, PathBuf, PathBuf)> {
    let folder = target().join("packages");
    PACKAGES.into_iter().map(move |name| {
        let rpm = folder.join(format!("{name}-0.1.0-1.x86_64.rpm"));
        let deb = folder.join(format!("{name}_0.1.0-1_amd64.deb"));
        (name, rpm, deb)
    })
}

fn query(rpm: &PathBuf, what: &[&str]) -> String {
    host(Command::new("rpm").arg("-qp").args(what).arg(rpm))
}

/// What both kinds of package hold but where distributions have it in other places.
fn same_places(path: &str) -> bool {
    let elsewhere = [
        "/usr/share/doc/",
        "/usr/share/licenses/",
        "/usr/share/zsh/",
        "/usr/share/man/",
    ];
    !elsewhere.iter().any(|folder| path.starts_with(folder))
}

#[test]
fn an_rpm_holds_the_files_of_its_deb() {
    for (name, rpm, deb) in packages() {
        let of_rpm: BTreeSet<String> = query(&rpm, &["--list"])
            .lines()
            .filter(|path| same_places(path))
            .map(str::to_owned)
            .collect();
        let of_deb: BTreeSet<String> = host(Command::new("dpkg-deb").arg("--contents").arg(&deb))
            .lines()
            .filter(|line| line.starts_with('-'))
            .filter_map(|line| line.split_once(" ./").map(|(_, path)| format!("/{path}")))
            .filter(|path| same_places(path))
            .collect();
        assert_eq!(of_rpm, of_deb, "{name}");
        assert!(
            of_rpm.iter().any(|path| path.starts_with("/usr/bin/")),
            "{of_rpm:?}"
        );
    }
}

#[test]
fn an_rpm_keeps_edited_configurations_and_owns_nothing_as_another_user() {
    for (name, rpm, _) in packages() {
        // One line a file: flags ("cn": configuration that is not replaced), owner, path.
        let format = "[%{FILEFLAGS:fflags} %{FILEUSERNAME}:%{FILEGROUPNAME} %{FILENAMES}\n]";
        let listed = query(&rpm, &["--queryformat", format]);
        let mut configurations = 0;
        for line in listed.lines() {
            assert!(line.contains(" root:root "), "{name}: {line}");
            if line.ends_with(".toml") && line.contains(" /etc/") {
                assert!(line.starts_with("cn "), "{name}: {line}");
                configurations += 1;
            }
        }
        let expected = match name {
            "stokehold-node" => 2,
            "stokehold-scheduler" => 1,
            _ => 0,
        };
        assert_eq!(configurations, expected, "{name}: {listed}");
    }
}

#[test]
fn an_rpm_requires_what_its_daemons_need() {
    for (name, rpm, _) in packages() {
        let requires = query(&rpm, &["--requires"]);
        assert!(requires.contains("libc.so.6"), "{name}: {requires}");
        let needed: &[&str] = match name {
            "stokehold-node" => &["containerd", "runc", "systemd"],
            "stokehold-scheduler" => &["systemd"],
            _ => &[],
        };
        for needed in needed {
            assert!(
                requires.lines().any(|line| line.trim() == *needed),
                "{name}: {requires}"
            );
        }
        let version = query(&rpm, &["--queryformat", "%{VERSION}-%{RELEASE} %{LICENSE}"]);
        assert_eq!(version, "0.1.0-1 Apache-2.0", "{name}");
    }
}

#[test]
fn scripts_of_both_kinds_are_clean_shell() {
    for (name, rpm, deb) in packages() {
        let control = tempfile::tempdir().expect("folder");
        host(
            Command::new("dpkg-deb")
                .arg("--control")
                .arg(&deb)
                .arg(control.path()),
        );
        let mut count = 0;
        for script in ["preinst", "postinst", "prerm", "postrm"] {
            let path = control.path().join(script);
            if path.exists() {
                host(Command::new("shellcheck").arg(&path));
                count += 1;
            }
        }
        for tag in ["POSTIN", "PREUN", "POSTUN"] {
            let text = query(&rpm, &["--queryformat", &format!("%{{{tag}}}")]);
            if text != "(none)" {
                shellcheck(&text, &format!("{name}: {tag}"));
                count += 1;
            }
        }
        assert_eq!(count, if name == "stokehold" { 0 } else { 6 }, "{name}");
    }
}

fn shellcheck(text: &str, what: &str) {
    let mut child = Command::new("shellcheck")
        .args(["--shell=sh", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("shellcheck is installed");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(text.as_bytes()).expect("written");
    drop(stdin);
    let output = child.wait_with_output().expect("ended");
    assert!(
        output.status.success(),
        "{what}: {}",
        String::from_utf8_lossy(&output.stdout)
    );
}

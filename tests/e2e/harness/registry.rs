//! Debian's docker-registry, for one test, on loopback.

use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{eventually, images};

pub(crate) struct Registry {
    port: u16,
    child: Child,
    folder: tempfile::TempDir,
}

impl Registry {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let port = free_port();
        let config = format!(
            "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: {:?}\n\
             http:\n  addr: 127.0.0.1:{port}\n",
            folder.path().join("data")
        );
        let path = folder.path().join("config.yml");
        std::fs::write(&path, config).expect("configuration");
        let log = std::fs::File::create(folder.path().join("log")).expect("log");
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("docker-registry (packaging/dev/setup.sh installs it)");
        let registry = Self {
            port,
            child,
            folder,
        };
        eventually("the registry listens", || {
            TcpStream::connect(("127.0.0.1", port))
                .is_ok()
                .then_some(())
        });
        registry
    }

    pub(crate) fn reference(&self, name: &str) -> String {
        format!("127.0.0.1:{}/{name}:1", self.port)
    }

    /// Puts the probe's image under `name`, its config changed by `change`, and returns its digest.
    pub(crate) fn push_probe(&self, name: &str, change: impl Fn(&mut Value)) -> String {
        let layout = self.probe_layout();
        let blob = |digest: &Value| {
            let hex = digest
                .as_str()
                .expect("digest")
                .trim_start_matches("sha256:");
            std::fs::read(layout.join("blobs/sha256").join(hex)).expect("blob")
        };
        let parsed = |bytes: &[u8]| -> Value { serde_json::from_slice(bytes).expect("JSON") };
        let index = parsed(&std::fs::read(layout.join("index.json")).expect("index"));
        let mut manifest = parsed(&blob(&index["manifests"][0]["digest"]));
        let mut config = parsed(&blob(&manifest["config"]["digest"]));
        change(&mut config);
        let config = config.to_string().into_bytes();
        manifest["config"]["digest"] = json!(digest(&config));
        manifest["config"]["size"] = json!(config.len());
        let kind = "application/vnd.oci.image.manifest.v1+json";
        manifest["mediaType"] = json!(kind);
        for layer in manifest["layers"].as_array().expect("layers") {
            self.put_blob(name, &blob(&layer["digest"]));
        }
        self.put_blob(name, &config);
        let manifest = manifest.to_string().into_bytes();
        let url = format!("http://127.0.0.1:{}/v2/{name}/manifests/1", self.port);
        self.put(&url, kind, &manifest);
        digest(&manifest)
    }

    fn probe_layout(&self) -> PathBuf {
        let layout = self.folder.path().join("layout");
        if !layout.exists() {
            std::fs::create_dir(&layout).expect("folder");
            let unpacked = Command::new("tar")
                .arg("-xf")
                .arg(images("runtime-probe"))
                .arg("-C")
                .arg(&layout)
                .status();
            assert!(unpacked.expect("tar").success());
        }
        layout
    }

    fn put_blob(&self, name: &str, bytes: &[u8]) {
        let uploads = format!("http://127.0.0.1:{}/v2/{name}/blobs/uploads/", self.port);
        let said = curl(&["-X", "POST", "-D", "-", "-o", "/dev/null", &uploads]);
        let location = said
            .lines()
            .find_map(|line| line.strip_prefix("Location: "));
        let location = location.expect("a place to upload to").trim();
        let url = format!("{location}&digest={}", digest(bytes));
        self.put(&url, "application/octet-stream", bytes);
    }

    fn put(&self, url: &str, kind: &str, bytes: &[u8]) {
        let file = self.folder.path().join("upload");
        std::fs::write(&file, bytes).expect("file");
        let (kind, data) = (
            format!("Content-Type: {kind}"),
            format!("@{}", file.display()),
        );
        curl(&["-X", "PUT", "-H", &kind, "--data-binary", &data, url]);
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("bound").port()
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    format!("sha256:{hex}")
}

fn curl(arguments: &[&str]) -> String {
    let mut command = Command::new("curl");
    command.args(["-sS", "--fail-with-body", "--noproxy", "*"]);
    let output = command.args(arguments).output().expect("curl");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "curl {arguments:?}: {said}");
    String::from_utf8(output.stdout).expect("text")
}

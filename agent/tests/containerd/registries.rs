//! Images of registries: Debian's docker-registry, as it is, with a login, and behind a line that cuts
//! connections or flips a bit.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use agent::containerd::Containerd;
use agent::containerd::images::ImageSource;
use agent::containerd::transfer::Tally;
use agent::pull::Puller;
use shared::digest::OciDigest;
use shared::ids::ImageRef;
use shared::plan::{ImageOrigin, OciBlob, PlannedImage};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::harness::{GATEWAY_GID, INSTANCE, can_run};
use crate::layout;
use crate::private::PrivateContainerd;

/// `user` and `pass` by bcrypt.
const HTPASSWD: &str = "user:$2y$05$abcdefghijklmnopqrstuuZFBUbfXoM8LFiPx8LYlO/sXZB/Cwk3K\n";
/// `user:pass` in base64.
const AUTH: &str = "dXNlcjpwYXNz";

/// A containerd of the test's own, and what the agent brings images in with.
struct Bench {
    containerd: PrivateContainerd,
    client: Containerd,
    puller: Puller,
}

impl Bench {
    async fn start() -> Self {
        let containerd = PrivateContainerd::start().expect("containerd");
        let client = Containerd::connect(&containerd.socket(), "stokehold", "overlayfs").await;
        Self {
            client: client.expect("connect"),
            puller: puller(&containerd),
            containerd,
        }
    }
}

/// Files about registries lie in the test's folder, where it may write them.
pub(crate) fn puller(containerd: &PrivateContainerd) -> Puller {
    Puller {
        program: env!("CARGO_BIN_EXE_stokehold-agent").into(),
        hosts_dir: containerd.path("certs.d"),
        auth_file: containerd.path("auth.json"),
        uid: nix::unistd::Uid::from_raw(65_534),
        gid: nix::unistd::Gid::from_raw(GATEWAY_GID),
    }
}

/// A registry of the test's own.
struct Registry {
    port: u16,
    child: Child,
    _folder: tempfile::TempDir,
}

impl Registry {
    async fn start(htpasswd: Option<&str>) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let port = free_port().await;
        let mut config = format!(
            "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: {:?}\n\
             http:\n  addr: 127.0.0.1:{port}\n",
            folder.path().join("data")
        );
        if let Some(line) = htpasswd {
            let path = folder.path().join("htpasswd");
            fs::write(&path, line).expect("file");
            config += &format!("auth:\n  htpasswd:\n    realm: test\n    path: {path:?}\n");
        }
        let path = folder.path().join("config.yml");
        fs::write(&path, config).expect("file");
        let log = fs::File::create(folder.path().join("log")).expect("file");
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("docker-registry (packaging/dev/setup.sh installs it)");
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "it does not come up"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Self {
            port,
            child,
            _folder: folder,
        }
    }

    /// Puts an image of a layout under `name`.
    fn push(&self, layout: &Path, image: &PlannedImage, name: &str, credentials: Option<&str>) {
        let curl = |arguments: &[&str]| {
            let mut command = Command::new("curl");
            command.args(["-sS", "--fail-with-body", "--noproxy", "*"]);
            if let Some(credentials) = credentials {
                command.args(["-u", credentials]);
            }
            let output = command.args(arguments).output().expect("curl");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "curl {arguments:?}: {said}");
            String::from_utf8(output.stdout).expect("text")
        };
        let base = format!("http://127.0.0.1:{}/v2/{name}", self.port);
        let file = |blob: &OciBlob| {
            let path = layout.join(PlannedImage::blob_path(&blob.digest));
            format!("@{}", path.display())
        };
        let layers = image.layers.iter().map(|layer| &layer.blob);
        for blob in layers.chain([&image.config]) {
            let uploads = format!("{base}/blobs/uploads/");
            let written = curl(&["-X", "POST", "-D", "-", "-o", "/dev/null", &uploads]);
            let location = written
                .lines()
                .find_map(|line| line.strip_prefix("Location: "))
                .expect("a place to upload to");
            let url = format!("{}&digest={}", location.trim(), blob.digest);
            let octets = "Content-Type: application/octet-stream";
            curl(&[
                "-X",
                "PUT",
                "-H",
                octets,
                "--data-binary",
                &file(blob),
                &url,
            ]);
        }
        let kind = format!("Content-Type: {}", image.manifest.media_type);
        let manifest = file(&image.manifest);
        let url = format!("{base}/manifests/1");
        curl(&["-X", "PUT", "-H", &kind, "--data-binary", &manifest, &url]);
    }

    fn reference(&self, name: &str) -> ImageRef {
        reference(self.port, name)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn reference(port: u16, name: &str) -> ImageRef {
    ImageRef::parse(&format!("127.0.0.1:{port}/{name}:1")).expect("a reference")
}

async fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    listener.local_addr().expect("bound").port()
}

/// A line to a registry, and what it does with what the registry sends.
struct Line {
    port: u16,
    connections: Arc<AtomicUsize>,
    bytes: Arc<AtomicU64>,
}

#[derive(Clone, Copy)]
enum Fault {
    /// Each connection ends after so many bytes.
    CutAfter(u64),
    /// One bit of this byte of each answer is another; heads are shorter, so it is one of the blob.
    Flip(u64),
}

impl Line {
    async fn start(to: u16, fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let (connections, bytes) = (Arc::<AtomicUsize>::default(), Arc::<AtomicU64>::default());
        let counts = (Arc::clone(&connections), Arc::clone(&bytes));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                counts.0.fetch_add(1, Ordering::Relaxed);
                let sent = Arc::clone(&counts.1);
                tokio::spawn(async move {
                    let server = TcpStream::connect(("127.0.0.1", to))
                        .await
                        .expect("registry");
                    carry(client, server, fault, &sent).await;
                });
            }
        });
        Self {
            port,
            connections,
            bytes,
        }
    }
}

async fn carry(client: TcpStream, server: TcpStream, fault: Fault, sent: &AtomicU64) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = async {
        let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
    };
    let down = async {
        let mut at = 0u64;
        let mut buffer = vec![0; 16 << 10];
        loop {
            let room = match fault {
                Fault::CutAfter(limit) => limit.saturating_sub(at).min(buffer.len() as u64),
                Fault::Flip(_) => buffer.len() as u64,
            };
            let room = usize::try_from(room).expect("small");
            let Ok(read @ 1..) = from_server.read(&mut buffer[..room]).await else {
                return;
            };
            if let Fault::Flip(place) = fault
                && (at..at + read as u64).contains(&place)
            {
                buffer[usize::try_from(place - at).expect("small")] ^= 1;
            }
            at += read as u64;
            sent.fetch_add(read as u64, Ordering::Relaxed);
            if to_client.write_all(&buffer[..read]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}

/// Another image of two layers, the second of them a few MiB that do not shrink.
fn image(bench: &Bench, name: &str) -> (PathBuf, PlannedImage) {
    let layout = bench.containerd.path(&format!("layout-{name}"));
    let image = layout::build_large(&layout, name, 3 << 20).expect("image");
    (layout, image)
}

/// The same image, to be pulled.
fn from_registry(image: &PlannedImage, reference: ImageRef) -> PlannedImage {
    PlannedImage {
        reference,
        origin: ImageOrigin::Registry,
        ..image.clone()
    }
}

async fn pull(bench: &Bench, image: &PlannedImage) -> Result<(u64, u64), String> {
    let (progress, shown) = watch::channel((0, 0));
    let tally = Tally::new(image, progress);
    let source = ImageSource::Registry {
        puller: &bench.puller,
        tally: &tally,
    };
    let pulled = bench.client.bring_image(image, source, INSTANCE).await;
    let shown = *shown.borrow();
    pulled
        .map(|()| shown)
        .map_err(|error| daemon::telemetry::Chain(&error).to_string())
}

fn size(image: &PlannedImage) -> u64 {
    let layers = image.layers.iter().map(|layer| layer.blob.size_bytes);
    layers.sum::<u64>() + image.config.size_bytes + image.manifest.size_bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn images_come_from_registries_whatever_their_lines_do() {
    if !can_run() {
        return;
    }
    let bench = &Bench::start().await;
    let open = Registry::start(None).await;
    plainly(bench, &open).await;
    with_a_login(bench).await;
    over_a_line_that_cuts(bench, &open).await;
    over_a_line_that_flips_a_bit(bench, &open).await;
    what_is_missing_is_said(bench, &open).await;
    by_a_mirror(bench, &open).await;
}

async fn plainly(bench: &Bench, open: &Registry) {
    let (layout, image) = image(bench, "plain");
    open.push(&layout, &image, "team/plain", None);
    let wanted = from_registry(&image, open.reference("team/plain"));
    let (have, total) = pull(bench, &wanted).await.expect("pulled");
    assert_eq!((have, total), (size(&image), size(&image)));
    assert!(bench.client.is_unpacked(&wanted).await.expect("asked"));
    let known = bench.client.list_images(INSTANCE).await.expect("asked");
    let known = &known[wanted.reference.as_str()];
    assert_eq!(
        (known.target.as_str(), known.ours),
        (image.manifest.digest.as_str(), true)
    );
    // Again costs nothing and changes nothing.
    pull(bench, &wanted).await.expect("there already");
    let leases = bench.containerd.ctr(&["leases", "ls"]);
    assert!(!leases.contains(image.manifest.digest.hex()), "{leases}");
}

async fn with_a_login(bench: &Bench) {
    let closed = Registry::start(Some(HTPASSWD)).await;
    let (layout, image) = image(bench, "closed");
    closed.push(&layout, &image, "team/closed", Some("user:pass"));
    let wanted = from_registry(&image, closed.reference("team/closed"));
    let refused = pull(bench, &wanted).await.expect_err("nobody logged in");
    assert!(
        refused.contains("wants a login") && refused.contains("auth.json"),
        "{refused}"
    );

    let auth = |secret: &str| {
        let auth = format!(
            r#"{{"auths": {{"127.0.0.1:{}": {{"auth": "{secret}"}}}}}}"#,
            closed.port
        );
        fs::write(bench.containerd.path("auth.json"), auth).expect("file");
    };
    // `user:nope`: the secret must show nowhere.
    auth("dXNlcjpub3Bl");
    let refused = pull(bench, &wanted).await.expect_err("a wrong password");
    assert!(refused.contains("renew the credentials"), "{refused}");
    assert!(
        !refused.contains("nope") && !refused.contains("dXNl"),
        "{refused}"
    );
    auth(AUTH);
    pull(bench, &wanted).await.expect("logged in");
    assert!(bench.client.is_unpacked(&wanted).await.expect("asked"));
    fs::remove_file(bench.containerd.path("auth.json")).expect("removed");
}

async fn over_a_line_that_cuts(bench: &Bench, open: &Registry) {
    let (layout, image) = image(bench, "cut");
    open.push(&layout, &image, "team/cut", None);
    let line = Line::start(open.port, Fault::CutAfter(512 << 10)).await;
    let wanted = from_registry(&image, reference(line.port, "team/cut"));
    pull(bench, &wanted).await.expect("pulled in pieces");
    assert!(bench.client.is_unpacked(&wanted).await.expect("asked"));
    let (connections, bytes) = (
        line.connections.load(Ordering::Relaxed),
        line.bytes.load(Ordering::Relaxed),
    );
    assert!(
        connections > 6,
        "{connections} connections for {} bytes",
        size(&image)
    );
    // Each piece was sent once: what comes on top are the heads of the answers.
    let heads = connections as u64 * 2048;
    assert!(
        bytes < size(&image) + heads,
        "{bytes} bytes for {}",
        size(&image)
    );
}

async fn over_a_line_that_flips_a_bit(bench: &Bench, open: &Registry) {
    let (layout, image) = image(bench, "flip");
    open.push(&layout, &image, "team/flip", None);
    let line = Line::start(open.port, Fault::Flip(100_000)).await;
    let bad = from_registry(&image, reference(line.port, "team/flip"));
    let refused = pull(bench, &bad).await.expect_err("other bytes");
    assert!(
        refused.contains("other contents than its digest"),
        "{refused}"
    );
    assert!(!bench.client.is_unpacked(&bad).await.expect("asked"));
    let large = &image.layers[1].blob.digest;
    let stored = bench.containerd.ctr(&["content", "ls", "-q"]);
    assert!(!stored.contains(large.as_str()), "{stored}");
    // Nothing of the wrong bytes is gone on with.
    let good = from_registry(&image, open.reference("team/flip"));
    pull(bench, &good).await.expect("right bytes");
}

async fn what_is_missing_is_said(bench: &Bench, open: &Registry) {
    let (layout, image) = image(bench, "missing");
    let never = from_registry(&image, open.reference("team/never"));
    let refused = pull(bench, &never).await.expect_err("never pushed");
    assert!(refused.contains("does not exist"), "{refused}");

    let nobody = from_registry(&image, reference(free_port().await, "team/x"));
    let refused = pull(bench, &nobody).await.expect_err("nobody listens");
    assert!(
        refused.contains("cannot be reached") && refused.contains("hosts.toml"),
        "{refused}"
    );

    // A half of it stays only as long as somebody wants it.
    open.push(&layout, &image, "team/missing", None);
    let mut broken = from_registry(&image, open.reference("team/missing"));
    broken.layers[0].blob.digest =
        OciDigest::parse(&format!("sha256:{}", "0".repeat(64))).expect("a digest");
    pull(bench, &broken)
        .await
        .expect_err("a layer that is nowhere");
    let hex = broken.manifest.digest.hex();
    let unfinished = bench.client.unfinished(INSTANCE).await.expect("asked");
    assert!(unfinished.contains(hex), "{unfinished:?}");
    let dropped = bench.client.drop_unfinished(INSTANCE, hex).await;
    dropped.expect("let go of");
    let unfinished = bench.client.unfinished(INSTANCE).await.expect("asked");
    assert!(!unfinished.contains(hex), "{unfinished:?}");
}

async fn by_a_mirror(bench: &Bench, open: &Registry) {
    let (layout, image) = image(bench, "mirrored");
    open.push(&layout, &image, "team/mirrored", None);
    let folder = bench.containerd.path("certs.d/registry.invalid");
    fs::create_dir_all(&folder).expect("folder");
    let hosts = format!(
        "server = \"https://registry.invalid\"\n[host.\"http://127.0.0.1:{}\"]\n",
        open.port
    );
    fs::write(folder.join("hosts.toml"), hosts).expect("file");
    let name = ImageRef::parse("registry.invalid/team/mirrored:1").expect("a reference");
    let wanted = from_registry(&image, name);
    pull(bench, &wanted).await.expect("from the mirror");
    assert!(bench.client.is_unpacked(&wanted).await.expect("asked"));
}

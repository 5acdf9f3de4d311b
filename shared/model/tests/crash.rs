//! `kill -9` in the middle of fetches, again and again, on one cache: what is published is always
//! right, and in the end everything is there.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use bytes::Bytes;
use model::cache::Cache;
use model::fetch::{ChunkSource, FetchOptions, Fetcher, SourceError};
use model::manifest_of;
use shared::digest::chunk_digest;
use shared::manifest::{ChunkRef, Manifest, ManifestId};
use shared::units::Bytes as ByteCount;
use tokio::sync::watch;

/// Set in the process that is killed: the folder that both share.
const CHILD: &str = "STOKEHOLD_TEST_CRASH_FOLDER";

/// Reads chunks from a folder with the model's files.
struct FolderSource {
    folder: PathBuf,
    manifest: Manifest,
}

impl ChunkSource for FolderSource {
    async fn fetch(&self, chunk: &ChunkRef) -> Result<Bytes, SourceError> {
        for file in &self.manifest.files {
            if let Some(found) = file.chunk_refs().find(|c| c.digest == chunk.digest) {
                let bytes = fs::read(self.folder.join(&file.path)).expect("there");
                let from = found.offset_bytes as usize;
                let part = &bytes[from..from + found.len_bytes as usize];
                return Ok(Bytes::copy_from_slice(part));
            }
        }
        Err(SourceError::NotFound)
    }

    async fn manifest(&self, _: &ManifestId) -> Result<Bytes, SourceError> {
        Ok(self.manifest.encode().into())
    }
}

fn make_model(folder: &Path) -> Manifest {
    fs::create_dir_all(folder.join("deep")).expect("folder");
    for (name, len) in [("deep/large", 41 << 20), ("middle", 13 << 20), ("s", 7)] {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        fs::write(folder.join(name), bytes).expect("file");
    }
    manifest_of(folder, &|_| {}).expect("is a model")
}

/// Fetches, and says a line for each step of progress. Ends after one line more when it is done.
async fn fetch(root: &Path) -> PathBuf {
    let folder = root.join("model");
    let manifest = manifest_of(&folder, &|_| {}).expect("is a model");
    let id = manifest.id();
    let cache = Cache::open(&root.join("cache"), ByteCount::gib(1)).expect("opens");
    cache.set_pins(BTreeSet::from([id]));
    let fetcher = Fetcher::new(
        cache,
        FolderSource { folder, manifest },
        FetchOptions::default(),
    );
    let progress = watch::Sender::new((0, 0));
    let mut heard = progress.subscribe();
    let listener = tokio::spawn(async move {
        while heard.changed().await.is_ok() {
            let (done, total) = *heard.borrow_and_update();
            let line = format!("progress {done} of {total}\n");
            std::io::stdout()
                .write_all(line.as_bytes())
                .expect("the other process listens until it kills this one");
        }
    });
    let path = fetcher.fetch(id, progress).await.expect("fetched");
    listener.await.expect("ran");
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_again_and_again_a_cache_publishes_nothing_wrong_and_ends_whole() {
    if let Some(root) = env::var_os(CHILD) {
        fetch(Path::new(&root)).await;
        return;
    }
    let root = tempfile::tempdir().expect("temporary folder");
    let manifest = make_model(&root.path().join("model"));
    for lines in [1, 2, 3, 5, 7, 9, 11, 13, 14, 15, 16] {
        run_and_kill_after(lines, root.path());
        check_whole_or_absent(root.path(), &manifest);
    }
    let path = fetch(root.path()).await;
    assert!(is_right(&path, &manifest));
    let left = fs::read_dir(root.path().join("cache/tmp")).expect("there");
    assert_eq!(left.count(), 0);
}

/// Runs this very test in another process, and kills it once it has said so many lines.
fn run_and_kill_after(lines: usize, root: &Path) {
    let name = "killed_again_and_again_a_cache_publishes_nothing_wrong_and_ends_whole";
    let mut child = Command::new(env::current_exe().expect("has a path"))
        .args([name, "--exact", "--nocapture"])
        .env(CHILD, root)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("starts");
    let output = BufReader::new(child.stdout.take().expect("piped"));
    let said = output
        .lines()
        .map_while(Result::ok)
        .filter(|line| line.contains("progress"));
    assert!(
        said.take(lines).count() > 0,
        "the other process did nothing"
    );
    // It may have ended by itself.
    let _ = child.kill();
    child.wait().expect("ends");
}

/// Looks at the disk as a restarted agent would: whatever has a name must be right.
fn check_whole_or_absent(root: &Path, manifest: &Manifest) {
    let cache = Cache::open(&root.join("cache"), ByteCount::gib(1)).expect("opens");
    if let Some(path) = cache.view(&manifest.id()) {
        assert!(is_right(&path, manifest), "a published view is wrong");
        // It came to its end before the signal: the next one starts anew.
        cache.set_pins(BTreeSet::new());
        cache.evict(&manifest.id()).expect("evicted");
    }
}

fn is_right(path: &Path, manifest: &Manifest) -> bool {
    manifest.files.iter().all(|file| {
        let bytes = fs::read(path.join(&file.path)).expect("a view has all its files");
        let mut chunks = file.chunk_refs();
        bytes.len() as u64 == file.size_bytes
            && chunks.all(|chunk| {
                let from = chunk.offset_bytes as usize;
                let part = &bytes[from..from + chunk.len_bytes as usize];
                chunk_digest(chunk.place, part) == chunk.digest
            })
    })
}

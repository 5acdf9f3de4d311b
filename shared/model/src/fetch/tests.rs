//! A source in memory that fails, lies and stalls, and a real cache.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicUsize;

use shared::units::Bytes as ByteCount;
use tokio::sync::Notify;

use super::*;
use crate::cache::ReserveError;

const MIB: usize = 1 << 20;

/// Gives the chunks of some models, each in the way that `behave` says.
#[derive(Default)]
struct Source {
    chunks: BTreeMap<Digest, Bytes>,
    manifests: BTreeMap<ManifestId, Bytes>,
    behave: Behaviour,
    asked: Mutex<Vec<Digest>>,
    manifests_asked: AtomicUsize,
    now: AtomicUsize,
    most: AtomicUsize,
    gate: Notify,
}

#[derive(Clone, Copy, Default)]
enum Behaviour {
    #[default]
    Well,
    /// The first `n` answers for each chunk are errors.
    Fail(usize),
    /// The first `n` answers for each chunk have a bit flipped.
    Corrupt(usize),
    /// The first answer for each chunk never comes.
    StallOnce,
    /// Answers for all but the first `n` questions wait for `gate`.
    WaitAfter(usize),
    NotFound,
}

impl Source {
    fn of(models: &[&Model], behave: Behaviour) -> Arc<Self> {
        let mut source = Self {
            behave,
            ..Self::default()
        };
        for model in models {
            let encoded = model.manifest.encode().into();
            source.manifests.insert(model.id, encoded);
            for file in &model.manifest.files {
                let bytes = &model.bytes[&file.path];
                for chunk in file.chunk_refs() {
                    let from = chunk.offset_bytes as usize;
                    let part = bytes.slice(from..from + chunk.len_bytes as usize);
                    source.chunks.insert(chunk.digest, part);
                }
            }
        }
        Arc::new(source)
    }

    fn asked(&self) -> usize {
        self.asked.lock().expect("no panic").len()
    }
}

impl ChunkSource for Arc<Source> {
    async fn fetch(&self, chunk: &ChunkRef) -> Result<Bytes, SourceError> {
        let (before, all) = {
            let mut asked = self.asked.lock().expect("no panic");
            let before = asked.iter().filter(|d| **d == chunk.digest).count();
            asked.push(chunk.digest);
            (before, asked.len())
        };
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        tokio::task::yield_now().await;
        let bytes = self.chunks[&chunk.digest].clone();
        let answer = match self.behave {
            Behaviour::Fail(n) if before < n => Err(SourceError::unavailable("broken pipe")),
            Behaviour::Corrupt(n) if before < n => {
                let mut wrong = bytes.to_vec();
                wrong[0] ^= 1;
                Ok(wrong.into())
            }
            Behaviour::StallOnce if before == 0 => std::future::pending().await,
            Behaviour::WaitAfter(n) if all > n => {
                self.gate.notified().await;
                Ok(bytes)
            }
            Behaviour::NotFound => Err(SourceError::NotFound),
            _ => Ok(bytes),
        };
        self.now.fetch_sub(1, Ordering::SeqCst);
        answer
    }

    async fn manifest(&self, id: &ManifestId) -> Result<Bytes, SourceError> {
        self.manifests_asked.fetch_add(1, Ordering::SeqCst);
        self.manifests.get(id).cloned().ok_or(SourceError::NotFound)
    }
}

struct Model {
    manifest: Manifest,
    id: ManifestId,
    bytes: BTreeMap<String, Bytes>,
}

fn bytes(len: usize, seed: u8) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let source = blake3::Hasher::new_keyed(&[seed; 32]);
    source.finalize_xof().fill(&mut bytes);
    bytes
}

fn model(files: &[(&str, Vec<u8>)]) -> Model {
    let dir = tempfile::tempdir().expect("temporary folder");
    for (path, bytes) in files {
        fs::write(dir.path().join(path), bytes).expect("file");
    }
    let manifest = crate::manifest_of(dir.path(), &|_| {}).expect("is a model");
    let bytes = files
        .iter()
        .map(|(p, b)| ((*p).to_owned(), Bytes::from(b.clone())));
    Model {
        id: manifest.id(),
        manifest,
        bytes: bytes.collect(),
    }
}

fn large_model() -> Model {
    model(&[
        ("large", bytes(33 * MIB, 1)),
        ("small", bytes(5, 2)),
        ("empty", vec![]),
        ("twin", bytes(5, 2)),
    ])
}

fn quick() -> FetchOptions {
    FetchOptions {
        backoff_min: Duration::from_millis(1),
        backoff_max: Duration::from_millis(2),
        attempt_timeout: Duration::from_secs(30),
        ..FetchOptions::default()
    }
}

fn fetcher(dir: &Path, source: &Arc<Source>, options: FetchOptions) -> Fetcher<Arc<Source>> {
    let cache = Cache::open(dir, ByteCount::gib(1)).expect("opens");
    cache.set_pins(BTreeSet::new());
    Fetcher::new(cache, source.clone(), options)
}

fn temporary() -> tempfile::TempDir {
    tempfile::tempdir().expect("temporary folder")
}

fn check(model: &Model, path: &Path) {
    for (name, bytes) in &model.bytes {
        let there = fs::read(path.join(name)).expect("there");
        assert!(there == *bytes, "{name} differs");
    }
}

fn unheard() -> watch::Sender<(u64, u64)> {
    watch::Sender::new((0, 0))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_fetched_whole_at_most_eight_chunks_at_once() {
    let (dir, model) = (temporary(), large_model());
    let source = Source::of(&[&model], Behaviour::Well);
    let fetcher = fetcher(dir.path(), &source, quick());
    let progress = unheard();
    let heard = progress.subscribe();
    let path = fetcher.fetch(model.id, progress).await.expect("fetched");
    check(&model, &path);
    let total = (33 * MIB + 5) as u64;
    assert_eq!(*heard.borrow(), (total, total));
    assert_eq!(source.asked(), 10, "each chunk once, twins once");
    assert!(source.most.load(Ordering::SeqCst) <= 8);
    let stats = fetcher.stats();
    assert_eq!((stats.chunks, stats.bytes, stats.retries), (10, total, 0));
    let again = fetcher.fetch(model.id, unheard()).await.expect("is there");
    assert_eq!((again, source.asked()), (path, 10));
    assert_eq!(source.manifests_asked.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_fails_or_lies_now_and_then_only_costs_time() {
    for behave in [Behaviour::Fail(1), Behaviour::Corrupt(1)] {
        let (dir, model) = (temporary(), large_model());
        let source = Source::of(&[&model], behave);
        let fetcher = fetcher(dir.path(), &source, quick());
        let path = fetcher.fetch(model.id, unheard()).await.expect("fetched");
        check(&model, &path);
        let stats = fetcher.stats();
        assert_eq!((stats.chunks, stats.retries), (10, 10));
        let lied = matches!(behave, Behaviour::Corrupt(_));
        assert_eq!(stats.corrupt_chunks, if lied { 10 } else { 0 });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_always_lies_is_named_with_model_file_and_chunk() {
    let (dir, model) = (temporary(), large_model());
    let source = Source::of(&[&model], Behaviour::Corrupt(usize::MAX));
    let fetcher = fetcher(dir.path(), &source, quick());
    let error = fetcher
        .fetch(model.id, unheard())
        .await
        .expect_err("refused");
    let FetchError::Corrupt {
        model: id,
        file,
        chunk,
        actual,
        ..
    } = &error
    else {
        panic!("another error: {error}");
    };
    assert_eq!(*id, model.id);
    assert!(["large", "small"].contains(&file.as_str()), "{file}");
    assert!(model.manifest.chunks().contains_key(chunk));
    assert_ne!(chunk, actual);
    assert_eq!(fetcher.cache().view(&model.id), None);
    assert!(fetcher.stats().chunks == 0 && fetcher.stats().corrupt_chunks >= 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_down_is_given_up_within_the_budget() {
    let (dir, model) = (temporary(), large_model());
    let source = Source::of(&[&model], Behaviour::Fail(usize::MAX));
    let fetcher = fetcher(dir.path(), &source, quick());
    let error = fetcher
        .fetch(model.id, unheard())
        .await
        .expect_err("refused");
    assert!(matches!(error, FetchError::Source { .. }), "{error}");
    assert!(source.asked() <= 10 + 17, "asked {} times", source.asked());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_source_does_not_have_is_not_asked_for_again() {
    let (dir, model) = (temporary(), large_model());
    let source = Source::of(&[&model], Behaviour::NotFound);
    let fetcher = fetcher(dir.path(), &source, quick());
    let error = fetcher
        .fetch(model.id, unheard())
        .await
        .expect_err("refused");
    assert!(
        matches!(error, FetchError::Source { attempts: 1, .. }),
        "{error}"
    );
    let unknown = ManifestId(Digest::of(b"unknown"));
    let error = fetcher
        .fetch(unknown, unheard())
        .await
        .expect_err("refused");
    assert!(matches!(error, FetchError::Manifest { .. }), "{error}");
    assert_eq!(source.manifests_asked.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_that_does_not_come_in_time_is_asked_for_again() {
    let (dir, model) = (temporary(), large_model());
    let source = Source::of(&[&model], Behaviour::StallOnce);
    let options = FetchOptions {
        attempt_timeout: Duration::from_millis(300),
        ..quick()
    };
    let fetcher = fetcher(dir.path(), &source, options);
    let path = fetcher.fetch(model.id, unheard()).await.expect("fetched");
    check(&model, &path);
    assert!(fetcher.stats().retries >= 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_manifest_is_refused() {
    let (dir, model) = (temporary(), large_model());
    let mut source = Arc::into_inner(Source::of(&[&model], Behaviour::Well)).expect("is the only");
    let other = ManifestId(Digest::of(b"other"));
    source
        .manifests
        .insert(other, model.manifest.encode().into());
    let garbage = Bytes::from_static(b"garbage");
    let bad = ManifestId(Digest::of(&garbage));
    source.manifests.insert(bad, garbage);
    let source = Arc::new(source);
    let fetcher = fetcher(dir.path(), &source, quick());
    let error = fetcher.fetch(other, unheard()).await.expect_err("refused");
    assert!(
        matches!(error, FetchError::CorruptManifest { .. }),
        "{error}"
    );
    assert_eq!(source.manifests_asked.load(Ordering::SeqCst), 5);
    let error = fetcher.fetch(bad, unheard()).await.expect_err("refused");
    assert!(matches!(error, FetchError::BadManifest { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_callers_of_one_model_fetch_it_once_and_all_see_progress() {
    let (dir, model) = (temporary(), large_model());
    let source = Source::of(&[&model], Behaviour::WaitAfter(3));
    let fetcher = fetcher(dir.path(), &source, quick());
    let callers: Vec<_> = (0..5)
        .map(|_| {
            let progress = unheard();
            let heard = progress.subscribe();
            let fetcher = fetcher.clone();
            let id = model.id;
            let task = tokio::spawn(async move { fetcher.fetch(id, progress).await });
            (task, heard)
        })
        .collect();
    let mut paths = BTreeSet::new();
    let mut heard: Vec<_> = callers.iter().map(|(_, heard)| heard.clone()).collect();
    for heard in &mut heard {
        let some = heard
            .wait_for(|(done, total)| *done > 0 && done < total)
            .await;
        some.expect("everybody hears of progress");
    }
    let open = tokio::spawn({
        let source = source.clone();
        async move {
            loop {
                source.gate.notify_one();
                tokio::task::yield_now().await;
            }
        }
    });
    for (task, _) in callers {
        paths.insert(task.await.expect("ran").expect("fetched"));
    }
    open.abort();
    assert_eq!((paths.len(), source.asked()), (1, 10));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_two_models_that_are_fetched_at_once_is_fetched_once() {
    let weights = bytes(13 * MIB, 7);
    let a = model(&[("w", weights.clone()), ("a", b"a".to_vec())]);
    let b = model(&[("w", weights), ("b", b"b".to_vec())]);
    let dir = temporary();
    let source = Source::of(&[&a, &b], Behaviour::Well);
    let fetcher = fetcher(dir.path(), &source, quick());
    let (one, two) = tokio::join!(
        fetcher.fetch(a.id, unheard()),
        fetcher.fetch(b.id, unheard())
    );
    check(&a, &one.expect("fetched"));
    check(&b, &two.expect("fetched"));
    assert_eq!(source.asked(), 4 + 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_that_is_dropped_loses_nothing_that_was_written() {
    let (dir, model) = (temporary(), large_model());
    let source = Source::of(&[&model], Behaviour::WaitAfter(6));
    let held = fetcher(dir.path(), &source, quick());
    let progress = unheard();
    let mut heard = progress.subscribe();
    let task = tokio::spawn({
        let (held, id) = (held.clone(), model.id);
        async move { held.fetch(id, progress).await }
    });
    // Six chunks were answered; they are written or soon will be.
    heard
        .wait_for(|(done, _)| *done >= (4 * MIB) as u64)
        .await
        .expect("progress");
    task.abort();
    assert!(task.await.expect_err("dropped").is_cancelled());
    assert_eq!(held.cache().view(&model.id), None);
    // The other model's fetch waits for the writes under way, then goes on.
    source.gate.notify_waiters();
    let before = source.asked();
    let open = tokio::spawn({
        let source = source.clone();
        async move {
            loop {
                source.gate.notify_one();
                tokio::task::yield_now().await;
            }
        }
    });
    let path = held.fetch(model.id, unheard()).await.expect("fetched");
    open.abort();
    check(&model, &path);
    assert!(source.asked() - before <= 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_does_not_fit_asks_the_source_for_no_chunk() {
    let (dir, model) = (temporary(), large_model());
    let source = Source::of(&[&model], Behaviour::Well);
    let cache = Cache::open(dir.path(), ByteCount::mib(8)).expect("opens");
    let fetcher = Fetcher::new(cache, source.clone(), quick());
    let error = fetcher
        .fetch(model.id, unheard())
        .await
        .expect_err("refused");
    let over = matches!(
        error,
        FetchError::Reserve(ReserveError::OverCapacity { .. })
    );
    assert!(over, "{error}");
    assert_eq!(source.asked(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evicted_model_is_fetched_again() {
    let (dir, model) = (temporary(), large_model());
    let source = Source::of(&[&model], Behaviour::Well);
    let fetcher = fetcher(dir.path(), &source, quick());
    fetcher.fetch(model.id, unheard()).await.expect("fetched");
    fetcher.cache().evict(&model.id).expect("evicted");
    assert_eq!(fetcher.cache().usage().used, ByteCount(0));
    let path = fetcher.fetch(model.id, unheard()).await.expect("fetched");
    check(&model, &path);
    assert_eq!(source.asked(), 20);
}

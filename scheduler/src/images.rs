//! Images of registries: what a reference means is asked here, once for all nodes, so that all of them
//! run the same digests and a plan holds no credentials.
//!
//! Manifest and config are read and checked here, by a process that is not root; layers are fetched by the
//! nodes. Images that runtimes name are asked for from the start on, again and again until they are
//! there; whoever deploys, or asks for a pull, waits for the answer.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use daemon::telemetry::Chain;
use futures_util::StreamExt as _;
use futures_util::stream;
use model::oci::{self, OciError};
use registry::{Access, Client, Kind, PullError};
use scheduler_core::events::recorded as told;
use scheduler_core::{ApiError, Core, Effects};
use shared::api::ImageInfo;
use shared::ids::ImageRef;
use shared::plan::{OciBlob, PlannedImage};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::RegistryConfig;
use crate::control::{Context, Handle, Stopping};

/// Whoever asked for a pull waits so long at most; some registries build what they are asked for.
const PULL_LIMIT: Duration = Duration::from_secs(90);
/// Clients give a call 30 seconds.
const DEPLOY_LIMIT: Duration = Duration::from_secs(20);
/// How soon something that became missing is noticed.
const LOOK_EVERY: Duration = Duration::from_secs(2);
const RETRY_MIN: Duration = Duration::from_secs(5);
const RETRY_MAX: Duration = Duration::from_secs(300);
/// Registries asked at once.
const AT_ONCE: usize = 4;

/// Cheap to clone.
#[derive(Clone)]
pub struct Images {
    control: Handle,
    config: Arc<RegistryConfig>,
}

#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error(transparent)]
    Pull(#[from] PullError),
    #[error("image {reference}")]
    Content {
        reference: ImageRef,
        #[source]
        source: OciError,
    },
    #[error("image {reference}: its registry did not answer within {after:?}")]
    Late {
        reference: ImageRef,
        after: Duration,
    },
    #[error("{0}")]
    Refused(ApiError),
    #[error(transparent)]
    Stopping(#[from] Stopping),
}

impl ImageError {
    /// As the answer to whoever wants the image.
    pub fn answer(&self) -> ApiError {
        let text = Chain(self).to_string();
        match self {
            ImageError::Pull(PullError::NotFound { .. }) => ApiError::not_found(text),
            ImageError::Pull(error) => match error.kind() {
                Kind::Refused | Kind::Setup => ApiError::invalid(text),
                Kind::Down => ApiError::unavailable(text),
            },
            ImageError::Content { source, .. } => match source {
                OciError::ReadBlob { .. } => ApiError::unavailable(text),
                _ => ApiError::invalid(text),
            },
            ImageError::Late { .. } => ApiError::unavailable(text),
            ImageError::Refused(refused) => refused.clone(),
            ImageError::Stopping(_) => ApiError::unavailable(text),
        }
    }
}

impl Images {
    pub fn new(control: Handle, config: RegistryConfig) -> Self {
        let config = Arc::new(config);
        Self { control, config }
    }

    /// Asks the registry what the reference means now, and makes it mean that from here on.
    pub async fn pull(&self, reference: &ImageRef) -> Result<ImageInfo, ImageError> {
        self.pull_within(reference, PULL_LIMIT).await
    }

    /// Asks for images that a deploy needs; the first that is not to be had is why it is refused.
    pub async fn ensure(&self, needed: BTreeSet<ImageRef>) -> Result<(), ApiError> {
        let asked = needed
            .iter()
            .map(|reference| self.pull_within(reference, DEPLOY_LIMIT));
        for pulled in futures_util::future::join_all(asked).await {
            if let Err(error) = pulled {
                let mut refusal = error.answer();
                // That of a registry; what the caller named is there.
                if refusal.status == 404 {
                    refusal = ApiError::invalid(refusal.message);
                }
                refusal.message =
                    format!("the runtime's image is not to be had: {}", refusal.message);
                return Err(refusal);
            }
        }
        Ok(())
    }

    /// A task: asks for every image that runtimes name, until it is there.
    pub async fn resolve_regularly(self, cancel: CancellationToken) -> anyhow::Result<()> {
        let mut waits: BTreeMap<ImageRef, (Instant, Duration)> = BTreeMap::new();
        loop {
            let Ok(missing) = self.control.read(|core| core.unresolved_images()).await else {
                return Ok(());
            };
            waits.retain(|image, _| missing.contains(image));
            let now = Instant::now();
            let due = |image: &ImageRef| waits.get(image).is_none_or(|(at, _)| *at <= now);
            let due: Vec<ImageRef> = missing.into_iter().filter(due).collect();
            let asked = stream::iter(due)
                .map(|image| self.ask(image))
                .buffer_unordered(AT_ONCE)
                .collect::<Vec<_>>();
            let asked = tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                asked = asked => asked,
            };
            for (image, found) in asked {
                if !found {
                    let last = waits.get(&image).map(|(_, wait)| *wait);
                    let wait = last.map_or(RETRY_MIN, |wait| (wait * 2).min(RETRY_MAX));
                    let jitter = wait.mul_f64(rand::random_range(0.8..1.2));
                    waits.insert(image, (Instant::now() + jitter, wait));
                }
            }
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// Why it is not to be had is noted where everybody looks.
    async fn ask(&self, image: ImageRef) -> (ImageRef, bool) {
        let found = self.pull(&image).await.is_ok();
        (image, found)
    }

    async fn pull_within(
        &self,
        reference: &ImageRef,
        limit: Duration,
    ) -> Result<ImageInfo, ImageError> {
        let resolved = tokio::time::timeout(limit, self.resolve(reference)).await;
        let resolved = resolved.unwrap_or_else(|_| {
            Err(ImageError::Late {
                reference: reference.clone(),
                after: limit,
            })
        });
        let registered = match resolved {
            Ok(image) => self.register(image).await?,
            Err(error) => Err(error),
        };
        let (problem, news) = match &registered {
            Ok(_) => (None, None),
            Err(error) => (Some(Chain(error).to_string()), Some(error)),
        };
        let noted = reference.clone();
        let changed = self
            .control
            .decide(move |core, ctx| {
                let changed = core.note_image_problem(&noted, problem.clone());
                if let Some(why) = problem.filter(|_| changed) {
                    core.tell(told::image_not_found(&noted, &why), ctx.unix_ms);
                }
                // What waits for it says why.
                let effects = if changed {
                    core.pass(ctx)
                } else {
                    Effects::default()
                };
                (changed, effects)
            })
            .await?;
        if let Some(error) = news.filter(|_| changed) {
            warn!(image = %reference, error = %Chain(error), "image is not to be had");
        }
        registered
    }

    async fn register(
        &self,
        image: PlannedImage,
    ) -> Result<Result<ImageInfo, ImageError>, Stopping> {
        let (reference, digest) = (image.reference.clone(), image.manifest.digest.clone());
        let decided = self
            .control
            .decide(move |core, ctx| registered(core, ctx, image));
        let decided = decided.await?;
        if let Ok((_, true)) = &decided {
            info!(image = %reference, %digest, "image found at its registry");
        }
        Ok(decided.map(|(info, _)| info).map_err(ImageError::Refused))
    }

    async fn resolve(&self, reference: &ImageRef) -> Result<PlannedImage, ImageError> {
        let client = Arc::new(self.client(reference.clone()).await?);
        let top = client.manifest().await?;
        let runtime = tokio::runtime::Handle::current();
        let named = reference.clone();
        // Taking an image apart is no asynchronous work; what it reads is.
        let taken_apart = tokio::task::spawn_blocking(move || {
            let blob = OciBlob {
                media_type: top.media_type,
                digest: top.digest,
                size_bytes: top.bytes.len() as u64,
            };
            let read = |wanted: &OciBlob| {
                if wanted.digest == blob.digest {
                    return Ok(top.bytes.clone());
                }
                let is_manifest = oci::is_manifest(&wanted.media_type);
                let small = client.small(&wanted.digest, wanted.size_bytes, is_manifest);
                runtime
                    .block_on(small)
                    .map_err(|source| OciError::ReadBlob {
                        digest: wanted.digest.clone(),
                        source: std::io::Error::other(source),
                    })
            };
            oci::planned_of_registry(named, &blob, &read)
        });
        let taken_apart = taken_apart.await.map_err(|_| Stopping)?;
        taken_apart.map_err(|source| {
            // What the registry said is why, whoever asked for it.
            ImageError::Content {
                reference: reference.clone(),
                source,
            }
        })
    }

    async fn client(&self, reference: ImageRef) -> Result<Client, ImageError> {
        let (hosts_dir, auth_file): (PathBuf, PathBuf) =
            (self.config.hosts_dir.clone(), self.config.auth_file.clone());
        // Files are read, the system's certificates among them.
        let made = tokio::task::spawn_blocking(move || {
            Client::new(Access::load(&hosts_dir, &auth_file, &reference)?)
        });
        Ok(made.await.map_err(|_| Stopping)??)
    }
}

/// The image and whether it is new here, and what follows for plans.
fn registered(
    core: &mut Core,
    ctx: &mut Context<'_>,
    image: PlannedImage,
) -> (Result<(ImageInfo, bool), ApiError>, Effects) {
    let (reference, digest) = (image.reference.clone(), image.manifest.digest.clone());
    let writes = match core.registry.register_image(image, ctx.unix_ms) {
        Ok(writes) => writes,
        Err(error) => return (Err(error), Effects::default()),
    };
    let news = !writes.is_empty();
    if news {
        core.tell(told::image_found(&reference, &digest), ctx.unix_ms);
    }
    let mut effects = Effects {
        writes,
        ..Effects::default()
    };
    effects.merge(core.pass(ctx));
    let info = core
        .registry
        .image_record(&reference)
        .map(|record| (core.image_info(record), news))
        .ok_or_else(|| ApiError::internal("the image is not there"));
    (info, effects)
}

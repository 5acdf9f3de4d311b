//! Images: OCI layouts that were pushed like models, under the reference that runtimes name.

use axum::extract::State;
use model::oci;
use scheduler_core::events::recorded as told;
use scheduler_core::{ApiError, Effects};
use serde::Deserialize;
use shared::api::images::PullImage;
use shared::api::{Deleted, ImageInfo, ImageList, RegisterImage};
use shared::ids::ImageRef;
use shared::manifest::{Kind, Manifest};
use shared::plan::PlannedImage;

use super::Api;
use super::auth::{Caller, Manage, Query};
use super::body::{Json, Params};
use super::error::{Refusal, internal, invalid};
use super::tokens::recorded;
use crate::control::Stopping;

const INDEX: &str = "index.json";

pub(super) async fn list(
    _: Caller<Query>,
    State(api): State<Api>,
) -> Result<Json<ImageList>, Refusal> {
    Ok(Json(api.control.read(|core| core.image_list()).await?))
}

/// Takes the layout apart here, so that no agent, being root, has to.
pub(super) async fn register(
    caller: Caller<Manage>,
    State(api): State<Api>,
    Json(input): Json<RegisterImage>,
) -> Result<Json<ImageInfo>, Refusal> {
    let _kept = api.chunks.keep().await;
    let manifest = api.chunks.manifest(input.manifest).await?;
    if manifest.description.kind != Kind::Image {
        return Err(Refusal(ApiError::invalid(format!(
            "manifest {} is of a model: register it with `stokehold model push`",
            input.manifest
        ))));
    }
    let image = take_apart(&api, input, manifest).await?;
    let by = caller.token.name;
    let registered = api.control.decide(move |core, ctx| {
        let reference = image.reference.clone();
        let registered = core.registry.register_image(image, ctx.unix_ms);
        if registered.as_ref().is_ok_and(|writes| !writes.is_empty()) {
            core.tell(told::image_imported(&reference, &by), ctx.unix_ms);
        }
        let (result, effects) = recorded(core, ctx, registered.map(|ops| ((), ops)));
        let info = result.and_then(|()| {
            let record = core.registry.image_record(&reference);
            let record = record.ok_or_else(|| ApiError::internal("the image is not there"))?;
            Ok(core.image_info(record))
        });
        (info, effects)
    });
    Ok(Json(registered.await??))
}

/// Asks the registry now what a reference means; nodes then fetch it.
pub(super) async fn pull(
    _: Caller<Manage>,
    State(api): State<Api>,
    Json(input): Json<PullImage>,
) -> Result<Json<ImageInfo>, Refusal> {
    let pulled = api.images.pull(&input.reference).await;
    Ok(Json(pulled.map_err(|error| error.answer())?))
}

/// Reading blobs is asynchronous, taking an image apart is not: that runs on a thread of its own.
async fn take_apart(
    api: &Api,
    input: RegisterImage,
    manifest: Manifest,
) -> Result<PlannedImage, Refusal> {
    let store = api.chunks.store.clone();
    let index = store.read_file(&manifest, INDEX).await;
    let index = index.map_err(|e| invalid("manifest", e))?;
    let runtime = tokio::runtime::Handle::current();
    let taken_apart = tokio::task::spawn_blocking(move || {
        let read_blob = |digest: &shared::digest::OciDigest| {
            let path = PlannedImage::blob_path(digest);
            runtime
                .block_on(store.read_file(&manifest, &path))
                .map_err(std::io::Error::other)
        };
        let image = oci::planned_image(input.reference, input.manifest, &read_blob, &index)?;
        oci::check_complete(&image, &manifest)?;
        Ok::<_, oci::OciError>(image)
    });
    taken_apart
        .await
        .map_err(|e| {
            if e.is_panic() {
                internal(&e)
            } else {
                Stopping.into()
            }
        })?
        .map_err(|e| invalid("manifest", daemon::telemetry::Chain(&e)))
}

#[derive(Deserialize)]
pub(super) struct ReferenceParam {
    reference: Option<ImageRef>,
}

/// Frees what nothing else needs.
pub(super) async fn delete(
    caller: Caller<Manage>,
    State(api): State<Api>,
    Params(params): Params<ReferenceParam>,
) -> Result<Json<Deleted>, Refusal> {
    let reference = params.reference.ok_or_else(|| {
        ApiError::invalid("query: say which image to delete, such as reference=example:1")
    })?;
    let by = caller.token.name;
    let deleted = api.control.decide(move |core, ctx| {
        let users = core.images_in_use();
        let in_use = |reference: &ImageRef| users.get(reference).cloned();
        let image = core.registry.image(&reference);
        let layout = image.and_then(|image| image.origin.layout());
        match core.registry.delete_image(&reference, &in_use) {
            Ok(ops) => {
                core.tell(told::image_deleted(&reference, &by), ctx.unix_ms);
                recorded(core, ctx, Ok((layout, ops)))
            }
            Err(error) => (Err(error), Effects::default()),
        }
    });
    let layout = deleted.await??;
    // One of a registry lies in no store of ours; nodes drop it after a while.
    let freed_bytes = match layout {
        Some(_) => {
            api.chunks
                .collect(&api.control, layout)
                .await?
                .deleted_bytes
        }
        None => 0,
    };
    Ok(Json(Deleted { freed_bytes }))
}

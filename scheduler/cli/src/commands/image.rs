//! `stokehold image`: the runtimes' images.

use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use reqwest::Method;
use shared::api::images::PullImage;
use shared::api::{Deleted, ImageInfo, ImageList, RegisterImage};
use shared::ids::ImageRef;

use crate::client::{Call, Client, LONG_CALL};
use crate::commands::endpoint::confirmed;
use crate::exit::Stop;
use crate::output::Output;
use crate::output::format::{self, bytes};
use crate::output::table::Table;
use crate::push;

const IMAGES: &str = "/api/stokehold/v1/images";

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Uploads an OCI archive; nodes then fetch it from the scheduler, without a registry.
    Import(ImportArgs),
    /// Asks a registry what a reference means now; nodes then fetch it from there.
    Pull(PullArgs),
    /// Lists images, and on how many nodes they are.
    #[command(after_help = LIST_EXAMPLES)]
    List,
    /// Deletes an image that no endpoint uses.
    Delete(DeleteArgs),
}

const IMPORT_EXAMPLES: &str = "\
Examples:
  stokehold image import runtime-mlflow.oci.tar
  stokehold image import vllm.oci.tar --name registry.example/vllm:0.13
  stokehold image import runtime-mlflow.oci.tar --output json

The archive is what `skopeo copy docker://... oci-archive:FILE` and `podman save --format
oci-archive` write. It is unpacked under TMPDIR first, which needs room for it.";

const PULL_EXAMPLES: &str = "\
Examples:
  stokehold image pull registry.example/vllm:0.13       # again, after the tag has moved
  stokehold image pull docker.io/vllm/vllm-openai:v0.13.0
  stokehold image pull registry.example/vllm:0.13 --output json

Images that runtimes name are asked for by themselves. Replicas that run keep the image that they have;
new ones get what the reference means now. The scheduler and each node's agent read mirrors and
certificates from /etc/containerd/certs.d and credentials from /etc/stokehold/registry-auth.json.";

const LIST_EXAMPLES: &str = "\
Examples:
  stokehold image list
  stokehold image list --output json
  stokehold image list --context production";

const DELETE_EXAMPLES: &str = "\
Examples:
  stokehold image delete stokehold.local/runtime-mlflow:1
  stokehold image delete stokehold.local/runtime-mlflow:1 --yes
  stokehold image delete registry.example/vllm:0.13 --yes --output json";

#[derive(Debug, Args)]
#[command(after_help = IMPORT_EXAMPLES)]
pub(crate) struct ImportArgs {
    /// An OCI archive (.oci.tar).
    #[arg(value_name = "FILE")]
    archive: PathBuf,
    /// Reference under which runtimes find it. Default: the one in the archive.
    #[arg(long, value_name = "REF")]
    name: Option<ImageRef>,
}

#[derive(Debug, Args)]
#[command(after_help = PULL_EXAMPLES)]
pub(crate) struct PullArgs {
    /// With its registry: docker.io/library/NAME:TAG, HOST[:PORT]/NAME:TAG or ...@sha256:DIGEST.
    #[arg(value_name = "REF")]
    reference: ImageRef,
}

#[derive(Debug, Args)]
#[command(after_help = DELETE_EXAMPLES)]
pub(crate) struct DeleteArgs {
    reference: ImageRef,
    /// Do not ask (without a terminal nothing is asked).
    #[arg(long, short)]
    yes: bool,
}

pub(crate) async fn run(
    command: ImageCommand,
    client: &Client,
    output: &Output,
) -> anyhow::Result<()> {
    match command {
        ImageCommand::Import(args) => tokio::select! {
            imported = import(args, client, output) => imported,
            // Dropping the import removes what was unpacked.
            _ = tokio::signal::ctrl_c() => Err(Stop::Interrupted("interrupted".into()).into()),
        },
        ImageCommand::List => {
            let list: ImageList = client.call(Call::get(IMAGES)).await?;
            output.rows(&list, || table(&list.images, SystemTime::now()))?;
            for problem in problems(&list) {
                output.note(problem);
            }
            Ok(())
        }
        ImageCommand::Pull(args) => pull(args, client, output).await,
        ImageCommand::Delete(args) => delete(&args, client, output).await,
    }
}

async fn import(args: ImportArgs, client: &Client, output: &Output) -> anyhow::Result<()> {
    let into = tempfile::Builder::new()
        .prefix("stokehold-image-")
        .tempdir()
        .context("make a temporary folder for the archive")?;
    let layout = push::unpack(&args.archive, into.path(), output).await?;
    let reference = reference(args.name, layout.reference.as_deref())?;
    let source = push::Source::image(into.path().to_owned(), output).await?;
    let sent = push::send(&source, client, output).await?;
    let request = RegisterImage {
        reference,
        manifest: source.id(),
    };
    let call = Call::new(Method::POST, IMAGES)
        .json(&request)
        .timeout(Some(LONG_CALL));
    let answer = client.bytes(call).await?;
    if output.is_json() {
        return output.raw(&[&answer[..], b"\n"].concat());
    }
    output.line(format!("{}: {sent}", request.reference))
}

async fn pull(args: PullArgs, client: &Client, output: &Output) -> anyhow::Result<()> {
    let request = PullImage {
        reference: args.reference,
    };
    let call = Call::new(Method::POST, format!("{IMAGES}/pull"))
        .json(&request)
        .timeout(Some(LONG_CALL));
    let image: ImageInfo = client.call(call).await?;
    let said = format!(
        "{}: {}, {} layers, {}",
        image.reference,
        image.digest,
        image.layers,
        bytes(Some(image.size_bytes))
    );
    output.done(&image, said)
}

/// What keeps images from nodes, a line each.
fn problems(list: &ImageList) -> Vec<String> {
    let failed = list.images.iter().flat_map(|image| {
        let failed = image.nodes.failed.iter();
        failed.map(|failed| format!("{}: {}", failed.node, failed.reason))
    });
    let missing = list.missing.iter();
    failed
        .chain(missing.map(|missing| missing.reason.clone()))
        .collect()
}

/// What was given beats what the archive says.
fn reference(given: Option<ImageRef>, archived: Option<&str>) -> Result<ImageRef, Stop> {
    if let Some(given) = given {
        return Ok(given);
    }
    let archived = archived.ok_or_else(|| {
        Stop::Usage("the archive names no reference: give one with --name REF".into())
    })?;
    archived.parse().map_err(|error| {
        Stop::Usage(format!(
            "{error} (it stands in the archive): give one with --name REF"
        ))
    })
}

async fn delete(args: &DeleteArgs, client: &Client, output: &Output) -> anyhow::Result<()> {
    if !args.yes && !confirmed(&format!("delete image {}?", args.reference))? {
        let kept = Deleted { freed_bytes: 0 };
        return output.done(&kept, "nothing was deleted");
    }
    let call = Call::new(Method::DELETE, IMAGES)
        .query("reference", &args.reference)
        .timeout(Some(LONG_CALL));
    let deleted: Deleted = client.call(call).await?;
    output.done(
        &deleted,
        format!(
            "image {} is deleted, {} freed",
            args.reference,
            bytes(Some(deleted.freed_bytes))
        ),
    )
}

fn table(images: &[ImageInfo], now: SystemTime) -> Table {
    let mut table = Table::new(
        ["REFERENCE", "DIGEST", "LAYERS", "SIZE", "NODES", "AGE"],
        "no images: `stokehold image import` uploads one, `stokehold image pull` names one of a registry",
    );
    for image in images {
        let digest = image
            .digest
            .strip_prefix("sha256:")
            .unwrap_or(&image.digest);
        table.row([
            image.reference.as_str().into(),
            digest.get(..12).unwrap_or(digest).into(),
            image.layers.into(),
            bytes(Some(image.size_bytes)).into(),
            format!("{}/{}", image.nodes.ready, image.nodes.planned).into(),
            format::since_unix_ms(image.created_unix_ms, now).into(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::api::images::{FailedPull, OnNodes};
    use shared::digest::Digest;
    use shared::manifest::ManifestId;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn images_are_listed_by_reference() {
        let image = ImageInfo {
            reference: "stokehold.local/runtime-mlflow:1"
                .parse()
                .expect("reference"),
            digest: format!("sha256:{}", "ab".repeat(32)),
            layout: Some(ManifestId(Digest::of(b"x"))),
            size_bytes: 240 << 20,
            layers: 3,
            created_unix_ms: 1_000_000,
            nodes: OnNodes {
                planned: 3,
                ready: 2,
                failed: vec![FailedPull {
                    node: "n3".parse().expect("name"),
                    reason: "pull image a: no".into(),
                }],
            },
        };
        let now = UNIX_EPOCH + Duration::from_secs(1090);
        let list = ImageList {
            images: vec![image],
            missing: vec![],
        };
        insta::assert_snapshot!(table(&list.images, now).render(None, false));
        assert_eq!(problems(&list), ["n3: pull image a: no"]);
    }

    #[test]
    fn a_given_reference_beats_the_archives_and_one_is_needed() {
        let given: ImageRef = "a/b:1".parse().expect("reference");
        assert_eq!(
            reference(Some(given.clone()), Some("c/d:2")).ok(),
            Some(given)
        );
        assert_eq!(
            reference(None, Some("c/d:2"))
                .ok()
                .as_ref()
                .map(ImageRef::as_str),
            Some("c/d:2")
        );
        assert!(reference(None, None).is_err());
        assert!(reference(None, Some("")).is_err());
    }
}

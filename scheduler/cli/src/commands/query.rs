//! `stokehold query`: one request to an endpoint, through a gateway.

use std::io::{IsTerminal as _, Read as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use reqwest::Method;
use serde_json::Value;
use shared::ids::{EndpointName, EntityName};

use crate::client::{Call, Client};
use crate::exit::Stop;
use crate::output::Output;

const EXAMPLES: &str = "\
Examples:
  stokehold query iris --data @rows.json
  stokehold query scores --data '{\"inputs\": [[5.1, 3.5, 1.4, 0.2]]}' --entity scores-2
  echo '{\"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}' | stokehold query chat --stream";

/// The gateway ends a request itself after 297 s; a scaled-to-zero endpoint wakes within that.
const PATIENCE: Duration = Duration::from_secs(310);

/// What a gateway accepts.
const MAX_BODY_BYTES: u64 = 16 << 20;

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct QueryArgs {
    name: EndpointName,
    /// The body: JSON, @FILE, or - for standard input (the default when that is no terminal).
    #[arg(long, short, value_name = "JSON|@FILE|-")]
    data: Option<String>,
    /// One served entity, whatever the traffic split says.
    #[arg(long, value_name = "NAME")]
    entity: Option<EntityName>,
    /// Ask for a stream and print its events as they come.
    #[arg(long)]
    stream: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Source {
    Text(String),
    File(PathBuf),
    Stdin,
}

pub(crate) async fn run(args: QueryArgs, client: &Client, output: &Output) -> anyhow::Result<()> {
    let body = prepare(given(args.data.as_deref())?, args.stream)?;
    let path = path(&args.name, args.entity.as_ref());
    let mut call = Call::new(Method::POST, path).timeout(Some(PATIENCE));
    call.body = crate::client::Payload::Json(body.into());
    if args.stream {
        return stream(call.timeout(None), client, output).await;
    }
    let mut answer = client.bytes(call).await?;
    if !answer.ends_with(b"\n") {
        answer.push(b'\n');
    }
    output.raw(&answer)
}

/// The body that `--data` means, checked to be JSON.
pub(crate) fn body(data: Option<&str>) -> anyhow::Result<Vec<u8>> {
    prepare(given(data)?, false)
}

fn given(data: Option<&str>) -> anyhow::Result<Vec<u8>> {
    read(source(data, std::io::stdin().is_terminal())?)
}

async fn stream(call: Call<'_>, client: &Client, output: &Output) -> anyhow::Result<()> {
    let mut response = client.open(&call).await?;
    while let Some(piece) = client.chunk(&mut response).await? {
        output.raw(&piece)?;
    }
    Ok(())
}

pub(crate) fn path(endpoint: &EndpointName, entity: Option<&EntityName>) -> String {
    match entity {
        None => format!("/serving-endpoints/{endpoint}/invocations"),
        Some(entity) => {
            format!("/serving-endpoints/{endpoint}/served-models/{entity}/invocations")
        }
    }
}

fn source(data: Option<&str>, stdin_is_terminal: bool) -> Result<Source, Stop> {
    match data {
        Some("-") => Ok(Source::Stdin),
        Some(text) => Ok(match text.strip_prefix('@') {
            Some(file) => Source::File(file.into()),
            None => Source::Text(text.to_owned()),
        }),
        None if stdin_is_terminal => Err(Stop::Usage(
            "no body: give --data JSON, --data @FILE, or JSON on standard input".into(),
        )),
        None => Ok(Source::Stdin),
    }
}

fn read(source: Source) -> anyhow::Result<Vec<u8>> {
    let mut body = Vec::new();
    match source {
        Source::Text(text) => body = text.into_bytes(),
        Source::File(path) => {
            let file =
                std::fs::File::open(&path).with_context(|| format!("open {}", path.display()))?;
            file.take(MAX_BODY_BYTES + 1)
                .read_to_end(&mut body)
                .with_context(|| format!("read {}", path.display()))?;
        }
        Source::Stdin => {
            std::io::stdin()
                .take(MAX_BODY_BYTES + 1)
                .read_to_end(&mut body)
                .context("read standard input")?;
        }
    }
    anyhow::ensure!(
        body.len() as u64 <= MAX_BODY_BYTES,
        "the body is over the limit of {} MiB",
        MAX_BODY_BYTES >> 20
    );
    Ok(body)
}

/// Checks that the body is JSON, where the error can name line and column, and asks for a stream.
/// Without `--stream` the bytes travel as they are.
fn prepare(body: Vec<u8>, stream: bool) -> anyhow::Result<Vec<u8>> {
    let value: Value = serde_json::from_slice(&body)
        .map_err(|error| Stop::Usage(format!("the body is not JSON: {error}")))?;
    if !stream {
        return Ok(body);
    }
    let Value::Object(mut object) = value else {
        return Err(Stop::Usage("--stream needs a body that is a JSON object".into()).into());
    };
    object.insert("stream".into(), Value::Bool(true));
    Ok(serde_json::to_vec(&object)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_comes_from_the_argument_a_file_or_standard_input() {
        assert_eq!(
            source(Some("{}"), true).ok(),
            Some(Source::Text("{}".into()))
        );
        assert_eq!(
            source(Some("@a.json"), true).ok(),
            Some(Source::File("a.json".into()))
        );
        assert_eq!(source(Some("-"), true).ok(), Some(Source::Stdin));
        assert_eq!(source(None, false).ok(), Some(Source::Stdin));
        assert!(source(None, true).is_err());
    }

    #[test]
    fn a_body_is_sent_as_it_is_unless_a_stream_is_asked_for() {
        let body = br#"{ "inputs" : [1.0] }"#.to_vec();
        assert_eq!(prepare(body.clone(), false).expect("json"), body);
        assert_eq!(
            prepare(body, true).expect("json"),
            br#"{"inputs":[1.0],"stream":true}"#
        );
    }

    #[test]
    fn a_body_that_is_no_json_is_a_usage_error_with_its_place() {
        let error = prepare(b"{\"a\": }".to_vec(), false).expect_err("no json");
        assert!(error.to_string().contains("line 1 column 7"), "{error}");
        assert!(prepare(b"[1]".to_vec(), true).is_err());
    }

    #[test]
    fn an_entity_has_its_own_address() {
        let endpoint: EndpointName = "iris".parse().expect("name");
        let entity: EntityName = "iris-2".parse().expect("name");
        assert_eq!(
            path(&endpoint, Some(&entity)),
            "/serving-endpoints/iris/served-models/iris-2/invocations"
        );
    }
}

//! `stokehold load`: an open load on one endpoint, and how the endpoint takes it.
//!
//! When each request is sent is fixed beforehand ([`schedule`]); latency counts from there ([`tally`]),
//! so that a stall shows as what it is for those who wait. A client that sent its next request only
//! after the last answer would send less to a slow endpoint, and call it quick.
//!
//! | module | what it holds |
//! | --- | --- |
//! | `schedule` | when each request is to be sent. Pure |
//! | `outcome`, `tally` | how requests ended, and their statistics. Pure |
//! | `body` | a row made up from the model's signature. Pure |
//! | `live`, `report`, `plot` | the live line, the result, the picture. Pure |
//! | `drive` | sends, and feeds the tally |
//! | `scale` | asks the scheduler each second for demand and replicas |

mod body;
mod drive;
mod live;
mod outcome;
mod plot;
mod report;
mod scale;
mod schedule;
mod tally;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use clap::Args;
use reqwest::Method;
use shared::api::{EndpointDescription, ModelList};
use shared::ids::EndpointName;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::client::{Call, Client, Payload};
use crate::commands::endpoint::description_path;
use crate::commands::query;
use crate::context::Resolved;
use crate::exit::Stop;
use crate::output::Output;
use report::{Found, Report};
use schedule::{Arrivals, Plan, Rates};
use tally::Tally;

const EXAMPLES: &str = "\
Examples:
  stokehold load iris --rps 50 --over 30s --data @rows.json
  stokehold load iris --rps 10..500 --over 60s --plot load.svg
  stokehold load iris --rps 200 --over 5m --warm-up 10s --fail-over 1% --output json > load.json

Open loop: when each request is sent is fixed beforehand, and latency counts from then, so that an
endpoint which stalls does not slow the load down and its stall is in the percentiles. What is due
while --max-in-flight requests are unanswered is not sent, and counted as that.

While it runs: rps intended, sent and answered, requests in flight, latency in the last second,
failures; then the endpoint's demand (active and queued requests), each replica's target concurrency,
and replicas ready of replicas wanted. Ctrl-C ends the load early and shows the result.

The code is 0 also when requests failed, as long as one succeeded; 1 when none did, or when more than
--fail-over did not; 130 after Ctrl-C.";

/// One client does not need more, and each is a connection.
const MOST_IN_FLIGHT: u64 = 20_000;
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// Without a terminal the live line is one of so many seconds.
const LINE_EVERY: u64 = 5;
/// Files and connections beside the requests'.
const OTHER_FILES: u64 = 64;

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct LoadArgs {
    /// Endpoint to send to.
    name: EndpointName,
    /// Requests a second: constant (50), or from..to (10..500).
    #[arg(long, value_name = "N|A..B")]
    rps: Rates,
    /// How long, such as 60s or 5m; a ramp takes this long.
    #[arg(long, value_name = "TIME", value_parser = crate::duration::parse)]
    over: Duration,
    /// The body of each request: JSON, @FILE, or - for standard input. Default: one row made up
    /// from the model's signature.
    #[arg(long, short, value_name = "JSON|@FILE|-")]
    data: Option<String>,
    /// Most requests unanswered at once, which is also the most connections.
    #[arg(
        long,
        visible_alias = "connections",
        value_name = "N",
        default_value_t = 512
    )]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=MOST_IN_FLIGHT))]
    max_in_flight: u64,
    /// How long an answer may take.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = crate::duration::parse)]
    timeout: Duration,
    /// Before the load, at its first rate, and in none of the figures.
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = crate::duration::parse)]
    warm_up: Duration,
    /// How requests are spaced.
    #[arg(long, value_enum, default_value = "poisson", value_name = "HOW")]
    arrivals: Arrivals,
    /// Of the chance in --arrivals poisson: the same seed sends at the same times.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Draw the load over time into this file.
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// End with code 1 when more than this share of the requests failed or was not sent: 1%.
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    fail_over: Option<f64>,
}

/// `1%`, `0.5%` or `0.5` as a ratio of 0 to 1.
fn percent(text: &str) -> Result<f64, String> {
    let number: Option<f64> = text.trim_end_matches('%').trim_end().parse().ok();
    match number {
        Some(percent) if (0.0..=100.0).contains(&percent) => Ok(percent / 100.0),
        Some(_) | None => Err("expected a percentage such as 1%".into()),
    }
}

impl LoadArgs {
    fn plan(&self) -> Result<Plan, Stop> {
        let too_long = self.over + self.warm_up > LONGEST;
        if self.over.is_zero() || too_long {
            return Err(Stop::Usage(
                "--over: a load takes more than nothing and, with its warm-up, at most 24h".into(),
            ));
        }
        if self.timeout.is_zero() {
            return Err(Stop::Usage(
                "--timeout: an answer takes more than no time".into(),
            ));
        }
        Ok(Plan {
            rates: self.rps,
            warm_up: self.warm_up,
            over: self.over,
            arrivals: self.arrivals,
        })
    }
}

pub(crate) async fn run(args: LoadArgs, context: &Resolved, output: &Output) -> anyhow::Result<()> {
    let plan = args.plan()?;
    let server = Client::to_server(context, output)?;
    let gateway = Client::to_gateway(context, output)?;
    let description = describe(&args.name, &server, output).await?;
    let body = request_body(&args, description.as_ref(), &server, output).await?;
    if let Some(path) = &args.plot {
        // A path that cannot be written is told before the load, not after it.
        std::fs::write(path, "").with_context(|| format!("write {}", path.display()))?;
    }
    allow_files(args.max_in_flight + OTHER_FILES);

    let mut call = Call::new(Method::POST, query::path(&args.name, None));
    call.body = Payload::Json(body);
    let (http, request) = gateway.prepared(&call.timeout(Some(args.timeout)))?;
    let url = request.url().to_string();
    let max_in_flight = usize::try_from(args.max_in_flight)?;
    let drive = drive::Drive {
        plan,
        seed: args.seed,
        max_in_flight,
        http,
        request,
        begun: Instant::now(),
    };
    let mut tally = Tally::new(plan);
    let ended = with_live_line(&drive, &args.name, server, &mut tally, output).await?;
    let found = Found {
        plan: &plan,
        tally: &tally,
        scale: &ended.scale,
        sent_for: ended.sent_until.saturating_sub(plan.warm_up),
    };
    let report = Report {
        endpoint: args.name.to_string(),
        url,
        rps_from: plan.rates.from,
        rps_to: plan.rates.to,
        over_s: plan.over.as_secs_f64(),
        warm_up_s: plan.warm_up.as_secs_f64(),
        arrivals: plan.arrivals,
        seed: args.seed,
        max_in_flight,
        timeout_s: args.timeout.as_secs_f64(),
        took_s: found.took_s(),
        interrupted: ended.interrupted,
        requests: found.requests(),
        outcomes: found.outcomes(),
        latency: found.latency(),
        phases: found.phases(),
        replicas: found.replicas(),
        seconds: found.seconds(),
        scale: ended.scale.clone(),
    };
    show(&report, output)?;
    if let Some(path) = &args.plot {
        std::fs::write(path, plot::svg(&report))
            .with_context(|| format!("write {}", path.display()))?;
        output.note(format!("drawn: {}", path.display()));
    }
    verdict(&report, args.fail_over)
}

/// `None`: the scheduler is not there, which a load does not need.
async fn describe(
    name: &EndpointName,
    server: &Client,
    output: &Output,
) -> anyhow::Result<Option<EndpointDescription>> {
    let call = Call::get(description_path(name)).timeout(Some(Duration::from_secs(10)));
    match server.call(call).await {
        Ok(description) => Ok(Some(description)),
        Err(error) if error.is_passing() => {
            output.warn(format!("demand and replicas will not be shown: {error}"));
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

async fn request_body(
    args: &LoadArgs,
    description: Option<&EndpointDescription>,
    server: &Client,
    output: &Output,
) -> anyhow::Result<Bytes> {
    if let Some(data) = &args.data {
        return Ok(query::body(Some(data))?.into());
    }
    let (body, model) = made_up(description, server)
        .await?
        .map_err(|why| Stop::Usage(format!("no body: {why}; give --data JSON or --data @FILE")))?;
    output.note(format!(
        "each request is a row made up from the signature of {model} (--data sends your own)"
    ));
    Ok(body.into())
}

/// A row for the first served entity; the inner error says why there is none.
async fn made_up(
    description: Option<&EndpointDescription>,
    server: &Client,
) -> anyhow::Result<Result<(Vec<u8>, String), String>> {
    let config = description.and_then(|it| it.endpoint.config.as_ref());
    let Some(entity) = config.and_then(|config| config.served_entities.first()) else {
        return Ok(Err("the endpoint's model is not known".into()));
    };
    let (name, version) = (&entity.entity_name, &entity.entity_version);
    let path = format!("/api/stokehold/v1/models/{name}");
    let versions: ModelList = server.call(Call::get(path)).await?;
    let found = versions
        .models
        .into_iter()
        .find(|model| model.version.to_string() == *version);
    let signature = found.and_then(|model| model.description.signature);
    let Some(inputs) = signature.and_then(|signature| signature.inputs) else {
        return Ok(Err(format!(
            "model {name}/{version} has no signature to make a row from"
        )));
    };
    Ok(body::from_signature(&inputs).map(|body| (body, format!("{name}/{version}"))))
}

async fn with_live_line(
    drive: &drive::Drive,
    name: &EndpointName,
    server: Client,
    tally: &mut Tally,
    output: &Output,
) -> anyhow::Result<drive::Ended> {
    let plan = drive.plan;
    // One look is on its way while another is taken.
    let (tell, scales) = mpsc::channel(2);
    let mut watching = tokio::task::JoinSet::new();
    watching.spawn(scale::watch(
        server,
        name.clone(),
        drive.begun,
        plan.warm_up,
        tell,
    ));
    let progress = output.spinner();
    let mut looks = 0_u64;
    let ended = drive.run(tally, scales, |look, tally| {
        looks += 1;
        let moment = live::Moment {
            plan: &plan,
            now: look.now,
            since: look.since,
            recent: look.recent,
            counts: tally.counts,
            in_flight: look.in_flight,
            scale: look.scale,
        };
        let line = moment.line();
        if !output.is_lively() && looks.is_multiple_of(LINE_EVERY) {
            progress.line(&line);
        }
        progress.status(line);
    });
    Ok(ended.await?)
}

fn show(report: &Report, output: &Output) -> anyhow::Result<()> {
    if output.is_json() {
        return output.json(report);
    }
    for (title, table) in report.tables() {
        output.line(title)?;
        output.table(&table)?;
    }
    output.line(report.replica_line())
}

fn verdict(report: &Report, fail_over: Option<f64>) -> anyhow::Result<()> {
    let requests = &report.requests;
    if report.interrupted {
        return Err(Stop::Interrupted(format!(
            "stopped after {} of {}",
            live::seconds(report.took_s),
            live::seconds(report.over_s)
        ))
        .into());
    }
    if requests.intended > 0 && requests.succeeded == 0 {
        anyhow::bail!("no request succeeded");
    }
    if let Some(limit) = fail_over
        && requests.lost() > limit
    {
        anyhow::bail!(
            "{:.2} % of the requests failed or were not sent, more than --fail-over {:.2} %",
            100.0 * requests.lost(),
            100.0 * limit
        );
    }
    Ok(())
}

/// Each request in flight has a connection. Where the hard limit is too low, requests will say so.
fn allow_files(needed: u64) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < needed
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, needed.min(hard), hard);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser as _;

    fn args(line: &[&str]) -> Result<LoadArgs, clap::Error> {
        let line = ["stokehold", "load", "iris"].iter().chain(line);
        Ok(match Cli::try_parse_from(line)?.command {
            Command::Load(args) => args,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn a_load_needs_a_rate_and_a_time() {
        let args = args(&["--rps", "10..500", "--over", "60s"]).expect("parsed");
        let plan = args.plan().expect("a plan");
        assert_eq!((plan.rates.from, plan.rates.to), (10.0, 500.0));
        assert_eq!(plan.over, Duration::from_secs(60));
        assert_eq!(plan.arrivals, Arrivals::Poisson);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for bad in [
            &["--rps", "10"][..],
            &["--over", "10s"],
            &["--rps", "10", "--over", "10"],
            &["--rps", "10", "--over", "10s", "--max-in-flight", "0"],
            &["--rps", "10", "--over", "10s", "--fail-over", "101%"],
            &["--rps", "10", "--over", "10s", "--arrivals", "often"],
        ] {
            assert!(args(bad).is_err(), "{bad:?} was accepted");
        }
        for bad in [["--over", "0s"], ["--over", "25h"]] {
            let args = args(&["--rps", "10", bad[0], bad[1]]).expect("parsed");
            assert!(args.plan().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn the_code_tells_whether_it_worked_and_failures_only_when_asked() {
        let mut report = report::tests::example();
        assert!(report.requests.failed > 0);
        assert!(verdict(&report, None).is_ok());
        assert!(verdict(&report, Some(1.0)).is_ok());
        assert!(verdict(&report, Some(0.001)).is_err());
        report.requests.succeeded = 0;
        assert!(verdict(&report, None).is_err());
        report.interrupted = true;
        let error = verdict(&report, None).expect_err("interrupted");
        assert!(matches!(error.downcast_ref(), Some(Stop::Interrupted(_))));
    }

    #[test]
    fn a_percentage_has_its_sign_or_not() {
        assert_eq!(percent("1%"), Ok(0.01));
        assert_eq!(percent("0.5 %"), Ok(0.005));
        assert_eq!(percent("100"), Ok(1.0));
        assert!(percent("x").is_err() && percent("-1").is_err());
    }
}

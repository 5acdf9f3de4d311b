//! Compares rules for the warm pool on claims that one brings: a number a line on standard input, the
//! claims (or, with `--needed HOLD`, the replicas needed, of which the increases are claims) of each
//! minute. Prints the mean size of the pool that each rule needs at some hit rates.
//!
//! ```sh
//! cargo run --release -p stokehold-sim --example pool -- --lead 2 --lead-in 1440 < claims.txt
//! ```

use std::io::{BufRead as _, Write as _};

use sim::pool::{RollingMaximum, curves, replica_starts, run};

const HIT_RATES: [f64; 6] = [0.8, 0.85, 0.9, 0.93, 0.95, 0.97];

fn main() -> std::io::Result<()> {
    let (mut lead, mut lead_in, mut hold) = (2_u32, 1440_usize, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().and_then(|text| text.parse::<u32>().ok());
        match (name.as_str(), value) {
            ("--lead", Some(minutes)) => lead = minutes,
            ("--lead-in", Some(minutes)) => lead_in = minutes as usize,
            ("--needed", Some(minutes)) => hold = Some(minutes as usize),
            _ => {
                return Err(std::io::Error::other(format!(
                    "{name}: expected --lead, --lead-in or --needed, and a number of minutes"
                )));
            }
        }
    }
    let mut counts = Vec::new();
    for (number, line) in (1..).zip(std::io::stdin().lock().lines()) {
        let count = line?.trim().parse::<u32>();
        counts.push(count.map_err(|e| std::io::Error::other(format!("line {number}: {e}")))?);
    }
    let claims = match hold {
        Some(hold) => replica_starts(&counts, hold),
        None => counts,
    };
    let plain = run(&mut RollingMaximum::new(120, 1.0), &claims, lead, lead_in);
    let curves = curves(&claims, lead, lead_in);
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{} minutes, {} claims; the plain rolling maximum hits {:.4} at {:.2}",
        claims.len(),
        claims.iter().map(|count| u64::from(*count)).sum::<u64>(),
        plain.hit_rate,
        plain.mean_size
    )?;
    write!(out, "{:30}", "mean size at a hit rate of")?;
    let rates: Vec<f64> = std::iter::once(plain.hit_rate).chain(HIT_RATES).collect();
    for rate in &rates {
        write!(out, "{rate:10.4}")?;
    }
    for curve in &curves {
        write!(out, "\n{:30}", curve.rule)?;
        for rate in &rates {
            match curve.size_at(*rate) {
                Some(size) => write!(out, "{size:10.2}")?,
                None => write!(out, "{:>10}", "-")?,
            }
        }
    }
    writeln!(out)
}

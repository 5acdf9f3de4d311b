//! The load over time as an SVG that stands alone. Pure.
//!
//! Four panels share one time axis: rates, latencies (logarithmic), demand beside capacity, replicas.
//! Colours follow the reader's preference for a dark or a light page, and every line has its own
//! pattern too, so that it can be told apart without colours.

use std::fmt::Write as _;

use super::report::Report;
use super::scale::Scale;

const WIDTH: f64 = 960.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 24.0;
const HEAD: f64 = 56.0;
/// A panel, with the space for its title above and its time axis below.
const PANEL: f64 = 130.0;
const TITLE: f64 = 26.0;
const GAP: f64 = 28.0;

const STYLE: &str = "\
.page{fill:#ffffff}.ink{fill:#1f2328}.soft{fill:#59636e}.grid{stroke:#d1d9e0}\
.line{fill:none;stroke-width:1.8;stroke-linejoin:round}\
.blue{stroke:#0969da}.orange{stroke:#bc4c00}.red{stroke:#cf222e}.green{stroke:#1a7f37}\
.dashed{stroke-dasharray:6 4}.dotted{stroke-dasharray:2 3}\
text{font:12px system-ui,sans-serif}.h{font-size:15px;font-weight:600}\
@media(prefers-color-scheme:dark){.page{fill:#0d1117}.ink{fill:#e6edf3}.soft{fill:#9198a1}\
.grid{stroke:#30363d}.blue{stroke:#58a6ff}.orange{stroke:#f0883e}.red{stroke:#ff7b72}\
.green{stroke:#3fb950}}";

struct Panel {
    title: &'static str,
    log: bool,
    lines: Vec<Line>,
}

struct Line {
    label: &'static str,
    /// Classes of [`STYLE`].
    class: &'static str,
    /// Holds its value until the next, as a number of replicas does.
    stepped: bool,
    /// Seconds and value; a gap where there is no value.
    points: Vec<(f64, Option<f64>)>,
}

pub(super) fn svg(report: &Report) -> String {
    let panels = panels(report);
    let height = HEAD + (TITLE + PANEL + GAP) * panels.len() as f64;
    let end = report.seconds.iter().map(|second| second.at_s + 1).max();
    let end = (end.unwrap_or(1) as f64)
        .max(report.over_s.min(report.took_s))
        .max(1.0);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\" role=\"img\">\n<title>Load on {0}</title>\n\
         <style>{STYLE}</style>\n<rect class=\"page\" width=\"100%\" height=\"100%\"/>\n\
         <text class=\"ink h\" x=\"{LEFT}\" y=\"24\">{0}</text>\n\
         <text class=\"soft\" x=\"{LEFT}\" y=\"43\">{1}</text>\n",
        escaped(&report.endpoint),
        escaped(&summary(report)),
    );
    for (n, panel) in panels.iter().enumerate() {
        let top = HEAD + TITLE + (TITLE + PANEL + GAP) * n as f64;
        panel.draw(top, end, &mut out);
    }
    out.push_str("</svg>\n");
    out
}

fn summary(report: &Report) -> String {
    let requests = &report.requests;
    let rates = super::schedule::Rates {
        from: report.rps_from,
        to: report.rps_to,
    };
    format!(
        "{rates} over {}: {} due, {} succeeded, {} failed, {} not sent; p99 {}",
        super::live::seconds(report.over_s),
        requests.intended,
        requests.succeeded,
        requests.failed,
        requests.not_sent,
        super::live::milliseconds(report.latency.from_intended.p99_ms),
    )
}

fn panels(report: &Report) -> Vec<Panel> {
    // A second's figure stands in its middle.
    let second = |value: fn(&super::report::SecondReport) -> Option<f64>| {
        let seconds = report.seconds.iter();
        let points = seconds.map(|it| (it.at_s as f64 + 0.5, value(it)));
        points.collect::<Vec<_>>()
    };
    let look = |value: fn(&Scale) -> Option<f64>| {
        let looks = report.scale.iter().filter(|it| it.at_s >= 0.0);
        looks.map(|it| (it.at_s, value(it))).collect::<Vec<_>>()
    };
    let line = |label, class, points| Line {
        label,
        class,
        stepped: false,
        points,
    };
    let steps = |label, class, points| Line {
        label,
        class,
        stepped: true,
        points,
    };
    vec![
        Panel {
            title: "requests per second",
            log: false,
            lines: vec![
                line(
                    "intended",
                    "orange dashed",
                    second(|it| Some(it.intended_rps)),
                ),
                line("answered", "blue", second(|it| Some(it.answered as f64))),
                line(
                    "failed or not sent",
                    "red dotted",
                    second(|it| Some((it.failed + it.not_sent) as f64)),
                ),
            ],
        },
        Panel {
            title: "latency from the intended send, ms",
            log: true,
            lines: vec![
                line("p50", "blue", second(|it| it.p50_ms)),
                line("p99", "orange dashed", second(|it| it.p99_ms)),
            ],
        },
        Panel {
            title: "requests at once",
            log: false,
            lines: vec![
                line("demand", "blue", look(|it| it.demand)),
                steps(
                    "target x ready replicas",
                    "green",
                    look(|it| Some(f64::from(it.target_concurrency? * it.ready_replicas))),
                ),
                steps(
                    "target of each",
                    "orange dotted",
                    look(|it| it.target_concurrency.map(f64::from)),
                ),
            ],
        },
        Panel {
            title: "replicas",
            log: false,
            lines: vec![
                steps(
                    "ready",
                    "green",
                    look(|it| Some(f64::from(it.ready_replicas))),
                ),
                steps(
                    "wanted",
                    "orange dashed",
                    look(|it| it.desired_replicas.map(f64::from)),
                ),
            ],
        },
    ]
}

impl Panel {
    fn draw(&self, top: f64, end: f64, out: &mut String) {
        let values = || {
            let points = self.lines.iter().flat_map(|line| &line.points);
            points
                .filter_map(|(_, value)| *value)
                .filter(|value| value.is_finite())
        };
        let axis = if self.log {
            Axis::log(values())
        } else {
            Axis::linear(values())
        };
        let y = |value: f64| top + PANEL * (1.0 - axis.share(value));
        let x = |at: f64| LEFT + (WIDTH - LEFT - RIGHT) * (at / end).clamp(0.0, 1.0);
        let right = WIDTH - RIGHT;
        put(
            out,
            format_args!(
                "<text class=\"ink\" x=\"{LEFT}\" y=\"{:.1}\">{}</text>\n",
                top - 9.0,
                self.title
            ),
        );
        for tick in &axis.ticks {
            let y = y(*tick);
            put(
                out,
                format_args!(
                    "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{right}\"/>\
                 <text class=\"soft\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{tick}</text>\n",
                    LEFT - 8.0,
                    y + 4.0
                ),
            );
        }
        for tick in linear_ticks(end, 10.0) {
            put(
                out,
                format_args!(
                    "<text class=\"soft\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{tick} s</text>\n",
                    x(tick),
                    top + PANEL + 16.0
                ),
            );
        }
        // The legend stands at the right of the title, last line first.
        let mut legend = right;
        for line in self.lines.iter().rev() {
            let width = 7.0 * line.label.len() as f64;
            put(
                out,
                format_args!(
                    "<path class=\"line {}\" d=\"M{:.1} {:.1}h22\"/>\
                 <text class=\"soft\" x=\"{:.1}\" y=\"{:.1}\">{}</text>\n",
                    line.class,
                    legend - width - 30.0,
                    top - 13.0,
                    legend - width,
                    top - 9.0,
                    line.label
                ),
            );
            legend -= width + 46.0;
        }
        for line in &self.lines {
            put(
                out,
                format_args!(
                    "<path class=\"line {}\" d=\"{}\"/>\n",
                    line.class,
                    line.path(x, y)
                ),
            );
        }
    }
}

impl Line {
    fn path(&self, x: impl Fn(f64) -> f64, y: impl Fn(f64) -> f64) -> String {
        let mut path = String::new();
        // Of the point before, unless a gap lies between.
        let mut before: Option<f64> = None;
        for (n, (at, value)) in self.points.iter().enumerate() {
            let Some(value) = *value else {
                before = None;
                continue;
            };
            // Steps of a long load that change nothing would only fill the file.
            let goes_on = self
                .points
                .get(n + 1)
                .is_some_and(|(_, next)| next.is_some());
            let same = before == Some(value);
            if self.stepped && same && goes_on {
                continue;
            }
            let (x, y) = (x(*at), y(value));
            match before {
                None => put(&mut path, format_args!("M{x:.1} {y:.1}")),
                Some(_) if self.stepped => put(&mut path, format_args!("H{x:.1}V{y:.1}")),
                Some(_) => put(&mut path, format_args!("L{x:.1} {y:.1}")),
            }
            before = Some(value);
        }
        path
    }
}

struct Axis {
    least: f64,
    most: f64,
    log: bool,
    ticks: Vec<f64>,
}

impl Axis {
    fn linear(values: impl Iterator<Item = f64>) -> Self {
        let most = values.fold(0.0, f64::max);
        let ticks = linear_ticks(if most > 0.0 { most } else { 1.0 }, 4.0);
        let step = ticks.get(1).copied().unwrap_or(1.0);
        let mut axis = Self {
            least: 0.0,
            most: ticks.last().copied().unwrap_or(1.0),
            log: false,
            ticks,
        };
        // The line of the largest value must not lie on the frame.
        if most >= axis.most {
            axis.most = tidy(axis.most + step);
            axis.ticks.push(axis.most);
        }
        axis
    }

    fn log(values: impl Iterator<Item = f64>) -> Self {
        let (least, most) = values
            .filter(|value| *value > 0.0)
            .fold((f64::INFINITY, 0.0_f64), |(least, most), value| {
                (least.min(value), most.max(value))
            });
        let (least, most) = if most > 0.0 {
            (least, most)
        } else {
            (1.0, 10.0)
        };
        let (from, to) = (least.log10().floor(), most.log10().ceil());
        let to = if to > from { to } else { from + 1.0 };
        let decades = (from as i32)..=(to as i32);
        Self {
            least: 10_f64.powf(from),
            most: 10_f64.powf(to),
            log: true,
            ticks: decades.map(|power| tidy(10_f64.powi(power))).collect(),
        }
    }

    /// 0 at the bottom, 1 at the top.
    fn share(&self, value: f64) -> f64 {
        let share = if self.log {
            (value.max(self.least) / self.least).log10() / (self.most / self.least).log10()
        } else {
            (value - self.least) / (self.most - self.least)
        };
        share.clamp(0.0, 1.0)
    }
}

/// From 0 on, in steps of 1, 2 or 5 times a power of ten: about `count` of them up to `most`.
fn linear_ticks(most: f64, count: f64) -> Vec<f64> {
    let rough = most / count;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|factor| factor * power)
        .into_iter()
        .find(|step| *step >= rough * 0.999)
        .unwrap_or(rough);
    let whole = (most / step + 1e-9).floor() as u32;
    (0..=whole).map(|n| tidy(f64::from(n) * step)).collect()
}

/// Without the traces of binary fractions.
fn tidy(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a String takes everything");
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::example;
    use super::*;

    #[test]
    fn the_picture_of_a_small_load() {
        insta::assert_snapshot!(svg(&example()));
    }

    #[test]
    fn a_load_without_any_figure_has_a_picture_too() {
        let mut report = example();
        report.seconds.clear();
        report.scale.clear();
        let picture = svg(&report);
        assert!(
            picture.ends_with("</svg>\n") && !picture.contains("NaN") && !picture.contains("inf")
        );
    }

    #[test]
    fn a_gap_interrupts_a_line_and_a_step_holds_its_value() {
        let line = |stepped, points| Line {
            label: "",
            class: "",
            stepped,
            points,
        };
        let same = |value: f64| value;
        let gap = line(false, vec![(0.0, Some(1.0)), (1.0, None), (2.0, Some(3.0))]);
        assert_eq!(gap.path(same, same), "M0.0 1.0M2.0 3.0");
        let step = line(true, vec![(0.0, Some(1.0)), (1.0, Some(2.0))]);
        assert_eq!(step.path(same, same), "M0.0 1.0H1.0V2.0");
        let held = [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0), (3.0, 2.0), (4.0, 2.0)];
        let held = line(true, held.map(|(at, value)| (at, Some(value))).to_vec());
        assert_eq!(held.path(same, same), "M0.0 1.0H3.0V2.0H4.0V2.0");
    }

    #[test]
    fn ticks_are_round_and_cover_what_is_shown() {
        assert_eq!(
            linear_ticks(60.0, 10.0),
            [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0]
        );
        assert_eq!(linear_ticks(0.3, 4.0), [0.0, 0.1, 0.2, 0.3]);
        let axis = Axis::linear([3.0].into_iter());
        assert!(axis.most > 3.0, "{}", axis.most);
        let axis = Axis::log([21.0, 840.0].into_iter());
        assert_eq!(axis.ticks, [10.0, 100.0, 1000.0]);
        assert_eq!((axis.share(10.0), axis.share(1000.0)), (0.0, 1.0));
    }

    #[test]
    fn names_are_escaped() {
        assert_eq!(escaped("a<b>&c"), "a&lt;b&gt;&amp;c");
    }
}

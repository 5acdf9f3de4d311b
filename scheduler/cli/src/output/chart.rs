//! Panels of lines over one time axis, as an SVG that stands alone. Pure.
//!
//! Colours follow the reader's preference for a dark or a light page. Lines differ in their pattern
//! too, and their colours are Okabe and Ito's, which people who see red and green alike tell apart.

use std::borrow::Cow;
use std::fmt::Write as _;

const WIDTH: f64 = 960.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 24.0;
const HEAD: f64 = 56.0;
/// A line of the legend that holds for all panels.
const LEGEND: f64 = 22.0;
/// A panel, with the space for its title above and its time axis below.
const PANEL: f64 = 130.0;
const TITLE: f64 = 26.0;
const GAP: f64 = 28.0;
/// Of the mean letter.
const LETTER: f64 = 7.0;
/// More points of a line than these cannot be told apart: each of so many stretches keeps its least
/// and its largest.
const STRETCHES: usize = 900;

const STYLE: &str = "\
.page{fill:#ffffff}.ink{fill:#1f2328}.soft{fill:#59636e}.grid{stroke:#d1d9e0}\
.line{fill:none;stroke-width:1.8;stroke-linejoin:round}\
.blue{stroke:#0072b2}.orange{stroke:#d55e00}.green{stroke:#009e73}.red{stroke:#cf222e}\
.purple{stroke:#b8609a}.yellow{stroke:#c78c00}.sky{stroke:#3a9bd9}.black{stroke:#1f2328}\
.dashed{stroke-dasharray:6 4}.dotted{stroke-dasharray:2 3}.mixed{stroke-dasharray:8 3 2 3}.faint{stroke-width:1;opacity:.6}\
text{font:12px system-ui,sans-serif}.h{font-size:15px;font-weight:600}\
@media(prefers-color-scheme:dark){.page{fill:#0d1117}.ink{fill:#e6edf3}.soft{fill:#9198a1}\
.grid{stroke:#30363d}.blue{stroke:#4ba3e3}.orange{stroke:#f0883e}.green{stroke:#2fc49a}\
.red{stroke:#ff7b72}.purple{stroke:#d98cbf}.yellow{stroke:#e6b23c}.sky{stroke:#7cc4f2}\
.black{stroke:#e6edf3}}";

pub(crate) struct Picture {
    pub(crate) title: String,
    /// What came out, in one line.
    pub(crate) summary: String,
    /// Labels and classes of lines that mean the same in every panel; panels then name none.
    pub(crate) legend: Vec<(String, String)>,
    /// Where the time axis ends, in seconds.
    pub(crate) end_s: f64,
    pub(crate) panels: Vec<Panel>,
}

pub(crate) struct Panel {
    /// What is shown, with its unit.
    pub(crate) title: String,
    pub(crate) log: bool,
    pub(crate) lines: Vec<Line>,
}

pub(crate) struct Line {
    /// In the panel's own legend; empty: in none.
    pub(crate) label: String,
    /// Classes of [`STYLE`].
    pub(crate) class: String,
    /// Holds its value until the next, as a number of replicas does.
    pub(crate) stepped: bool,
    /// Seconds and value; a gap where there is no value.
    pub(crate) points: Vec<(f64, Option<f64>)>,
}

impl Picture {
    pub(crate) fn svg(&self) -> String {
        let head = HEAD + if self.legend.is_empty() { 0.0 } else { LEGEND };
        let height = head + (TITLE + PANEL + GAP) * self.panels.len() as f64;
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
             width=\"{WIDTH}\" height=\"{height}\" role=\"img\">\n<title>{0}</title>\n\
             <style>{STYLE}</style>\n<rect class=\"page\" width=\"100%\" height=\"100%\"/>\n\
             <text class=\"ink h\" x=\"{LEFT}\" y=\"24\">{0}</text>\n\
             <text class=\"soft\" x=\"{LEFT}\" y=\"43\">{1}</text>\n",
            escaped(&self.title),
            escaped(&self.summary),
        );
        let mut x = LEFT;
        for (label, class) in &self.legend {
            put(
                &mut out,
                format_args!(
                    "<path class=\"line {class}\" d=\"M{x:.1} {:.1}h28\"/>\
                     <text class=\"ink\" x=\"{:.1}\" y=\"{:.1}\">{}</text>\n",
                    HEAD + 4.0,
                    x + 34.0,
                    HEAD + 8.0,
                    escaped(label)
                ),
            );
            x += 34.0 + LETTER * label.chars().count() as f64 + 24.0;
        }
        for (n, panel) in self.panels.iter().enumerate() {
            let top = head + TITLE + (TITLE + PANEL + GAP) * n as f64;
            panel.draw(top, self.end_s.max(1.0), &mut out);
        }
        out.push_str("</svg>\n");
        out
    }
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
                escaped(&self.title)
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
        let (unit, unit_s) = time_unit(end);
        for tick in linear_ticks(end / unit_s, 10.0) {
            put(
                out,
                format_args!(
                    "<text class=\"soft\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{tick} {unit}</text>\n",
                    x(tick * unit_s),
                    top + PANEL + 16.0
                ),
            );
        }
        // The legend stands at the right of the title, last line first.
        let mut legend = right;
        for line in self
            .lines
            .iter()
            .rev()
            .filter(|line| !line.label.is_empty())
        {
            let width = LETTER * line.label.chars().count() as f64;
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
                    escaped(&line.label)
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
        let points = thinned(&self.points);
        let mut path = String::new();
        // Of the point before, unless a gap lies between.
        let mut before: Option<f64> = None;
        for (n, (at, value)) in points.iter().enumerate() {
            let Some(value) = *value else {
                before = None;
                continue;
            };
            // Steps of a long load that change nothing would only fill the file.
            let goes_on = points.get(n + 1).is_some_and(|(_, next)| next.is_some());
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

/// A line's points as far as they can be told apart.
fn thinned(points: &[(f64, Option<f64>)]) -> Cow<'_, [(f64, Option<f64>)]> {
    let stretch = points.len().div_ceil(STRETCHES);
    // Two of each stretch are kept.
    if stretch <= 2 {
        return Cow::Borrowed(points);
    }
    let mut kept = Vec::with_capacity(2 * STRETCHES);
    for stretch in points.chunks(stretch) {
        let there = || {
            let all = stretch.iter().enumerate();
            all.filter_map(|(n, (_, value))| Some((n, (*value)?)))
        };
        let least = there().min_by(|a, b| a.1.total_cmp(&b.1));
        let most = there().max_by(|a, b| a.1.total_cmp(&b.1));
        match (least, most) {
            (Some((a, _)), Some((b, _))) if a == b => kept.push(stretch[a]),
            (Some((a, _)), Some((b, _))) => kept.extend([stretch[a.min(b)], stretch[a.max(b)]]),
            (None, _) | (_, None) => kept.extend(stretch.first()),
        }
    }
    Cow::Owned(kept)
}

/// What a time axis that ends there counts in, and its seconds.
fn time_unit(end_s: f64) -> (&'static str, f64) {
    match end_s {
        end if end <= 600.0 => ("s", 1.0),
        end if end <= 4.0 * 3600.0 => ("min", 60.0),
        end if end <= 4.0 * 86_400.0 => ("h", 3600.0),
        _ => ("d", 86_400.0),
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

pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_interrupts_a_line_and_a_step_holds_its_value() {
        let line = |stepped, points| Line {
            label: String::new(),
            class: String::new(),
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
        assert_eq!(escaped("a<b>&\"c"), "a&lt;b&gt;&amp;&quot;c");
    }

    #[test]
    fn a_long_line_keeps_its_peaks() {
        let mut points: Vec<_> = (0..100_000).map(|n| (f64::from(n), Some(1.0))).collect();
        points[55_555].1 = Some(9.0);
        points[77_777].1 = Some(0.0);
        let kept = thinned(&points);
        assert!(kept.len() <= 2 * STRETCHES, "{}", kept.len());
        assert!(kept.contains(&(55_555.0, Some(9.0))) && kept.contains(&(77_777.0, Some(0.0))));
        assert!(kept.is_sorted_by(|a, b| a.0 < b.0));
        let nothing = vec![(0.0, None); 10_000];
        assert!(thinned(&nothing).iter().all(|(_, value)| value.is_none()));
    }

    #[test]
    fn a_long_time_is_counted_in_hours_or_days() {
        let units = [60.0, 3600.0, 86_400.0, 7_500_000.0].map(|end| time_unit(end).0);
        assert_eq!(units, ["s", "min", "h", "d"]);
    }
}

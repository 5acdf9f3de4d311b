//! Tables without frames: they read well, and `awk` reads them too.

use comfy_table::{Attribute, Cell, Color, ColumnConstraint, ContentArrangement, Width, presets};

/// Between two columns.
const PADDING: u16 = 2;

/// How a word is coloured on a terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tone {
    #[default]
    Plain,
    Good,
    Waiting,
    Bad,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    text: String,
    tone: Tone,
}

impl Field {
    pub(crate) fn toned(text: impl Into<String>, tone: Tone) -> Self {
        Self {
            text: text.into(),
            tone,
        }
    }
}

impl<T: ToString> From<T> for Field {
    fn from(text: T) -> Self {
        Self::toned(text.to_string(), Tone::Plain)
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Table {
    headers: Vec<&'static str>,
    rows: Vec<Vec<Field>>,
    when_empty: &'static str,
}

impl Table {
    /// `when_empty` is said, beside the result, when there are no rows.
    pub(crate) fn new<const N: usize>(
        headers: [&'static str; N],
        when_empty: &'static str,
    ) -> Self {
        Self {
            headers: headers.to_vec(),
            rows: Vec::new(),
            when_empty,
        }
    }

    pub(crate) fn row<const N: usize>(&mut self, fields: [Field; N]) {
        // Empty cells would shift the columns for a program that splits at white space.
        let filled = fields.into_iter().map(|mut field| {
            if field.text.is_empty() {
                field.text.push('-');
            }
            field
        });
        self.rows.push(filled.collect());
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(crate) fn when_empty(&self) -> &'static str {
        self.when_empty
    }

    /// `width`: of the terminal; without one nothing is wrapped.
    pub(crate) fn render(&self, width: Option<u16>, colour: bool) -> String {
        let mut table = comfy_table::Table::new();
        table.load_style(presets::NOTHING);
        if colour {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        match width {
            Some(width) => table
                .set_content_arrangement(ContentArrangement::Dynamic)
                .set_width(width),
            None => table.set_content_arrangement(ContentArrangement::Disabled),
        };
        table.set_header(self.headers.iter().map(|text| {
            let cell = Cell::new(text);
            if colour {
                cell.add_attribute(Attribute::Bold)
            } else {
                cell
            }
        }));
        for row in &self.rows {
            table.add_row(row.iter().map(|field| cell(field, colour)));
        }
        for (column, header) in table.column_iter_mut().zip(self.headers.iter()) {
            column.set_padding((0, PADDING));
            // A narrow terminal breaks values, never a column's name.
            let least = u16::try_from(header.len()).unwrap_or(u16::MAX);
            let least = Width::Fixed(least.saturating_add(PADDING));
            column.set_constraint(ColumnConstraint::LowerBoundary(least));
        }
        table.trim_fmt()
    }
}

fn cell(field: &Field, colour: bool) -> Cell {
    let cell = Cell::new(&field.text);
    match (colour, field.tone) {
        (false, _) | (_, Tone::Plain) => cell,
        (true, Tone::Good) => cell.fg(Color::Green),
        (true, Tone::Waiting) => cell.fg(Color::Yellow),
        (true, Tone::Bad) => cell.fg(Color::Red),
    }
}

/// Narrower ones are terminals that do not know their size, as serial consoles are.
const LEAST_WIDTH: u16 = 40;

/// Of standard output, when it is a terminal that knows its width.
pub(crate) fn terminal_width() -> Option<u16> {
    comfy_table::Table::new()
        .width()
        .filter(|width| *width >= LEAST_WIDTH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Table {
        let mut table = Table::new(["NAME", "STATE", "MESSAGE"], "nothing");
        table.row(["iris".into(), Field::toned("ready", Tone::Good), "".into()]);
        table.row([
            "a-rather-long-name".into(),
            Field::toned("failed", Tone::Bad),
            "no node has 1 GiB memory free: n1 has 300 MiB".into(),
        ]);
        table
    }

    #[test]
    fn without_a_terminal_each_row_is_one_line() {
        insta::assert_snapshot!(example().render(None, false));
    }

    #[test]
    fn a_table_fits_a_narrow_terminal() {
        let text = example().render(Some(48), false);
        assert!(
            text.lines().all(|line| line.chars().count() <= 48),
            "{text}"
        );
        insta::assert_snapshot!(text);
    }

    #[test]
    fn a_columns_name_is_never_broken() {
        let mut table = Table::new(["NAME", "REPLICAS", "MESSAGE"], "nothing");
        let long = "word ".repeat(40);
        table.row([long.as_str().into(), 3.into(), long.as_str().into()]);
        let text = table.render(Some(30), false);
        let header = text.lines().next().unwrap_or_default();
        let names: Vec<&str> = header.split_whitespace().collect();
        assert_eq!(names, ["NAME", "REPLICAS", "MESSAGE"], "{text}");
        assert!(
            text.lines().all(|line| line.chars().count() <= 30),
            "{text}"
        );
    }

    #[test]
    fn colour_changes_no_letter() {
        let coloured = example().render(None, true);
        assert!(coloured.contains("\u{1b}["));
        let plain = anstream::adapter::strip_str(&coloured).to_string();
        let trimmed: Vec<&str> = plain.lines().map(str::trim_end).collect();
        let expected = example().render(None, false);
        assert_eq!(trimmed, expected.lines().collect::<Vec<_>>());
    }
}

//! Tables that fit the terminal when there is one and never truncate when piped.

use std::io::IsTerminal as _;

use comfy_table::{ColumnConstraint, ContentArrangement, LineStyle, Table, TableStyle, Width};

/// Narrower than this a table is no longer readable and is left to the terminal to wrap.
const WIDTH_COLUMNS_MIN: u16 = 40;
/// Between two columns.
const GAP_COLUMNS: usize = 2;
/// Columns left out, in this order, of a table that is wider than the terminal. JSON and pipes have them all.
const EXPENDABLE: [&str; 9] = [
    "OUT",
    "IN",
    "VERSION",
    "SESSIONS",
    "CLOSED",
    "BY",
    "USES LEFT",
    "AGENTS",
    "LASTED",
];

/// Rows under a header.
#[derive(Clone, Debug)]
pub struct Listing {
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Listing {
    /// An empty table.
    pub fn new(header: &[&'static str]) -> Self {
        Self {
            header: header.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; control characters that could drive the terminal are made visible.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows
            .push(cells.into_iter().map(|cell| printable(&cell)).collect());
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table for stdout as it is now.
    pub fn render(&self) -> String {
        self.render_within(terminal_width())
    }

    /// The table within `width` columns, wrapping cells; at its natural width without one.
    pub fn render_within(&self, width: Option<u16>) -> String {
        match width.map(|width| self.narrowed(width)) {
            Some(listing) => listing.draw(width),
            None => self.draw(None),
        }
    }

    /// Without what a narrow terminal has no room for.
    fn narrowed(&self, width: u16) -> Self {
        let mut listing = self.clone();
        for title in EXPENDABLE {
            if listing.natural_width() <= usize::from(width) {
                break;
            }
            listing.remove(title);
        }
        listing
    }

    fn natural_width(&self) -> usize {
        let widths = (0..self.header.len()).map(|index| {
            let cells = self
                .rows
                .iter()
                .filter_map(|row| row.get(index))
                .map(|cell| cell.chars().count());
            let title = self.header.get(index).map_or(0, |title| title.len());
            cells.max().unwrap_or(0).max(title) + GAP_COLUMNS
        });
        widths.sum()
    }

    fn remove(&mut self, title: &str) {
        if let Some(index) = self.header.iter().position(|known| *known == title) {
            self.header.remove(index);
            for row in self.rows.iter_mut().filter(|row| index < row.len()) {
                row.remove(index);
            }
        }
    }

    /// Ids are for copying: their columns never wrap.
    fn constraints(&self) -> Vec<ColumnConstraint> {
        let is_id = |index: usize| {
            let mut cells = self.rows.iter().filter_map(|row| row.get(index)).peekable();
            cells.peek().is_some() && cells.all(|cell| uuid::Uuid::try_parse(cell).is_ok())
        };
        let constraint = |index| match is_id(index) {
            true => ColumnConstraint::ContentWidth,
            false => ColumnConstraint::LowerBoundary(Width::Fixed(1)),
        };
        (0..self.header.len()).map(constraint).collect()
    }

    fn draw(&self, width: Option<u16>) -> String {
        let mut table = Table::new();
        table.load_style(TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─')));
        table.set_header(self.header.clone());
        table.add_rows(self.rows.clone());
        table.column_iter_mut().for_each(|column| {
            column.set_padding((0, 1));
        });
        match width {
            Some(width) => {
                table.set_constraints(self.constraints());
                table
                    .set_content_arrangement(ContentArrangement::Dynamic)
                    .set_width(width.max(WIDTH_COLUMNS_MIN));
            }
            None => {
                table
                    .force_no_tty()
                    .set_content_arrangement(ContentArrangement::Disabled);
            }
        }
        table
            .lines()
            .map(|line| line.trim_end().to_owned())
            .collect::<Vec<_>>()
            .join("\n")
    }
}

/// Text with what controls a terminal, or turns the order of what follows, escaped: records hold what strangers sent.
pub fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|character| {
            let keep = !drives_terminal(character);
            keep.then_some(character)
                .into_iter()
                .chain((!keep).then(|| character.escape_default()).into_iter().flatten())
        })
        .collect()
}

/// Whether it moves a cursor or changes the direction of text.
pub(crate) fn drives_terminal(character: char) -> bool {
    let turns = matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    character.is_control() || turns
}

fn terminal_width() -> Option<u16> {
    if !std::io::stdout().is_terminal() {
        return None;
    }
    Table::new().width()
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]
    use super::*;

    fn listing() -> Listing {
        let mut listing = Listing::new(&["NAME", "DESCRIPTION"]);
        listing.row([
            "db-prod".to_owned(),
            "the orders database of the shop, ".repeat(6),
        ]);
        listing
    }

    #[test]
    fn a_table_fits_the_width_it_is_given_and_loses_no_word() {
        let text = listing().render_within(Some(60));
        assert!(text.lines().all(|line| line.chars().count() <= 60), "{text}");
        assert_eq!(text.matches("orders").count(), 6, "{text}");
    }

    #[test]
    fn a_piped_table_has_one_line_per_row_and_is_never_truncated() {
        let text = listing().render_within(None);
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(
            text.contains(
                &"the orders database of the shop, "
                    .repeat(6)
                    .trim_end()
                    .to_owned()
            )
        );
    }

    #[test]
    fn an_id_is_never_broken_and_less_important_columns_make_room() {
        let mut listing = Listing::new(&["START", "USER", "SERVICE", "IN", "OUT", "SESSION"]);
        let id = "01a203d1-f40f-748a-b5f7-0e190aa895e2";
        let cells = [
            "2026-11-22 15:13",
            "alice@example.com",
            "db-prod",
            "1.2 kB",
            "34 MB",
            id,
        ];
        listing.row(cells.map(str::to_owned));
        let text = listing.render_within(Some(80));
        assert!(text.contains(id) && !text.contains("34 MB"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(listing.render_within(Some(120)).contains("34 MB"));
        assert!(listing.render_within(None).contains("34 MB"));
    }

    #[test]
    fn control_characters_never_reach_the_terminal() {
        assert_eq!(printable("a\u{1b}[31mb\n"), "a\\u{1b}[31mb\\n");
        assert_eq!(printable("a\u{202e}b\u{9b}c"), "a\\u{202e}b\\u{9b}c");
    }
}

//! Tables that fit the terminal when there is one and never truncate when piped.

use std::io::IsTerminal as _;

use comfy_table::{ContentArrangement, LineStyle, Table, TableStyle};

/// Narrower than this a table is no longer readable and is left to the terminal to wrap.
const WIDTH_COLUMNS_MIN: u16 = 40;

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
        let mut table = Table::new();
        table.load_style(TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─')));
        table.set_header(self.header.clone());
        table.add_rows(self.rows.clone());
        match width {
            Some(width) => {
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

/// Text with control characters escaped: records hold what strangers sent.
pub fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|character| {
            let keep = !character.is_control();
            keep.then_some(character)
                .into_iter()
                .chain((!keep).then(|| character.escape_default()).into_iter().flatten())
        })
        .collect()
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
    fn control_characters_never_reach_the_terminal() {
        assert_eq!(printable("a\u{1b}[31mb\n"), "a\\u{1b}[31mb\\n");
    }
}

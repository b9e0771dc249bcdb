//! Pages of `docs/`, whose blocks tests follow to the letter.

use anyhow::Context as _;

/// The text of a page.
#[derive(Debug, Clone, Copy)]
pub struct Page(&'static str);

impl Page {
    /// Of this text, in Markdown.
    #[must_use]
    pub const fn new(text: &'static str) -> Self {
        Self(text)
    }

    /// Its first block in `language` that says so.
    ///
    /// # Errors
    /// When it has none.
    pub fn block(self, language: &str, saying: &str) -> anyhow::Result<String> {
        let opening = format!("```{language}\n");
        let mut blocks = self
            .0
            .split(&opening)
            .skip(1)
            .filter_map(|rest| rest.split("```").next());
        let found = blocks.find(|block| block.contains(saying));
        let found = found.with_context(|| format!("the page has no block in {language} with {saying:?}"))?;
        Ok(found.to_owned())
    }
}

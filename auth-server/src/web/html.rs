//! HTML as a value: text becomes markup through one function, [`Html::text`], and in no other way.

/// Markup that is safe to send.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Html(String);

impl Html {
    /// Markup written in this program.
    pub(super) const fn empty() -> Self {
        Self(String::new())
    }

    /// Markup written in this program: a `&'static str` cannot have come from anybody else.
    pub(super) fn markup(mut self, markup: &'static str) -> Self {
        self.0.push_str(markup);
        self
    }

    /// Text from anywhere, escaped for content and for double-quoted attributes alike.
    pub(super) fn text(mut self, text: &str) -> Self {
        for letter in text.chars() {
            match letter {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                plain => self.0.push(plain),
            }
        }
        self
    }

    /// Markup made the same way.
    pub(super) fn html(mut self, html: Html) -> Self {
        self.0.push_str(&html.0);
        self
    }

    /// The whole document.
    pub(super) fn into_string(self) -> String {
        self.0
    }
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

    #[test]
    fn text_can_neither_open_a_tag_nor_leave_an_attribute() {
        let html = Html::empty()
            .markup("<p title=\"")
            .text("\"><script>alert('x')&</script>")
            .markup("\">");
        let expected = "<p title=\"&quot;&gt;&lt;script&gt;alert(&#39;x&#39;)&amp;&lt;/script&gt;\">";
        assert_eq!(html.into_string(), expected);
    }
}

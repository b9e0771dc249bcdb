//! Reading pages: just enough of HTML for the pages of our server and of the providers.

/// A form as it would be sent without pressing a particular button.
#[derive(Clone, Debug)]
pub struct Form {
    /// Where it goes, relative to its page.
    pub action: String,
    /// Its inputs.
    pub fields: Vec<(String, String)>,
}

/// The page's first form.
pub(super) fn first(page: &str) -> Option<Form> {
    let (_, rest) = page.split_once("<form")?;
    let (form, _) = rest.split_once("</form>")?;
    let (opening, inside) = form.split_once('>')?;
    let fields = inside
        .split("<input")
        .skip(1)
        .filter_map(|input| {
            Some((
                attribute(input, "name")?,
                attribute(input, "value").unwrap_or_default(),
            ))
        })
        .collect();
    Some(Form {
        action: attribute(opening, "action").unwrap_or_default(),
        fields,
    })
}

/// The addresses of the page's links.
pub(super) fn links(page: &str) -> Vec<String> {
    page.split("<a ")
        .skip(1)
        .filter_map(|link| attribute(link, "href"))
        .collect()
}

/// The words of a page.
pub(super) fn text(page: &str) -> String {
    let body = page.split_once("<body").map_or(page, |(_, body)| body);
    let words = body
        .split('<')
        .filter_map(|piece| piece.split_once('>').map(|(_, text)| text));
    unescape(
        &words
            .flat_map(str::split_whitespace)
            .collect::<Vec<_>>()
            .join(" "),
    )
}

/// The value of a double-quoted attribute inside the first tag of `text`.
fn attribute(text: &str, name: &str) -> Option<String> {
    let tag = text.split('>').next()?;
    let (_, rest) = tag.split_once(&format!("{name}=\""))?;
    let (value, _) = rest.split_once('"')?;
    Some(unescape(value))
}

fn unescape(text: &str) -> String {
    text.replace("&quot;", "\"")
        .replace("&#39;", "'")
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&amp;", "&")
}

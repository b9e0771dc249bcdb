//! The provider's two pages.

use super::ProviderUser;
use super::state::AuthorizationRequest;

const STYLE: &str = "body{font:1rem/1.5 system-ui,sans-serif;max-width:24rem;margin:4rem auto;padding:0 1rem;\
    color-scheme:light dark}button{display:block;width:100%;font:inherit;padding:.6rem 1rem;margin:.5rem 0;\
    text-align:left;cursor:pointer}small{opacity:.7}";

/// One button for each person; the request travels along in hidden fields.
pub(super) fn login(request: &AuthorizationRequest, users: &[ProviderUser]) -> String {
    let fields: String = [
        ("response_type", &request.response_type),
        ("client_id", &request.client_id),
        ("redirect_uri", &request.redirect_uri),
        ("scope", &request.scope),
        ("state", &request.state),
        ("nonce", &request.nonce),
        ("code_challenge", &request.code_challenge),
        ("code_challenge_method", &request.code_challenge_method),
    ]
    .iter()
    .map(|(name, value)| {
        format!(
            "<input type=\"hidden\" name=\"{name}\" value=\"{}\">",
            escape(value)
        )
    })
    .collect();
    let buttons: String = users
        .iter()
        .map(|user| {
            format!(
                "<button name=\"user\" value=\"{}\">{} <small>{}</small></button>",
                escape(user.local()),
                escape(&user.email),
                escape(&user.groups.join(", "))
            )
        })
        .collect();
    page(
        "Who are you?",
        &format!(
            "<p>The development identity provider asks for no password.</p>\
             <form method=\"post\" action=\"/authorize\">{fields}{buttons}</form>"
        ),
    )
}

/// A request that is not answered.
pub(super) fn refusal(why: &str) -> String {
    page(
        "This login cannot go on",
        &format!("<p>The development identity provider says: {}.</p>", escape(why)),
    )
}

fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title><style>{STYLE}</style>\
         <h1>{title}</h1>{body}</html>"
    )
}

fn escape(text: &str) -> String {
    text.chars().fold(String::new(), |mut escaped, letter| {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            plain => escaped.push(plain),
        }
        escaped
    })
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
    fn what_the_request_brings_stays_text() {
        let request = AuthorizationRequest {
            state: "\"><script>".to_owned(),
            ..AuthorizationRequest::default()
        };
        let page = login(&request, &[]);
        assert!(page.contains("&quot;&gt;&lt;script&gt;") && !page.contains("<script>"));
    }
}

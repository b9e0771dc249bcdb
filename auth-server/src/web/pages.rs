//! The pages. Each says what it is about in its heading; errors say what failed, why, and what to do.

use iap_identity::LoginId;

use super::html::Html;
use crate::login::{Approval, Choice, StepError};
use crate::store::LoginRow;

/// What somebody sees who comes without a login.
pub(super) fn home(cluster: &str, address: &str) -> Html {
    let body = Html::empty()
        .markup("<p>Engineers reach the private services of <strong>")
        .text(cluster)
        .markup("</strong> through here, as themselves: sign in once, receive a certificate for an hour.</p>\n<pre>")
        .text(&format!("iapctl login {address}\niapctl ls"))
        .markup("</pre>\n<p class=\"soft\">A code was shown on another machine? <a href=\"/device\">Enter it here</a>.</p>");
    page("Access to private services", cluster, body)
}

/// Where the person signs in: one button for each provider.
pub(super) fn choose(cluster: &str, id: LoginId, secret: Option<&str>, choices: &[Choice]) -> Html {
    let body = Html::empty()
        .markup("<p>Choose where you sign in.</p>\n<div class=\"actions\">")
        .html(buttons(id, secret, choices))
        .markup("</div>");
    page("Sign in", cluster, body)
}

/// The field for a code shown elsewhere.
pub(super) fn device(cluster: &str, wrong: Option<&str>) -> Html {
    let message = match wrong {
        Some(wrong) => Html::empty()
            .markup("<p class=\"danger\" role=\"alert\">")
            .text(wrong)
            .markup("</p>\n"),
        None => Html::empty(),
    };
    let body = message
        .markup("<p>Type the code that <code>iapctl login --headless</code> shows on <strong>your own</strong> machine. ")
        .markup("Never type a code that somebody sent you: it would log them in as you.</p>\n")
        .markup("<form method=\"post\" action=\"/device\">\n<label for=\"code\">Code</label>\n")
        .markup("<input type=\"text\" id=\"code\" name=\"code\" maxlength=\"32\" autocomplete=\"off\" ")
        .markup("autocapitalize=\"characters\" spellcheck=\"false\" placeholder=\"BCDF-GHJK-LM\" required autofocus>\n")
        .markup("<div class=\"actions\"><button class=\"primary\">Go on</button></div>\n</form>");
    page("Log in another machine", cluster, body)
}

/// A code was right: what asked, and where to sign in.
pub(super) fn device_found(cluster: &str, login: &LoginRow, choices: &[Choice]) -> Html {
    let body = Html::empty()
        .markup("<p>A program asks to be logged in <strong>as you</strong>. Go on only if you started it yourself.</p>\n")
        .html(facts(login))
        .markup("<div class=\"actions\">")
        .html(buttons(login.login_id, None, choices))
        .markup("</div>");
    page("Is this your machine?", cluster, body)
}

/// The approval: what asked, who is signed in.
pub(super) fn approval(cluster: &str, approval: &Approval) -> Html {
    let id = approval.login.login_id.to_string();
    let body = Html::empty()
        .markup("<p>You are signed in as <strong>")
        .text(&approval.identity.name)
        .markup("</strong>. Approve only if your terminal shows these three words:</p>\n<p class=\"words\">")
        .text(&approval.login.words)
        .markup("</p>\n")
        .html(facts(&approval.login))
        .markup("<form method=\"post\" action=\"/login/")
        .text(&id)
        .markup("/approve\">\n<input type=\"hidden\" name=\"token\" value=\"")
        .text(&approval.form_token)
        .markup("\">\n<div class=\"actions\">")
        .markup("<button class=\"primary\" name=\"decision\" value=\"approve\">Approve</button>")
        .markup("<button class=\"danger\" name=\"decision\" value=\"refuse\">Not mine</button>")
        .markup("</div>\n</form>");
    page("Log this machine in?", cluster, body)
}

/// Approved, and the program fetches the rest itself.
pub(super) fn approved(cluster: &str) -> Html {
    let body = Html::empty().markup("<p>Your terminal goes on by itself. You may close this page.</p>");
    page("Logged in", cluster, body)
}

/// Refused on the page.
pub(super) fn refused(cluster: &str) -> Html {
    let body = Html::empty()
        .markup("<p>The program that asked was not logged in, and the refusal is on record.</p>\n")
        .markup("<p class=\"soft\">If you did not start it, tell your administrators: somebody tried to be logged in as you.</p>");
    page("Refused", cluster, body)
}

/// A step that cannot be taken.
pub(super) fn step_failed(cluster: &str, error: &StepError) -> Html {
    problem(cluster, heading(error), &error.to_string(), advice(error))
}

/// Any other failure.
pub(super) fn problem(cluster: &str, title: &'static str, what: &str, advice: &'static str) -> Html {
    let mut what = what.chars();
    let sentence: String = what
        .next()
        .into_iter()
        .flat_map(char::to_uppercase)
        .chain(what)
        .collect();
    let body = Html::empty()
        .markup("<p role=\"alert\">")
        .text(sentence.trim_end_matches('.'))
        .markup(".</p>\n<p class=\"soft\">")
        .markup(advice)
        .markup("</p>");
    page(title, cluster, body)
}

fn heading(error: &StepError) -> &'static str {
    match error {
        StepError::Unknown | StepError::UnknownAnswer => "This login is over",
        StepError::Taken => "Already done",
        StepError::OtherBrowser => "Another browser",
        StepError::Provider { .. } => "You could not be signed in",
        StepError::UnknownConnector => "Unknown identity provider",
        StepError::Forged => "Not approved",
        StepError::WrongCode => "Wrong code",
        StepError::TooManyTries => "Too many wrong codes",
        StepError::Unavailable => "Not at the moment",
    }
}

fn advice(error: &StepError) -> &'static str {
    match error {
        StepError::Unknown | StepError::UnknownAnswer | StepError::UnknownConnector | StepError::Forged => {
            "Run <code>iapctl login</code> again."
        }
        StepError::Taken => "If your terminal still waits, run <code>iapctl login</code> again.",
        StepError::OtherBrowser => {
            "A login ends in the browser it began in, with cookies allowed. \
             Run <code>iapctl login</code> again and stay in one browser."
        }
        StepError::Provider { .. } => {
            "Run <code>iapctl login</code> again. If it happens again, show this page to your administrators."
        }
        StepError::WrongCode => "Look at the code in your terminal again. It is valid for five minutes.",
        StepError::TooManyTries => "Wait five minutes, then run <code>iapctl login --headless</code> again.",
        StepError::Unavailable => {
            "Try again in a minute; your administrators find the cause in the auth server's log."
        }
    }
}

/// What is known of the program that asked. It said so itself, except for the address.
fn facts(login: &LoginRow) -> Html {
    let rows = [
        ("Machine", login.host_name.as_str()),
        ("Local user", login.user_name.as_str()),
        ("Address", &login.client_address.to_string()),
        ("Method", login.method.as_str()),
    ]
    .map(|(name, value)| {
        let value = if value.is_empty() { "not told" } else { value };
        Html::empty()
            .markup("<dt>")
            .markup(name)
            .markup("</dt><dd>")
            .text(value)
            .markup("</dd>\n")
    });
    rows.into_iter()
        .fold(Html::empty().markup("<dl>\n"), Html::html)
        .markup("</dl>\n")
}

fn buttons(id: LoginId, secret: Option<&str>, choices: &[Choice]) -> Html {
    let button = |choice: &Choice| {
        let link = Html::empty()
            .markup("<a class=\"button primary\" href=\"/login/")
            .text(&id.to_string())
            .markup("?connector=")
            .text(&choice.connector);
        let link = match secret {
            Some(secret) => link.markup("&amp;s=").text(secret),
            None => link,
        };
        link.markup("\">Sign in with ")
            .text(&choice.connector)
            .markup(" <small>")
            .text(&choice.host)
            .markup("</small></a>")
    };
    choices.iter().map(button).fold(Html::empty(), Html::html)
}

fn page(title: &'static str, cluster: &str, body: Html) -> Html {
    Html::empty()
        .markup("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n")
        .markup("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n")
        .markup("<meta name=\"robots\" content=\"noindex\">\n<title>")
        .markup(title)
        .markup(" · ")
        .text(cluster)
        .markup("</title>\n<link rel=\"stylesheet\" href=\"/style.css\">\n</head>\n<body>\n<main>\n<h1>")
        .markup(title)
        .markup("</h1>\n")
        .html(body)
        .markup("\n</main>\n<footer>")
        .text(cluster)
        .markup("</footer>\n</body>\n</html>\n")
}

//! What the person is shown, and the browser opened for them.

use std::io::IsTerminal as _;
use std::process::{Command, Stdio};

use super::LoginRequest;
use super::start::{Method, Started};
use crate::address::ClusterAddress;
use crate::printer::Printer;

/// Opens the browser, or prints the address, and the words both sides show.
pub(super) fn show(printer: &Printer, request: &LoginRequest, started: &Started) {
    let opened = request.method == Method::Browser && open(&started.url);
    let url = &started.url;
    if opened {
        printer.talk(&format!(
            "Your browser was opened to log in. If it was not, open this address:\n\n  {url}\n"
        ));
    } else {
        printer.talk(&format!(
            "Open this address in a browser on this machine to log in:\n\n  {url}\n"
        ));
    }
    // A program that reads stdout gets the address alone; a person has it above already.
    if request.method == Method::NoBrowser && request.url_on_stdout && !std::io::stdout().is_terminal() {
        let _ = printer.result(url);
    }
    show_words(printer, started);
}

/// What is typed on another device.
pub(super) fn show_code(printer: &Printer, address: &ClusterAddress, started: &Started) {
    let url = if started.url.is_empty() {
        format!("https://{address}/device")
    } else {
        started.url.clone()
    };
    printer.talk(&format!(
        "On any device, open\n\n  {url}\n\nand type the code\n\n  {}\n",
        printer.strong(&started.user_code)
    ));
    show_words(printer, started);
}

fn show_words(printer: &Printer, started: &Started) {
    printer.talk(&format!(
        "Approve there only if the page shows these words: {}",
        printer.strong(&started.words)
    ));
}

/// Starts the browser without waiting for it.
fn open(url: &str) -> bool {
    let command = match std::env::var("BROWSER") {
        Ok(browser) if !browser.trim().is_empty() => chosen(&browser, url),
        Ok(_) | Err(_) => system(url),
    };
    let Some((program, arguments)) = command.split_first() else {
        return false;
    };
    let spawned = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    match spawned {
        Ok(mut child) => {
            // Waited for only so that no zombie is left; a browser may run for days.
            std::thread::spawn(move || child.wait());
            true
        }
        Err(_) => false,
    }
}

/// `$BROWSER`: a command, in which `%s` stands for the address if it is there.
fn chosen(browser: &str, url: &str) -> Vec<String> {
    let words: Vec<String> = if std::path::Path::new(browser).exists() {
        vec![browser.to_owned()]
    } else {
        browser.split_whitespace().map(str::to_owned).collect()
    };
    if words.iter().any(|word| word.contains("%s")) {
        return words.iter().map(|word| word.replace("%s", url)).collect();
    }
    words.into_iter().chain([url.to_owned()]).collect()
}

fn system(url: &str) -> Vec<String> {
    let command: &[&str] = if cfg!(target_os = "macos") {
        &["open"]
    } else if cfg!(windows) {
        &["rundll32", "url.dll,FileProtocolHandler"]
    } else {
        &["xdg-open"]
    };
    command
        .iter()
        .map(|word| (*word).to_owned())
        .chain([url.to_owned()])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chosen_browser_gets_the_address_where_it_wants_it() {
        assert_eq!(
            chosen("firefox -new-tab", "https://x/"),
            ["firefox", "-new-tab", "https://x/"]
        );
        assert_eq!(chosen("open %s now", "https://x/"), ["open", "https://x/", "now"]);
    }
}

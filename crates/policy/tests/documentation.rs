//! Every example of `docs/policy.md`: documents load and pass their tests, conditions load, search
//! expressions parse, error texts are the ones that are given.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use iap_policy::filter::Filter;
use iap_policy::limits::{ADMIN_RULES_MAX, LIST_VALUES_MAX, RULES_MAX, TESTS_MAX};
use iap_policy::{RESERVED_LOGINS, Verb};
use support::{load, on_big_stack, refusal, with_condition};

const PAGE: &str = include_str!("../../../docs/policy.md");

/// The page's code blocks of one language.
fn blocks(language: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = PAGE.lines();
    while let Some(line) = lines.next() {
        if let Some(found) = line.strip_prefix("```") {
            let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            if found == language {
                blocks.push(block.join("\n"));
            }
        }
    }
    assert!(!blocks.is_empty(), "the page has no {language}");
    blocks
}

#[test]
fn documents_load_and_pass_their_tests() {
    on_big_stack(|| {
        for document in blocks("toml") {
            let policy = load(&document);
            let count = policy
                .run_tests()
                .unwrap_or_else(|failures| panic!("{}", failures[0]))
                .count;
            assert_eq!(count, document.matches("[[test]]").count());
        }
    });
}

#[test]
fn each_test_of_a_document_can_fail() {
    on_big_stack(|| {
        for document in blocks("toml")
            .iter()
            .filter(|document| document.contains("[[test]]"))
        {
            let turned = document
                .replace("= \"deny\"\nusers", "= \"DENY\"\nusers")
                .replace("= \"allow\"\nusers", "= \"ALLOW\"\nusers")
                .replace("\"deny\"", "\"turned\"")
                .replace("\"allow\"", "\"deny\"")
                .replace("\"turned\"", "\"allow\"")
                .replace("DENY", "deny")
                .replace("ALLOW", "allow");
            let failures = load(&turned).run_tests().expect_err(&turned);
            assert_eq!(failures.len(), document.matches("[[test]]").count());
        }
    });
}

#[test]
fn conditions_load() {
    on_big_stack(|| {
        for condition in blocks("cel").iter().flat_map(|block| block.lines()) {
            load(&with_condition("allow", condition));
        }
    });
}

#[test]
fn search_expressions_parse() {
    on_big_stack(|| {
        for expression in blocks("search").iter().flat_map(|block| block.lines()) {
            Filter::parse(expression).unwrap_or_else(|error| panic!("{expression}: {error}"));
        }
    });
}

#[test]
fn the_error_texts_are_given() {
    let document = "[[rule]]\nname = \"one\"\neffect = \"permit\"\nusers = { nmes = [\"a\"] }\n\
                    services = { names = [\"*\"] }\nwhen = \"usr.name == 'a'\"\n";
    let errors = on_big_stack(|| refusal(document)).to_string();
    for line in blocks("text").iter().flat_map(|block| block.lines()) {
        assert!(errors.contains(line), "{line}\nis not in\n{errors}");
    }
}

#[test]
fn every_verb_and_limit_is_on_the_page() {
    for verb in Verb::ALL {
        assert!(PAGE.contains(&format!("| `{verb}` |")), "{verb}");
    }
    assert!(RESERVED_LOGINS.starts_with(&["root", "postgres"]));
    for limit in [ADMIN_RULES_MAX, LIST_VALUES_MAX, RULES_MAX, TESTS_MAX] {
        let (thousands, rest) = (limit / 1_000, limit % 1_000);
        assert!(PAGE.contains(&format!("{thousands},{rest:03}")), "{limit}");
    }
}

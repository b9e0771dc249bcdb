//! Administrators: verbs, what implies what, and locking oneself out.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod support;

use iap_policy::{UserFacts, Verb};
use support::{load, on_big_stack, refusal, user};

fn admin(users: &str, verbs: &str) -> String {
    format!("[[admin]]\nusers = {{ {users} }}\nverbs = [{verbs}]\n")
}

#[test]
fn writing_implies_reading() {
    on_big_stack(|| {
        for (verb, implied) in [
            ("policy.write", vec![Verb::PolicyRead, Verb::PolicyWrite]),
            ("service.write", vec![Verb::ServiceWrite, Verb::InventoryRead]),
            ("token.write", vec![Verb::TokenWrite, Verb::InventoryRead]),
            ("lock.write", vec![Verb::LockWrite, Verb::InventoryRead]),
            ("session.kill", vec![Verb::SessionKill]),
            ("audit.read", vec![Verb::AuditRead]),
        ] {
            let policy = load(&admin("groups = [\"platform\"]", &format!("{verb:?}")));
            let verbs: Vec<Verb> = policy
                .admin_verbs(&user("alice", &["platform"]))
                .into_iter()
                .collect();
            assert_eq!(verbs, implied);
            assert!(policy.admin_verbs(&user("alice", &["other"])).is_empty());
        }
    });
}

#[test]
fn verbs_of_several_tables_add_up_and_bots_need_to_be_meant() {
    on_big_stack(|| {
        let tables =
            admin("names = [\"alice\"]", "\"audit.read\"") + &admin("names = [\"*\"]", "\"policy.read\"");
        let policy = load(&tables);
        assert_eq!(policy.admin_verbs(&user("alice", &[])).len(), 2);
        assert_eq!(policy.admin_verbs(&user("bob", &[])).len(), 1);
        assert!(policy.admin_verbs(&UserFacts::bot("alice")).is_empty());
    });
}

#[test]
fn verbs_that_change_policy_tokens_authorities_or_locks_need_a_recent_login() {
    let recent: Vec<&str> = Verb::ALL
        .into_iter()
        .filter(|verb| verb.needs_recent_auth())
        .map(Verb::as_str)
        .collect();
    assert_eq!(
        recent,
        [
            "policy.write",
            "token.write",
            "lock.write",
            "audit.erase",
            "ca.rotate",
            "ca.sign"
        ]
    );
}

#[test]
fn names_of_verbs_read_back() {
    for verb in Verb::ALL {
        assert_eq!(Verb::parse(verb.as_str()), Ok(verb));
        assert_eq!(serde_json::to_value(verb).unwrap(), verb.as_str());
    }
    assert!(
        Verb::parse("policy.wriet")
            .unwrap_err()
            .to_string()
            .contains("\"policy.write\"")
    );
}

#[test]
fn a_misspelt_verb_is_refused_with_the_list() {
    let errors = on_big_stack(|| refusal(&admin("names = [\"a\"]", "\"policy.wriet\", \"x\"")));
    assert_eq!(errors.0.len(), 2);
    assert!(
        errors
            .to_string()
            .contains("admin 1: \"policy.wriet\" is no verb; allowed are"),
        "{errors}"
    );
}

#[test]
fn a_policy_that_takes_its_authors_own_right_to_change_it_is_noticed() {
    on_big_stack(|| {
        let author = user("alice", &["platform"]);
        let current = load(&admin("groups = [\"platform\"]", "\"policy.write\""));
        let losing = load(&admin("groups = [\"platform\"]", "\"policy.read\""));
        assert!(losing.locks_out_author(&current, &author));
        assert!(!current.locks_out_author(&current, &author));
        assert!(
            !losing.locks_out_author(&losing, &author),
            "who had no right loses none"
        );
    });
}

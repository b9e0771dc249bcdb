//! Sessions of hand-made messages, and random ones.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
use super::*;
use crate::encode::message;
use proptest::prelude::*;

const LIMITS: CaptureLimits = CaptureLimits {
    bytes_max: 100,
    parameters: true,
};

/// A session in which everything is said at once.
struct Session(Tracker, Duration);

impl Session {
    fn new() -> Self {
        Self::with(LIMITS)
    }

    fn with(limits: CaptureLimits) -> Self {
        Self(Tracker::new(limits), Duration::ZERO)
    }

    fn try_client(&mut self, messages: &[Vec<u8>]) -> Result<(), TooMuch> {
        self.1 += Duration::from_millis(1);
        self.0.client_sent(&messages.concat(), self.1)
    }

    fn client(&mut self, messages: &[Vec<u8>]) {
        self.try_client(messages).unwrap();
    }

    fn backend(&mut self, messages: &[Vec<u8>]) -> Vec<Statement> {
        self.1 += Duration::from_millis(1);
        self.0.backend_sent(&messages.concat(), self.1).unwrap();
        self.0.ended()
    }
}

fn query(text: &str) -> Vec<u8> {
    message(b'Q', format!("{text}\0").as_bytes())
}

fn parse(name: &str, text: &str) -> Vec<u8> {
    message(
        b'P',
        &[format!("{name}\0{text}\0").as_bytes(), &[0, 1, 0, 0, 0, 23]].concat(),
    )
}

fn bind(portal: &str, statement: &str, values: &[Option<&[u8]>]) -> Vec<u8> {
    let mut body = format!("{portal}\0{statement}\0").into_bytes();
    body.extend_from_slice(&[0, 1, 0, 1]);
    body.extend_from_slice(&u16::try_from(values.len()).unwrap().to_be_bytes());
    for value in values {
        let length = value.map_or(-1, |value| i32::try_from(value.len()).unwrap());
        body.extend_from_slice(&length.to_be_bytes());
        body.extend_from_slice(value.unwrap_or_default());
    }
    body.extend_from_slice(&[0, 0]);
    message(b'B', &body)
}

fn execute(portal: &str) -> Vec<u8> {
    message(b'E', format!("{portal}\0\0\0\0\0").as_bytes())
}

fn sync() -> Vec<u8> {
    message(b'S', b"")
}

fn done(tag: &str) -> Vec<u8> {
    message(b'C', format!("{tag}\0").as_bytes())
}

fn error(sqlstate: &str) -> Vec<u8> {
    message(b'E', format!("SERROR\0VERROR\0C{sqlstate}\0Mno\0\0").as_bytes())
}

fn ready(status: u8) -> Vec<u8> {
    message(b'Z', &[status])
}

fn answer(kind: u8) -> Vec<u8> {
    message(kind, b"")
}

fn text(statement: &Statement) -> &str {
    &statement.text.as_ref().unwrap().text
}

fn texts(statements: &[Statement]) -> Vec<&str> {
    statements.iter().map(text).collect()
}

#[test]
fn a_simple_query_ends_when_the_backend_is_ready() {
    let mut session = Session::new();
    session.client(&[query("DELETE FROM t; SELECT 1")]);
    assert_eq!(
        session.backend(&[
            done("DELETE 3"),
            message(b'T', b"x"),
            message(b'D', b"y"),
            done("SELECT 1")
        ]),
        []
    );
    let ended = session.backend(&[ready(b'T')]);
    assert_eq!(texts(&ended), ["DELETE FROM t; SELECT 1"]);
    assert_eq!((ended[0].rows, &ended[0].outcome), (4, &Outcome::Done));
    assert_eq!(ended[0].tags, ["DELETE 3", "SELECT 1"]);
    assert_eq!(ended[0].transaction, Transaction::Open);
    assert_eq!(ended[0].took, Duration::from_millis(2));
}

#[test]
fn a_prepared_statement_is_told_with_its_text_and_parameters_each_time() {
    let mut session = Session::new();
    session.client(&[
        parse("s", "DELETE FROM t WHERE id = $1"),
        bind("", "s", &[Some(&[0, 0, 0, 7])]),
        execute(""),
        sync(),
    ]);
    let ended = session.backend(&[answer(b'1'), answer(b'2'), done("DELETE 1"), ready(b'I')]);
    assert_eq!(texts(&ended), ["DELETE FROM t WHERE id = $1"]);
    assert_eq!(ended[0].name.as_deref(), Some("s"));
    let parameters = ended[0].parameters.as_ref().unwrap();
    assert_eq!(parameters.values, Some([Some("7".to_owned())].into()));
    session.client(&[bind("", "s", &[None]), execute(""), sync()]);
    let ended = session.backend(&[answer(b'2'), done("DELETE 0"), ready(b'I')]);
    assert_eq!(texts(&ended), ["DELETE FROM t WHERE id = $1"]);
    assert_eq!(ended[0].parameters.as_ref().unwrap().values, Some([None].into()));
}

#[test]
fn values_are_left_out_unless_they_are_asked_for() {
    let mut session = Session::with(CaptureLimits {
        parameters: false,
        ..LIMITS
    });
    session.client(&[
        parse("", "SELECT $1"),
        bind("", "", &[Some(b"secret")]),
        execute(""),
        sync(),
    ]);
    let ended = session.backend(&[answer(b'1'), answer(b'2'), done("SELECT 1"), ready(b'I')]);
    let parameters = ended[0].parameters.as_ref().unwrap();
    assert_eq!((parameters.count, &parameters.values), (Some(1), &None));
}

#[test]
fn a_statement_that_the_backend_did_not_prepare_takes_no_others_place() {
    let mut session = Session::new();
    session.client(&[parse("s", "SELECT 1"), sync()]);
    session.backend(&[answer(b'1'), ready(b'I')]);
    session.client(&[parse("s", "SELECT 2"), sync()]);
    let ended = session.backend(&[error("42P05"), ready(b'I')]);
    assert_eq!(texts(&ended), ["SELECT 2"]);
    assert_eq!(ended[0].outcome, Outcome::Failed("42P05".to_owned()));
    session.client(&[bind("", "s", &[]), execute(""), sync()]);
    let ended = session.backend(&[answer(b'2'), done("SELECT 1"), ready(b'I')]);
    assert_eq!(texts(&ended), ["SELECT 1"]);
}

#[test]
fn a_name_that_statements_may_have_given_anew_is_told_without_a_text() {
    let mut session = Session::new();
    session.client(&[parse("s", "SELECT 1"), sync()]);
    session.backend(&[answer(b'1'), ready(b'I')]);
    session.client(&[query("DEALLOCATE s; PREPARE s AS DELETE FROM t")]);
    session.backend(&[done("DEALLOCATE"), done("PREPARE"), ready(b'I')]);
    session.client(&[bind("", "s", &[]), execute(""), sync()]);
    let ended = session.backend(&[answer(b'2'), done("DELETE 9"), ready(b'I')]);
    assert_eq!((&ended[0].text, ended[0].name.as_deref()), (&None, Some("s")));
}

#[test]
fn what_follows_a_failure_is_told_as_skipped_up_to_the_next_sync() {
    let mut session = Session::new();
    session.client(&[
        parse("", "SELECT no"),
        bind("", "", &[]),
        execute(""),
        parse("", "DELETE FROM t"),
    ]);
    let ended = session.backend(&[error("42703")]);
    assert_eq!(ended[0].outcome, Outcome::Failed("42703".to_owned()));
    assert_eq!(ended.last().map(text), Some("DELETE FROM t"));
    assert!(
        ended[1..]
            .iter()
            .all(|statement| statement.outcome == Outcome::Skipped)
    );
    session.client(&[query("DELETE FROM u"), sync(), query("SELECT 3")]);
    let ended = session.backend(&[ready(b'I'), done("SELECT 1"), ready(b'I')]);
    assert_eq!(texts(&ended), ["DELETE FROM u", "SELECT 3"]);
    assert_eq!(ended[0].outcome, Outcome::Skipped);
    assert_eq!(ended[1].outcome, Outcome::Done);
}

#[test]
fn pipelines_are_told_in_order() {
    let mut session = Session::new();
    let one = |text: &str| [parse("", text), bind("", "", &[]), execute("")].concat();
    session.client(&[one("A"), one("B"), sync(), one("C"), sync()]);
    let answers = |tag: &str| [answer(b'1'), answer(b'2'), done(tag)].concat();
    let ended = session.backend(&[
        answers("INSERT 0 1"),
        answers("UPDATE 2"),
        ready(b'I'),
        answers("SELECT 3"),
        ready(b'I'),
    ]);
    assert_eq!(texts(&ended), ["A", "B", "C"]);
    assert_eq!(
        ended.iter().map(|statement| statement.rows).collect::<Vec<_>>(),
        [1, 2, 3]
    );
}

#[test]
fn copy_is_counted_both_ways() {
    let mut session = Session::new();
    session.client(&[query("COPY t FROM STDIN")]);
    session.backend(&[answer(b'G')]);
    session.client(&[message(b'd', b"1\n"), message(b'd', b"22\n"), answer(b'c')]);
    let ended = session.backend(&[done("COPY 2"), ready(b'I')]);
    assert_eq!(
        ended[0].copy,
        Some(Copied {
            direction: Direction::In,
            bytes: 5
        })
    );
    assert_eq!(ended[0].rows, 2);
    session.client(&[query("COPY t TO STDOUT")]);
    let ended = session.backend(&[
        answer(b'H'),
        message(b'd', b"1\n"),
        answer(b'c'),
        done("COPY 1"),
        ready(b'I'),
    ]);
    assert_eq!(
        ended[0].copy,
        Some(Copied {
            direction: Direction::Out,
            bytes: 2
        })
    );
}

#[test]
fn a_sync_that_copy_swallows_does_not_shift_what_follows() {
    let mut session = Session::new();
    session.client(&[
        parse("", "COPY t FROM STDIN"),
        bind("", "", &[]),
        execute(""),
        sync(),
    ]);
    session.backend(&[answer(b'1'), answer(b'2'), answer(b'G')]);
    session.client(&[message(b'd', b"1\n"), answer(b'c'), sync()]);
    let ended = session.backend(&[done("COPY 1"), ready(b'I')]);
    assert_eq!(texts(&ended), ["COPY t FROM STDIN"]);
    session.client(&[query("SELECT 1")]);
    let ended = session.backend(&[done("SELECT 1"), ready(b'I')]);
    assert_eq!(
        (texts(&ended), &ended[0].outcome),
        (vec!["SELECT 1"], &Outcome::Done)
    );
}

#[test]
fn statements_hidden_behind_a_copy_end_the_session() {
    let mut session = Session::new();
    session.client(&[query("COPY t FROM STDIN"), query("DELETE FROM t")]);
    let refused = session.0.backend_sent(&answer(b'G'), Duration::ZERO);
    assert_eq!(refused, Err(TooMuch::BehindCopy));
    let mut session = Session::new();
    session.client(&[query("COPY t FROM STDIN")]);
    session.backend(&[answer(b'G')]);
    assert_eq!(
        session.try_client(&[query("DELETE FROM t")]),
        Err(TooMuch::BehindCopy)
    );
}

#[test]
fn what_is_cut_says_so_and_passwords_are_masked_before() {
    let mut session = Session::new();
    let long = format!("SELECT '{}'", "x".repeat(300));
    session.client(&[query(&long), query("ALTER ROLE bob PASSWORD 's3cret' nonsense")]);
    let ended = session.backend(&[done("SELECT 1"), ready(b'I'), error("42601"), ready(b'I')]);
    let cut = ended[0].text.as_ref().unwrap();
    assert_eq!(
        (cut.text.len(), cut.bytes, cut.truncated),
        (100, long.len(), true)
    );
    assert_eq!(text(&ended[1]), "ALTER ROLE bob PASSWORD '***' nonsense");
    assert_eq!(ended[1].outcome, Outcome::Failed("42601".to_owned()));
}

#[test]
fn what_was_never_answered_is_told_at_the_end() {
    let mut session = Session::new();
    session.client(&[query("SELECT pg_sleep(9)"), parse("", "DELETE FROM t")]);
    let ended = session.0.finish();
    assert_eq!(texts(&ended), ["SELECT pg_sleep(9)", "DELETE FROM t"]);
    assert!(
        ended
            .iter()
            .all(|statement| statement.outcome == Outcome::Unanswered)
    );
}

#[test]
fn what_a_backend_ends_as_it_closes_has_its_sqlstate() {
    let mut session = Session::new();
    session.client(&[query("SELECT pg_sleep(9)")]);
    assert_eq!(session.backend(&[error("57P01")]), []);
    let ended = session.0.finish();
    assert_eq!(texts(&ended), ["SELECT pg_sleep(9)"]);
    assert_eq!(ended[0].outcome, Outcome::Failed("57P01".to_owned()));
}

#[test]
fn a_client_far_ahead_of_its_answers_is_to_wait() {
    let mut session = Session::new();
    for _ in 0..PENDING_MAX {
        assert!(!session.0.is_full());
        session.client(&[sync()]);
    }
    assert!(session.0.is_full());
    session.backend(&[ready(b'I')]);
    assert!(!session.0.is_full());
}

#[test]
fn a_name_too_long_to_be_told_from_others_ends_the_session() {
    let mut session = Session::new();
    let name = "n".repeat(NAME_BYTES_MAX + 1);
    assert_eq!(
        session.try_client(&[parse(&name, "SELECT 1")]),
        Err(TooMuch::Name)
    );
    session = Session::new();
    assert_eq!(session.try_client(&[execute(&name)]), Err(TooMuch::Name));
}

fn outcomes(statements: &[Statement]) -> Vec<(Option<&str>, &Outcome)> {
    let of = statements.iter().map(|statement| {
        let text = statement.text.as_ref().map(|text| text.text.as_ref());
        (text, &statement.outcome)
    });
    of.collect()
}

/// A deferred constraint fails at the Sync, and nothing behind it is skipped (PostgreSQL 15 to 18 do so).
#[test]
fn a_sync_that_fails_is_told_and_shifts_nothing_behind_it() {
    let one = |text: &str| [parse("", text), bind("", "", &[]), execute("")].concat();
    let (answers, failed) = (
        |tag: &str| [answer(b'1'), answer(b'2'), done(tag)].concat(),
        Outcome::Failed("23503".to_owned()),
    );
    for (next, its_answer) in [
        (query("DELETE FROM t"), done("DELETE 7")),
        ([one("DELETE FROM t"), sync()].concat(), answers("DELETE 7")),
    ] {
        let mut session = Session::new();
        session.client(&[one("INSERT"), sync(), next]);
        let ended = session.backend(&[
            answers("INSERT 0 1"),
            error("23503"),
            ready(b'I'),
            its_answer,
            ready(b'I'),
        ]);
        let expected = [
            (Some("INSERT"), &Outcome::Done),
            (Some("Sync"), &failed),
            (Some("DELETE FROM t"), &Outcome::Done),
        ];
        assert_eq!(outcomes(&ended), expected);
        assert_eq!(ended[2].rows, 7);
        assert_eq!(session.0.finish(), []);
    }
    let mut session = Session::new();
    session.client(&[sync()]);
    // A backend that is told to stop, between two messages.
    assert_eq!(session.backend(&[error("57P01")]), []);
}

#[test]
fn what_is_skipped_is_not_told_as_what_had_its_name_before() {
    let mut session = Session::new();
    session.client(&[query("BEGIN")]);
    session.backend(&[done("BEGIN"), ready(b'T')]);
    session.client(&[parse("", "SELECT 1"), bind("", "", &[]), execute(""), sync()]);
    session.backend(&[answer(b'1'), answer(b'2'), done("SELECT 1"), ready(b'T')]);
    let pipeline = [
        parse("", "DELETE FROM no"),
        bind("", "", &[]),
        execute(""),
        sync(),
    ];
    session.client(&pipeline);
    let ended = session.backend(&[error("42P01"), ready(b'E')]);
    let failed = Outcome::Failed("42P01".to_owned());
    let text = Some("DELETE FROM no");
    let expected = [
        (text, &failed),
        (text, &Outcome::Skipped),
        (text, &Outcome::Skipped),
    ];
    assert_eq!(outcomes(&ended), expected);
    session.client(&pipeline);
    let unanswered = [(text, &Outcome::Unanswered); 3];
    assert_eq!(outcomes(&session.0.finish()), unanswered);
}

#[test]
fn an_unnamed_statement_whose_successor_failed_is_gone() {
    let mut session = Session::new();
    session.client(&[parse("", "SELECT 1"), sync(), parse("", "SELECT no"), sync()]);
    session.backend(&[answer(b'1'), ready(b'I'), error("42703"), ready(b'I')]);
    session.client(&[bind("", "", &[]), execute(""), sync()]);
    let ended = session.backend(&[error("26000"), ready(b'I')]);
    let failed = Outcome::Failed("26000".to_owned());
    assert_eq!(outcomes(&ended), [(None, &failed), (None, &Outcome::Skipped)]);
}

#[test]
fn a_cursor_that_took_a_portals_name_is_told_without_its_text() {
    let mut session = Session::new();
    session.client(&[parse("", "SELECT 1"), bind("c", "", &[]), execute("c"), sync()]);
    session.backend(&[answer(b'1'), answer(b'2'), answer(b's'), ready(b'T')]);
    session.client(&[
        query("CLOSE c"),
        query("DECLARE c CURSOR FOR SELECT secret FROM t"),
    ]);
    session.backend(&[
        done("CLOSE CURSOR"),
        ready(b'T'),
        done("DECLARE CURSOR"),
        ready(b'T'),
    ]);
    session.client(&[execute("c"), sync()]);
    let ended = session.backend(&[done("SELECT 9"), ready(b'T')]);
    assert_eq!(outcomes(&ended), [(None, &Outcome::Done)]);
}

#[test]
fn rows_are_counted_once_and_those_of_a_statement_that_never_ended_too() {
    let row = || message(b'D', b"y");
    let mut session = Session::new();
    session.client(&[query("SELECT 1; SELECT 1/0")]);
    let ended = session.backend(&[row(), done("SELECT 1"), error("22012"), ready(b'I')]);
    assert_eq!(ended[0].rows, 1);
    session.client(&[query("SELECT 1; SELECT * FROM secrets")]);
    session.backend(&[row(), done("SELECT 1"), row(), row(), row()]);
    let ended = session.0.finish();
    assert_eq!((&ended[0].outcome, ended[0].rows), (&Outcome::Unanswered, 4));
}

#[test]
fn several_copies_in_one_query_are_counted_together() {
    let out = |bytes: &[u8]| [answer(b'H'), message(b'd', bytes), answer(b'c'), done("COPY 1")].concat();
    let mut session = Session::new();
    session.client(&[query(
        "COPY secrets TO STDOUT; COPY t TO STDOUT; COPY u FROM STDIN",
    )]);
    session.backend(&[out(&[b'x'; 90]), out(b"1\n")]);
    // Nothing asked for these yet.
    session.client(&[message(b'd', b"22\n")]);
    session.backend(&[answer(b'G')]);
    session.client(&[message(b'd', b"333\n"), answer(b'c')]);
    let ended = session.backend(&[done("COPY 2"), ready(b'I')]);
    let copy = Copied {
        direction: Direction::Both,
        bytes: 90 + 2 + 3 + 4,
    };
    assert_eq!(ended[0].copy, Some(copy));
    session.client(&[query("COPY t TO STDOUT")]);
    session.backend(&[answer(b'H'), message(b'd', b"1\n")]);
    session.client(&[message(b'd', &[0; 1000])]);
    let ended = session.backend(&[answer(b'c'), done("COPY 1"), ready(b'I')]);
    assert_eq!(
        ended[0].copy.unwrap().bytes,
        2,
        "what the client says is no data of the backend's"
    );
}

/// Each binds a text that no other statement has any more, in one transaction.
#[test]
fn portals_keep_no_more_than_a_bound_of_texts_whose_statements_are_gone() {
    let mut session = Session::with(CaptureLimits {
        bytes_max: 64 * 1024,
        parameters: true,
    });
    let text = "x".repeat(64 * 1024);
    for number in 0..300 {
        session.client(&[parse("", &text), bind(&number.to_string(), "", &[]), sync()]);
        session.backend(&[answer(b'1'), answer(b'2'), ready(b'T')]);
    }
    let texts = session.0.state.registered.texts_of_portals();
    assert!((200 * 64 * 1024..=16 << 20).contains(&texts), "{texts}");
}

#[derive(Debug, Clone)]
enum Step {
    Simple(String, bool),
    Extended(String, bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let text = "[a-z ]{0,20}";
    let step = prop_oneof![
        (text, any::<bool>()).prop_map(|(text, fails)| Step::Simple(text, fails)),
        (text, any::<bool>()).prop_map(|(text, fails)| Step::Extended(text, fails)),
    ];
    proptest::collection::vec(step, 0..20)
}

/// Both directions of a session, as a client that waits and a backend make them.
fn conversation(steps: &[Step]) -> Vec<(bool, Vec<u8>)> {
    let turn = |step: &Step| match step {
        Step::Simple(text, false) => [
            (true, query(text)),
            (false, [done("SELECT 1"), ready(b'I')].concat()),
        ],
        Step::Simple(text, true) => [
            (true, query(text)),
            (false, [error("42601"), ready(b'I')].concat()),
        ],
        Step::Extended(text, fails) => {
            let asked = [parse("", text), bind("", "", &[]), execute(""), sync()].concat();
            let last = if *fails {
                error("23505")
            } else {
                done("INSERT 0 1")
            };
            [
                (true, asked),
                (false, [answer(b'1'), answer(b'2'), last, ready(b'I')].concat()),
            ]
        }
    };
    steps.iter().flat_map(turn).collect()
}

proptest! {
    #[test]
    fn every_statement_comes_out_once_in_order_with_its_outcome_in_any_pieces(steps in steps(), cut in 1usize..40) {
        let mut tracker = Tracker::new(LIMITS);
        for (is_client, bytes) in conversation(&steps) {
            for piece in bytes.chunks(cut) {
                match is_client {
                    true => tracker.client_sent(piece, Duration::ZERO).unwrap(),
                    false => tracker.backend_sent(piece, Duration::ZERO).unwrap(),
                }
            }
        }
        let ended = tracker.ended();
        prop_assert_eq!(ended.len(), steps.len());
        for (statement, step) in ended.iter().zip(&steps) {
            let (Step::Simple(expected, fails) | Step::Extended(expected, fails)) = step;
            prop_assert_eq!(text(statement), expected.as_str());
            prop_assert_eq!(matches!(statement.outcome, Outcome::Failed(_)), *fails);
        }
        prop_assert_eq!(tracker.finish(), []);
    }

    #[test]
    fn arbitrary_bytes_are_followed_or_refused_and_bounded(
        turns in proptest::collection::vec((any::<bool>(), proptest::collection::vec(any::<u8>(), 0..60)), 0..30),
    ) {
        let mut tracker = Tracker::new(LIMITS);
        for (is_client, bytes) in &turns {
            let followed = match is_client {
                true => tracker.client_sent(bytes, Duration::ZERO),
                false => tracker.backend_sent(bytes, Duration::ZERO),
            };
            if followed.is_err() {
                break;
            }
        }
        tracker.finish();
        prop_assert_eq!(tracker.state.pending_bytes, 0);
    }
}

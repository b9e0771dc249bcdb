//! `psql` in an open transaction.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use iap_e2e::Background;

/// An open transaction with something in it that no other connection sees.
pub(crate) struct Psql {
    process: Background,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    backend: String,
}

impl Psql {
    /// For `iapctl connect NAME --`.
    pub(crate) const COMMAND: &[&str] = &["psql", "-XAtq", "-v", "ON_ERROR_STOP=1"];

    pub(crate) fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Background(command.spawn().unwrap());
        let mut psql = Self {
            input: process.0.stdin.take().unwrap(),
            output: BufReader::new(process.0.stdout.take().unwrap()),
            process,
            backend: String::new(),
        };
        psql.backend = psql.asks(
            "begin; create temporary table kept (value int); insert into kept values (42); select pg_backend_pid();",
        );
        psql
    }

    fn asks(&mut self, statement: &str) -> String {
        writeln!(self.input, "{statement}").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    /// The same transaction at the same backend.
    pub(crate) fn is_as_it_was(&mut self, what: &str) {
        let answer = self.asks("select value || ' ' || pg_backend_pid() from kept;");
        assert_eq!(answer, format!("42 {}", self.backend), "{what}");
    }

    pub(crate) fn finish(mut self) {
        assert_eq!(self.asks("commit; select count(*) from kept;"), "1");
        let Self { process, input, .. } = self;
        drop(input);
        process.finish().unwrap().succeeded().unwrap();
    }
}

//! Entry point.

use std::process::ExitCode;

fn main() -> ExitCode {
    iapctl::main()
}

//! Manual pages: each program writes its own from what its command line says, so that they cannot say anything else.

use std::io;
use std::path::Path;

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

/// What the pages of a program say beside its command line.
#[derive(Debug, Clone, Copy)]
pub struct Manual<'a> {
    /// `1` for everybody's commands, `8` for those of whoever administers the host.
    pub section: &'a str,
    /// Files the program works with, and what they are.
    pub files: &'a [(&'a str, &'a str)],
}

impl Manual<'_> {
    /// Writes one page for the program and one for each subcommand that is not hidden, `NAME-SUBCOMMAND.SECTION`.
    /// The folder must exist; pages that are there are replaced.
    ///
    /// # Errors
    /// The system's, for what cannot be written.
    pub fn write(&self, program: Command, folder: &Path) -> io::Result<()> {
        let mut program = program.disable_help_subcommand(true);
        program.build();
        let source = format!(
            "{} {}",
            program.get_name(),
            program.get_version().unwrap_or_default()
        );
        self.write_with_subcommands(&program, &source, folder)
    }

    fn write_with_subcommands(&self, command: &Command, source: &str, folder: &Path) -> io::Result<()> {
        for subcommand in command.get_subcommands().filter(|one| !one.is_hide_set()) {
            self.write_with_subcommands(subcommand, source, folder)?;
        }
        let man = Man::new(command.clone()).section(self.section).source(source);
        let mut page = Vec::new();
        man.render(&mut page)?;
        self.files_section().to_writer(&mut page)?;
        std::fs::write(folder.join(man.get_filename()), page)
    }

    fn files_section(&self) -> Roff {
        let mut roff = Roff::new();
        if !self.files.is_empty() {
            roff.control("SH", ["FILES"]);
        }
        for (path, meaning) in self.files {
            roff.control("TP", []);
            roff.text([bold(*path)]);
            roff.text([roman(*meaning)]);
        }
        roff
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn program() -> Command {
        Command::new("lamp")
            .version("1.2")
            .about("Gives light")
            .subcommand(
                Command::new("on")
                    .about("Lights it")
                    .arg(clap::arg!(--colour <NAME> "Which light")),
            )
            .subcommand(Command::new("heat").hide(true))
    }

    #[test]
    fn the_program_and_every_subcommand_that_is_not_hidden_have_a_page() {
        let folder = tempfile::tempdir().unwrap();
        let files = [("/etc/lamp.toml", "the configuration")];
        let manual = Manual {
            section: "8",
            files: &files,
        };
        manual.write(program(), folder.path()).unwrap();
        let mut names: Vec<String> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["lamp-on.8", "lamp.8"]);
        let page = std::fs::read_to_string(folder.path().join("lamp-on.8")).unwrap();
        for text in [
            ".TH lamp-on 8",
            "lamp 1.2",
            "Lights it",
            "colour",
            "Which light",
            "/etc/lamp.toml",
        ] {
            assert!(page.contains(text), "{text} is not in:\n{page}");
        }
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error() {
        let manual = Manual {
            section: "1",
            files: &[],
        };
        assert!(manual.write(program(), Path::new("/nowhere/at/all")).is_err());
    }
}

//! Writes the inputs that the real encoders make into `corpus/`, one file per seed; files of other names stay.
#![allow(clippy::print_stdout, reason = "a program for the terminal")]

use anyhow::Context as _;

fn main() -> anyhow::Result<()> {
    for target in iap_fuzz::TARGETS {
        let dir = iap_fuzz::corpus_dir(target.name);
        std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let seeds = (target.seeds)();
        for (name, bytes) in &seeds {
            let file = dir.join(format!("seed-{name}"));
            std::fs::write(&file, bytes).with_context(|| format!("write {}", file.display()))?;
        }
        println!("{}: {} seeds", target.name, seeds.len());
    }
    Ok(())
}

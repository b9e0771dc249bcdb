//! Writes the inputs that the real encoders make into `corpus/`, one file per seed, for the targets named on the command
//! line or all of them. Files of other names stay.
#![allow(clippy::print_stdout, reason = "a program for the terminal")]

use anyhow::Context as _;

fn main() -> anyhow::Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|one| one == name);
    for target in iap_fuzz::TARGETS.iter().filter(|target| is_wanted(target.name)) {
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

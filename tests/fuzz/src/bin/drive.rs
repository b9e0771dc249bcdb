//! Hands libFuzzer's inputs to the target that the environment variable `IAP_FUZZ_TARGET` names.
#![no_main]
#![allow(clippy::panic, reason = "without a target there is nothing to do")]

use std::sync::OnceLock;

use iap_fuzz::Target;

fn target() -> &'static Target {
    static TARGET: OnceLock<&Target> = OnceLock::new();
    TARGET.get_or_init(|| {
        let name = std::env::var("IAP_FUZZ_TARGET").unwrap_or_default();
        iap_fuzz::target(&name).unwrap_or_else(|| {
            let names: Vec<&str> = iap_fuzz::TARGETS.iter().map(|target| target.name).collect();
            panic!(
                "IAP_FUZZ_TARGET={name:?} is no target; there are {}",
                names.join(", ")
            )
        })
    })
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    (target().run)(bytes);
});

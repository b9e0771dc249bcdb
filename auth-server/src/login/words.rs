//! Three words that the approval page and `iapctl` both show, so that a person can tell whose login it is.

use crate::context::{NoRandomness, Random};

/// Short, common, and unlike each other when spoken. 128 of them: three are 21 bits.
const WORDS: [&str; 128] = [
    "acorn", "amber", "anchor", "apple", "apron", "arrow", "autumn", "bacon", "badge", "balcony", "bamboo",
    "banana", "basket", "beacon", "berry", "bicycle", "blanket", "border", "bottle", "breeze", "bridge",
    "bronze", "bucket", "butter", "button", "cabin", "cactus", "camera", "candle", "canyon", "carpet",
    "castle", "cedar", "cherry", "circle", "clover", "coffee", "comet", "copper", "coral", "cotton",
    "cousin", "cradle", "crystal", "curtain", "daisy", "desert", "dinner", "dolphin", "dragon", "eagle",
    "ember", "engine", "falcon", "feather", "fiddle", "flame", "forest", "fossil", "garden", "ginger",
    "glacier", "guitar", "hammer", "harbor", "hazel", "helmet", "honey", "island", "jacket", "jasmine",
    "jigsaw", "kettle", "kitten", "ladder", "lantern", "lemon", "linen", "lobster", "magnet", "maple",
    "marble", "meadow", "mirror", "monkey", "mountain", "napkin", "needle", "nutmeg", "oasis", "olive",
    "onion", "orbit", "orchid", "otter", "oyster", "paddle", "panda", "paper", "pebble", "pepper", "piano",
    "pillow", "planet", "pocket", "puzzle", "quartz", "rabbit", "raven", "ribbon", "river", "rocket",
    "saddle", "salmon", "shadow", "silver", "spider", "sunset", "table", "thunder", "tiger", "tulip",
    "turtle", "velvet", "violin", "walnut", "whistle", "zebra",
];

/// Three random words.
///
/// # Errors
/// When there is no randomness.
pub(crate) fn three(random: &Random) -> Result<String, NoRandomness> {
    let picks = random.bytes::<3>()?;
    let words = picks.map(|pick| {
        WORDS
            .get(usize::from(pick) % WORDS.len())
            .copied()
            .unwrap_or("acorn")
    });
    Ok(words.join(" "))
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing
    )]
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn words_are_distinct_and_divide_a_byte_evenly() {
        assert_eq!(WORDS.iter().collect::<BTreeSet<_>>().len(), WORDS.len());
        assert_eq!(256 % WORDS.len(), 0);
        assert_eq!(three(&Random::system()).unwrap().split(' ').count(), 3);
    }
}

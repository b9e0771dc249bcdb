//! Words for somebody who mistyped a name.

/// The names, as a sentence lists them.
pub(super) fn listed(names: &[&str]) -> String {
    names.join(", ")
}

/// The name most like `key`, if it is near enough to be a slip of the finger.
pub(super) fn nearest<'a>(key: &str, names: &[&'a str]) -> Option<&'a str> {
    let allowance = 1 + key.len() / 4;
    let ranked = names.iter().map(|name| (edit_distance(key, name), *name));
    ranked
        .filter(|(distance, _)| *distance <= allowance)
        .min()
        .map(|(_, name)| name)
}

/// Levenshtein distance over bytes.
fn edit_distance(left: &str, right: &str) -> usize {
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (index, left_byte) in left.bytes().enumerate() {
        let mut diagonal = index;
        let mut left_cell = index + 1;
        let mut next_row = vec![left_cell];
        for (above, right_byte) in row.iter().skip(1).zip(right.bytes()) {
            let substituted = diagonal + usize::from(left_byte != right_byte);
            left_cell = substituted.min(above + 1).min(left_cell + 1);
            diagonal = *above;
            next_row.push(left_cell);
        }
        row = next_row;
    }
    row.last().copied().unwrap_or_default()
}

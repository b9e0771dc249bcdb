//! Unified diffs of two documents, line by line, through their longest common subsequence.

/// Lines of context around each change.
const CONTEXT_LINES: usize = 3;
/// Above this many cells (lines times lines) the middle of the documents counts as replaced altogether.
const TABLE_CELLS_MAX: usize = 25_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Edit<'a> {
    Keep(&'a str),
    Remove(&'a str),
    Add(&'a str),
}

/// The unified diff from `old` to `new`; empty when they are the same.
pub fn unified(old: &str, new: &str, old_name: &str, new_name: &str) -> String {
    if old == new {
        return String::new();
    }
    let edits = edits(&lines(old), &lines(new));
    let mut text = format!("--- {old_name}\n+++ {new_name}\n");
    for hunk in hunks(&edits) {
        write_hunk(&mut text, &edits, hunk);
    }
    text
}

/// Lines with their endings, so that a missing last newline is a difference.
fn lines(text: &str) -> Vec<&str> {
    text.split_inclusive('\n').collect()
}

fn edits<'a>(old: &[&'a str], new: &[&'a str]) -> Vec<Edit<'a>> {
    let before = old
        .iter()
        .zip(new)
        .take_while(|(left, right)| left == right)
        .count();
    let (head, old) = old.split_at(before);
    let (_, new) = new.split_at(before);
    let after = old
        .iter()
        .rev()
        .zip(new.iter().rev())
        .take_while(|(left, right)| left == right)
        .count();
    let (old, tail) = old.split_at(old.len() - after);
    let (new, _) = new.split_at(new.len() - after);
    let mut edits: Vec<Edit<'a>> = head.iter().map(|line| Edit::Keep(line)).collect();
    edits.extend(changed(old, new));
    edits.extend(tail.iter().map(|line| Edit::Keep(line)));
    edits
}

/// The edits between two stretches that share neither their first nor their last line.
fn changed<'a>(old: &[&'a str], new: &[&'a str]) -> Vec<Edit<'a>> {
    if old.len().saturating_mul(new.len()) > TABLE_CELLS_MAX {
        let removed = old.iter().map(|line| Edit::Remove(line));
        return removed.chain(new.iter().map(|line| Edit::Add(line))).collect();
    }
    let common = common_lengths(old, new);
    let length = |left: usize, right: usize| {
        common
            .get(left)
            .and_then(|row| row.get(right))
            .copied()
            .unwrap_or(0)
    };
    let (mut left, mut right) = (0, 0);
    let mut edits = Vec::new();
    loop {
        match (old.get(left), new.get(right)) {
            (Some(line), Some(other)) if line == other => {
                edits.push(Edit::Keep(line));
                left += 1;
                right += 1;
            }
            (Some(line), other) if other.is_none() || length(left + 1, right) >= length(left, right + 1) => {
                edits.push(Edit::Remove(line));
                left += 1;
            }
            (_, Some(line)) => {
                edits.push(Edit::Add(line));
                right += 1;
            }
            (_, None) => return edits,
        }
    }
}

/// `table[i][j]`: the length of the longest common subsequence of `old[i..]` and `new[j..]`.
fn common_lengths(old: &[&str], new: &[&str]) -> Vec<Vec<u32>> {
    let mut table = vec![vec![0; new.len() + 1]];
    for line in old.iter().rev() {
        let below = table.last().cloned().unwrap_or_default();
        let mut row = vec![0; new.len() + 1];
        let mut right = 0;
        for (((cell, other), diagonal), under) in row
            .iter_mut()
            .zip(new)
            .zip(below.iter().skip(1))
            .zip(&below)
            .rev()
        {
            *cell = if line == other {
                diagonal + 1
            } else {
                right.max(*under)
            };
            right = *cell;
        }
        table.push(row);
    }
    table.reverse();
    table
}

/// Ranges of edits that are printed together: changes with their context, merged where they touch.
fn hunks(edits: &[Edit<'_>]) -> Vec<std::ops::Range<usize>> {
    let mut hunks: Vec<std::ops::Range<usize>> = Vec::new();
    for (index, edit) in edits.iter().enumerate() {
        if matches!(edit, Edit::Keep(_)) {
            continue;
        }
        let start = index.saturating_sub(CONTEXT_LINES);
        let end = (index + CONTEXT_LINES + 1).min(edits.len());
        match hunks.last_mut() {
            Some(last) if last.end >= start => last.end = end,
            Some(_) | None => hunks.push(start..end),
        }
    }
    hunks
}

fn write_hunk(text: &mut String, edits: &[Edit<'_>], hunk: std::ops::Range<usize>) {
    let before = edits.get(..hunk.start).unwrap_or_default();
    let shown = edits.get(hunk).unwrap_or_default();
    let range =
        |start: usize, count: usize| format!("{},{count}", if count == 0 { start } else { start + 1 });
    let (old_start, new_start) = (count_old(before), count_new(before));
    let old_range = range(old_start, count_old(shown));
    let new_range = range(new_start, count_new(shown));
    text.push_str(&format!("@@ -{old_range} +{new_range} @@\n"));
    for edit in shown {
        let (mark, line) = match edit {
            Edit::Keep(line) => (' ', line),
            Edit::Remove(line) => ('-', line),
            Edit::Add(line) => ('+', line),
        };
        text.push(mark);
        text.push_str(line);
        if !line.ends_with('\n') {
            text.push_str("\n\\ No newline at end of file\n");
        }
    }
}

fn count_old(edits: &[Edit<'_>]) -> usize {
    edits.iter().filter(|edit| !matches!(edit, Edit::Add(_))).count()
}

fn count_new(edits: &[Edit<'_>]) -> usize {
    edits
        .iter()
        .filter(|edit| !matches!(edit, Edit::Remove(_)))
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_documents_have_no_diff() {
        assert_eq!(unified("a\nb\n", "a\nb\n", "old", "new"), "");
    }

    #[test]
    fn a_changed_line_is_shown_in_its_context() {
        let old = "1\n2\n3\n4\n5\n6\n7\n8\n9\n";
        let new = "1\n2\n3\n4\nfive\n6\n7\n8\n9\n";
        assert_eq!(
            unified(old, new, "old", "new"),
            "--- old\n+++ new\n@@ -2,7 +2,7 @@\n 2\n 3\n 4\n-5\n+five\n 6\n 7\n 8\n"
        );
    }

    #[test]
    fn distant_changes_are_separate_hunks_and_near_ones_are_not() {
        let old: String = (0..40).map(|number| format!("{number}\n")).collect();
        let distant = old.replace("\n5\n", "\nfive\n").replace("\n30\n", "\n");
        assert_eq!(unified(&old, &distant, "a", "b").matches("@@ -").count(), 2);
        let near = old.replace("\n5\n", "\nfive\n").replace("\n8\n", "\n");
        assert_eq!(unified(&old, &near, "a", "b").matches("@@ -").count(), 1);
    }

    #[test]
    fn additions_to_nothing_and_a_missing_last_newline_are_differences() {
        assert_eq!(
            unified("", "a\n", "a", "b"),
            "--- a\n+++ b\n@@ -0,0 +1,1 @@\n+a\n"
        );
        assert!(unified("a\n", "a", "a", "b").ends_with("-a\n+a\n\\ No newline at end of file\n"));
    }

    #[test]
    fn the_longest_common_part_is_kept() {
        let diff = unified("a\nb\nc\nd\n", "b\nx\nd\n", "a", "b");
        assert!(diff.ends_with("-a\n b\n-c\n+x\n d\n"), "{diff}");
    }
}

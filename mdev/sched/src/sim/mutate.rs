//! Damaged text, for the tests of the parsers.

use std::string::String;
use std::vec::Vec;

/// One edit: where, a byte that says what, and how.
pub(crate) type Edit = (u32, u8, u8);

/// What stands in files that somebody got wrong.
const WORDS: [&str; 24] = [
    "-1",
    "0",
    "1e308",
    "nan",
    "inf",
    "-0.0",
    "18446744073709551616",
    "99999999999",
    "\"\"",
    "true",
    "[]",
    "{}",
    "[[tenant]]",
    "[gpu]",
    "=",
    "\n",
    ",",
    "latch",
    "\u{0}",
    "é",
    "0x10",
    "1979-05-27",
    "\"60000/1001\"",
    "1/0",
];

/// `text` after some edits: a character replaced, a stretch cut out, doubled, or replaced by a likely mistake.
pub(crate) fn mutate(text: &str, edits: &[Edit]) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    for &(at, what, how) in edits {
        if chars.is_empty() {
            break;
        }
        let from = at as usize % chars.len();
        let to = (from + usize::from(what)).min(chars.len());
        match how {
            0 => chars[from] = char::from(what),
            1 => drop(chars.drain(from..to)),
            2 => {
                let copy = chars[from..to].to_vec();
                chars.splice(from..from, copy);
            }
            _ => {
                // A whole value, so that the rest of the file still makes sense.
                let ends = |c: &char| !(c.is_alphanumeric() || "._-\"/+".contains(*c));
                let end = chars[from..].iter().position(ends).map_or(chars.len(), |n| from + n);
                let start = chars[..from].iter().rposition(ends).map_or(0, |n| n + 1);
                let word = WORDS[usize::from(what) % WORDS.len()];
                chars.splice(start..end.max(start), word.chars());
            }
        }
    }
    chars.into_iter().collect()
}

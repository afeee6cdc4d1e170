//! Where in a TOML file a value stands, so that a message can name the line and the key.

use std::fmt::Write;
use std::string::{String, ToString};
use std::{format, ops::Range};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The line of byte `at`, counted from 1.
pub(super) fn line(text: &str, at: usize) -> usize {
    let before = text.get(..at).unwrap_or(text);
    before.matches('\n').count() + 1
}

/// The key as it is written that `path` (as in `tenant[1].contract.budget`) means, and its line.
///
/// A step means the key of this name, or of this name with a unit (`budget_ms`), here or in the only
/// table inside (`jobs[0].sigma` is `jobs[0].lognormal.sigma`). What is not written out has the line of the
/// innermost table or list around it.
pub(super) fn resolve(text: &str, path: &str) -> (String, usize) {
    let Ok(root) = DeTable::parse(text) else { return (path.into(), 1) };
    let mut key = String::new();
    let mut at = 0;
    let mut here: Option<&Spanned<DeValue<'_>>> = None;
    let mut steps = path.split(['.', '[', ']']).filter(|s| !s.is_empty());
    for step in steps.by_ref() {
        let table = match here.map(Spanned::get_ref) {
            None => root.get_ref(),
            Some(DeValue::Table(t)) => t,
            Some(DeValue::Array(a)) => {
                let Some(next) = step.parse::<usize>().ok().and_then(|i| a.get(i)) else { break };
                key.extend(["[", step, "]"]);
                (at, here) = (next.span().start, Some(next));
                continue;
            }
            Some(_) => break,
        };
        let Some((name, next)) = member(table, step) else {
            add(&mut key, step);
            break;
        };
        add(&mut key, &name);
        (at, here) = (next.span().start, Some(next));
    }
    for step in steps {
        add(&mut key, step);
    }
    (key, line(text, at))
}

fn add(key: &mut String, name: &str) {
    if !key.is_empty() {
        key.push('.');
    }
    *key += name;
}

fn member<'a, 'i>(
    table: &'a DeTable<'i>,
    name: &str,
) -> Option<(String, &'a Spanned<DeValue<'i>>)> {
    for unit in ["", "_ms", "_s"] {
        let found = table.iter().find(|(k, _)| k.get_ref().strip_prefix(name) == Some(unit));
        if let Some((k, v)) = found {
            return Some((k.get_ref().to_string(), v));
        }
    }
    let (outer, only) = table.iter().next().filter(|_| table.len() == 1)?;
    let DeValue::Table(inside) = only.get_ref() else { return None };
    let (inner, found) = member(inside, name)?;
    Some((format!("{}.{inner}", outer.get_ref()), found))
}

/// The key whose value or name lies at `span`; empty where there is none.
pub(super) fn key_at(text: &str, span: &Range<usize>) -> String {
    let mut key = String::new();
    if let Ok(root) = DeTable::parse(text) {
        in_table(root.get_ref(), span, &mut key);
    }
    key
}

fn in_table(table: &DeTable<'_>, span: &Range<usize>, key: &mut String) {
    for (name, value) in table {
        let named = name.span() == *span;
        if named || holds(value, span) {
            add(key, name.get_ref());
            if !named {
                in_value(value, span, key);
            }
            return;
        }
    }
}

fn in_value(value: &Spanned<DeValue<'_>>, span: &Range<usize>, key: &mut String) {
    match value.get_ref() {
        DeValue::Table(t) => in_table(t, span, key),
        DeValue::Array(a) => {
            if let Some((i, v)) = a.iter().enumerate().find(|(_, v)| holds(v, span)) {
                let _ = write!(key, "[{i}]");
                in_value(v, span, key);
            }
        }
        _ => {}
    }
}

/// Whether `span` lies in the value. A table under a `[header]` has the header's span only, so its members
/// are asked.
fn holds(value: &Spanned<DeValue<'_>>, span: &Range<usize>) -> bool {
    let own = value.span();
    (own.start <= span.start && span.end <= own.end)
        || match value.get_ref() {
            DeValue::Table(t) => t.iter().any(|(k, v)| k.span() == *span || holds(v, span)),
            DeValue::Array(a) => a.iter().any(|v| holds(v, span)),
            _ => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "a = 1\n\n[[t]]\nname = \"x\"\n[[t]]\nname = \"y\"\n[t.c]\nb = [1,\n 2]\n\
        [u]\nbudget_ms = 3\njob = { lognormal = { sigma = 1 } }\n";

    #[test]
    fn a_path_leads_to_its_key_and_line() {
        for (path, key, line) in [
            ("a", "a", 1),
            ("t[0].name", "t[0].name", 4),
            ("t[1].name", "t[1].name", 6),
            ("t[1].c.b[1]", "t[1].c.b[1]", 9),
            ("t[1].c.none", "t[1].c.none", 7),
            ("u.budget", "u.budget_ms", 11),
            ("u.job.sigma", "u.job.lognormal.sigma", 12),
            ("u.job.mode.x", "u.job.mode.x", 12),
        ] {
            assert_eq!(resolve(TEXT, path), (key.into(), line), "{path}");
        }
        assert_eq!(resolve("not toml", "a"), ("a".into(), 1));
    }

    #[test]
    fn a_place_leads_to_its_key() {
        for (what, key) in
            [("1\n\n", "a"), ("\"y\"", "t[1].name"), ("c]", "t[1].c"), ("2]", "t[1].c.b[1]")]
        {
            let at = TEXT.find(what).unwrap();
            let end = at + if what.starts_with('"') { 3 } else { 1 };
            assert_eq!(key_at(TEXT, &(at..end)), key, "{what}");
        }
    }
}

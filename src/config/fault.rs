//! What is wrong with a config, in words that say where, what and what would be right.

use super::limits;
use std::fmt;
use toml::Value;

/// One thing wrong with a config.
///
/// Reads as `listeners.orders.backlog = 0: must be 1..=65535 (how many clients may wait to be accepted)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Full path of the key, such as `pools.v1.backends[0].weight`; a place such as `line 3, column 7` where the file
    /// is not TOML.
    pub key: String,
    /// The value as written, on one line and cut where long; `(hidden)` for a secret. Empty where there is none.
    pub value: String,
    /// What would be right.
    pub rule: String,
}

impl Fault {
    /// A fault of a key as such: it is missing, or nobody knows it.
    pub(super) fn of_key(key: String, rule: impl Into<String>) -> Self {
        Self { key, value: String::new(), rule: rule.into() }
    }

    /// The one fault of a text that is not TOML. The line itself is not repeated, for it may hold a token.
    pub(super) fn of_syntax(text: &str, error: &toml::de::Error) -> Self {
        let message = one_line(error.message());
        let Some(before) = error.span().and_then(|span| text.get(..span.start)) else {
            return Self::of_key("config".into(), message);
        };
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1;
        Self::of_key(format!("line {line}, column {column}"), message)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.value.as_str() {
            "" => write!(f, "{}: {}", self.key, self.rule),
            value => write!(f, "{} = {value}: {}", self.key, self.rule),
        }
    }
}

/// Why a config file gave no config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadError {
    /// The file itself could not be had; one line that names it and why.
    Unreadable(String),
    /// The file was read and is wrong; all that is wrong with it, at least one, in the order of keys.
    Faults(Vec<Fault>),
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(line) => f.write_str(line),
            Self::Faults(faults) => {
                for (at, fault) in faults.iter().enumerate() {
                    let end_of_last = if at == 0 { "" } else { "\n" };
                    write!(f, "{end_of_last}{fault}")?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for ReadError {}

/// A value as an operator would write it, on one line and not too long.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{:?}", cut(text)),
        other => cut(&one_line(&other.to_string())),
    }
}

/// A key as it stands in a path: bare, or quoted where TOML would need quotes.
pub(crate) fn shown_key(key: &str) -> String {
    let bare =
        !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
    let key = cut(key);
    if bare { key } else { format!("{key:?}") }
}

/// The known word that `wrong` was probably meant to be.
pub(super) fn nearest<'k>(
    wrong: &str,
    known: impl IntoIterator<Item = &'k str>,
) -> Option<&'k str> {
    // The distance takes memory in proportion to both lengths, and nobody mistypes a name into a page.
    if wrong.len() > limits::NAME_CHARS_MAX {
        return None;
    }
    known
        .into_iter()
        .map(|word| (strsim::normalized_damerau_levenshtein(wrong, word), word))
        .filter(|&(likeness, _)| likeness >= 0.5)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, word)| word)
}

/// A text that does not fill a page.
pub(crate) fn cut(text: &str) -> String {
    match text.char_indices().nth(limits::SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

fn one_line(text: &str) -> String {
    text.trim().replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_names_key_value_and_rule() {
        let fault = Fault {
            key: "listeners.orders.backlog".into(),
            value: "0".into(),
            rule: "must be 1..=65535 (how many clients may wait to be accepted)".into(),
        };
        assert_eq!(
            fault.to_string(),
            "listeners.orders.backlog = 0: must be 1..=65535 (how many clients may wait to be accepted)"
        );
    }

    #[test]
    fn a_long_or_crooked_value_stays_one_short_line() {
        let text = shown(&Value::String(format!("a\nb\u{1b}[2J{}", "x".repeat(1000))));
        assert!(text.starts_with("\"a\\nb\\u{1b}[2J"), "{text}");
        assert!(text.chars().count() < 120, "{text}");
        let list = shown(&Value::Array(vec![Value::String("a\nb".into()); 100]));
        assert!(!list.contains('\n') && list.chars().count() < 90, "{list}");
        assert_eq!(shown_key("a\nb"), "\"a\\nb\"");
    }

    #[test]
    fn the_nearest_word_is_near() {
        assert_eq!(nearest("baklog", ["bind", "backlog", "hop"]), Some("backlog"));
        assert_eq!(nearest("zebra", ["bind", "backlog", "hop"]), None);
        assert_eq!(nearest(&"backlog".repeat(100_000), ["backlog"]), None);
    }
}

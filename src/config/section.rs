//! Reads tables of TOML: every setting is asked for once, by key, default, domain and meaning.
//!
//! A wrong value is a fault, and reading goes on with the default, so that all faults come out at once. What was not
//! asked for is an unknown key. What was asked for is recorded, so that a test can hold the reference against it.

use super::Name;
use super::fault::{Fault, nearest, shown, shown_key};
use super::limits;
use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use toml::{Table, Value};

/// One setting as the reader asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Full path of the key, such as `listeners.orders.tcp.nodelay`.
    pub key: String,
    /// The default as TOML text, such as `"auto"`. `None`: the key is required.
    pub default: Option<String>,
    /// What the file says, as TOML text. `None` where it says nothing, and of a secret.
    pub value: Option<String>,
    /// What it must be and what it means: `1..=65535 (how many clients may wait to be accepted)`.
    pub rule: String,
}

/// What came out of reading: faults, and all settings that were asked for.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) faults: Vec<Fault>,
    pub(super) settings: Vec<Setting>,
}

impl Report {
    /// Adds a fault of a value.
    pub(super) fn fault(&mut self, key: &str, value: impl Display, rule: impl Into<String>) {
        let (key, value) = (key.to_owned(), value.to_string());
        self.faults.push(Fault { key, value, rule: rule.into() });
    }

    /// Whether nothing is wrong with this key so far: what a faulty key is held against would be a second fault for one
    /// mistake.
    pub(super) fn sound(&self, key: &str) -> bool {
        !self.faults.iter().any(|fault| fault.key == key)
    }
}

/// A table that is being read.
pub(super) struct Section<'r> {
    path: String,
    left: Table,
    asked: Vec<&'static str>,
    report: &'r mut Report,
}

/// Reads the whole file's table.
pub(super) fn read_root<T>(
    table: Table,
    report: &mut Report,
    read: impl FnOnce(&mut Section<'_>) -> T,
) -> T {
    Section::read(String::new(), table, report, read)
}

impl Section<'_> {
    /// Reads one table to its end: what `read` does not ask for is unknown.
    fn read<T>(
        path: String,
        left: Table,
        report: &mut Report,
        read: impl FnOnce(&mut Section<'_>) -> T,
    ) -> T {
        let mut section = Section { path, left, asked: Vec::new(), report };
        let value = read(&mut section);
        section.finish();
        value
    }

    fn finish(self) {
        for key in self.left.keys() {
            let rule = match nearest(key, self.asked.iter().copied()) {
                Some(known) => format!("unknown key; did you mean '{known}'?"),
                None => format!("unknown key; known here: {}", self.asked.join(", ")),
            };
            self.report.faults.push(Fault::of_key(join(&self.path, key), rule));
        }
    }

    /// The full path of a key in this table.
    pub(super) fn key(&self, key: &str) -> String {
        join(&self.path, key)
    }

    /// Whether the file has this key.
    pub(super) fn has(&self, key: &str) -> bool {
        self.left.contains_key(key)
    }

    fn take(&mut self, key: &'static str) -> Option<Value> {
        debug_assert!(!self.asked.contains(&key), "{key} is defined twice");
        self.asked.push(key);
        self.left.remove(key)
    }

    /// The one place where a setting is read. `None`: missing, or wrong and reported.
    fn ask<T>(
        &mut self,
        key: &'static str,
        default: Option<String>,
        rule: String,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Option<T> {
        let path = self.key(key);
        let required = default.is_none();
        let value = self.take(key);
        let read = value.as_ref().and_then(read);
        match &value {
            Some(value) if read.is_none() => {
                self.report.fault(&path, shown(value), format!("must be {rule}"));
            }
            None if required => {
                let rule = format!("missing; must be {rule}");
                self.report.faults.push(Fault::of_key(path.clone(), rule));
            }
            _ => {}
        }
        let value = value.as_ref().map(written);
        self.report.settings.push(Setting { key: path, default, value, rule });
        read
    }

    /// `true` or `false`.
    pub(super) fn flag(&mut self, key: &'static str, default: bool, meaning: &str) -> bool {
        let rule = format!("true or false ({meaning})");
        self.ask(key, Some(default.to_string()), rule, Value::as_bool).unwrap_or(default)
    }

    /// A whole number within a range.
    pub(super) fn number<T>(
        &mut self,
        key: &'static str,
        default: T,
        range: RangeInclusive<T>,
        meaning: &str,
    ) -> T
    where
        T: TryFrom<i64> + PartialOrd + Copy + Display,
    {
        let rule = format!("{}..={} ({meaning})", range.start(), range.end());
        let read = |value: &Value| {
            value
                .as_integer()
                .and_then(|n| T::try_from(n).ok())
                .filter(|number| range.contains(number))
        };
        self.ask(key, Some(default.to_string()), rule, read).unwrap_or(default)
    }

    /// One of some words.
    pub(super) fn choice<T: Copy + PartialEq>(
        &mut self,
        key: &'static str,
        default: T,
        words: &[(&str, T)],
        meaning: &str,
    ) -> T {
        let quoted: Vec<String> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        let rule = format!("{} ({meaning})", quoted.join(" or "));
        let default_word =
            words.iter().zip(&quoted).find(|((_, value), _)| *value == default).map(|(_, q)| q);
        let read = |value: &Value| {
            let word = value.as_str()?;
            words.iter().find(|(known, _)| *known == word).map(|&(_, value)| value)
        };
        self.ask(key, Some(default_word.cloned().unwrap_or_default()), rule, read)
            .unwrap_or(default)
    }

    /// Words that `read` understands. `domain` says which; `read` gives `None` for others.
    pub(super) fn text<T>(
        &mut self,
        key: &'static str,
        default: &str,
        domain: &str,
        meaning: &str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let default = Value::from(default).to_string();
        self.ask(key, Some(default), format!("{domain} ({meaning})"), |v| read(v.as_str()?))
    }

    /// Words that must not be repeated in a fault.
    pub(super) fn secret(
        &mut self,
        key: &'static str,
        domain: &str,
        meaning: &str,
        fits: impl FnOnce(&str) -> bool,
    ) -> String {
        let faults = self.report.faults.len();
        let read = |text: &str| (text.is_empty() || fits(text)).then(|| text.to_owned());
        let text = self.text(key, "", domain, meaning, read);
        for fault in &mut self.report.faults[faults..] {
            fault.value = "(hidden)".into();
        }
        if let Some(setting) = self.report.settings.last_mut() {
            setting.value = None;
        }
        text.unwrap_or_default()
    }

    /// The name of something defined elsewhere, or something else that only a cross-check can judge; required where
    /// there is no default.
    pub(super) fn name(
        &mut self,
        key: &'static str,
        default: Option<&str>,
        domain: &str,
        meaning: &str,
    ) -> Option<String> {
        let read = |value: &Value| value.as_str().map(str::to_owned);
        let default = default.map(|text| Value::from(text).to_string());
        self.ask(key, default, format!("{domain} ({meaning})"), read)
    }

    /// An address with a port of at least `port_min`; required where there is no default.
    pub(super) fn address(
        &mut self,
        key: &'static str,
        default: Option<SocketAddr>,
        port_min: u16,
        meaning: &str,
    ) -> Option<SocketAddr> {
        let rule = format!(
            "ip:port, as \"10.0.0.1:9000\" or \"[::1]:9000\", port {port_min}..=65535 ({meaning})"
        );
        let read = |value: &Value| {
            let address: SocketAddr = value.as_str()?.parse().ok()?;
            (address.port() >= port_min).then_some(address)
        };
        self.ask(key, default.map(|address| format!("\"{address}\"")), rule, read).or(default)
    }

    /// A share of a hundred, 0 by default.
    pub(super) fn percent(
        &mut self,
        key: &'static str,
        default: super::Percent,
        meaning: &str,
    ) -> super::Percent {
        let rule = format!("0..=100 with at most two decimals ({meaning})");
        let read = |value: &Value| {
            let whole = value.as_integer().and_then(|n| i32::try_from(n).ok()).map(f64::from);
            super::Percent::from_f64(whole.or_else(|| value.as_float())?)
        };
        self.ask(key, Some(default.as_f64().to_string()), rule, read).unwrap_or(default)
    }

    /// A table within this one; an absent one is all defaults.
    pub(super) fn table<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Section<'_>) -> T,
    ) -> T {
        let path = self.key(key);
        let table = match self.take(key) {
            Some(Value::Table(table)) => table,
            Some(other) => {
                self.report.fault(&path, shown(&other), format!("must be a table [{path}]"));
                Table::new()
            }
            None => Table::new(),
        };
        Section::read(path, table, self.report, read)
    }

    /// Tables with names of the operator's choice, 1 to `max`, in the order of their names. `None`: what has the name
    /// is no table, and that was reported.
    pub(super) fn named<T>(
        &mut self,
        key: &'static str,
        max: usize,
        mut read: impl FnMut(&mut Section<'_>) -> T,
    ) -> Vec<(Name, Option<T>)> {
        let path = self.key(key);
        let rule = format!("must be 1..={max} tables [{path}.NAME]");
        let tables = match self.take(key) {
            Some(Value::Table(tables)) if (1..=max).contains(&tables.len()) => tables,
            Some(Value::Table(tables)) if !tables.is_empty() => {
                self.report.fault(&path, format!("({} tables)", tables.len()), rule);
                return Vec::new();
            }
            Some(other) => {
                self.report.fault(&path, shown(&other), rule);
                return Vec::new();
            }
            None => {
                self.report.faults.push(Fault::of_key(path, format!("missing; {rule}")));
                return Vec::new();
            }
        };
        let mut found = Vec::new();
        for (name, value) in tables {
            let path = join(&path, &name);
            if !is_name(&name) {
                let rule = format!("a name must be {NAME_DOMAIN}");
                self.report.faults.push(Fault::of_key(path.clone(), rule));
            }
            let value = match value {
                Value::Table(table) => Some(Section::read(path, table, self.report, &mut read)),
                other => {
                    self.report.fault(&path, shown(&other), format!("must be a table [{path}]"));
                    None
                }
            };
            found.push((name.into(), value));
        }
        found
    }

    /// A list of 1 to `max` tables; a plain string stands for a table with only the key `short`. `read` is told
    /// each item's place in the list. An item that is neither is reported and left out.
    pub(super) fn list<T>(
        &mut self,
        key: &'static str,
        max: usize,
        short: &'static str,
        mut read: impl FnMut(usize, &mut Section<'_>) -> T,
    ) -> Vec<T> {
        let path = self.key(key);
        let rule = format!("must be a list of 1..={max} {key}");
        let items = match self.take(key) {
            Some(Value::Array(items)) if (1..=max).contains(&items.len()) => items,
            Some(Value::Array(items)) if !items.is_empty() => {
                self.report.fault(&path, format!("({} items)", items.len()), rule);
                return Vec::new();
            }
            Some(other) => {
                self.report.fault(&path, shown(&other), rule);
                return Vec::new();
            }
            None => {
                self.report.faults.push(Fault::of_key(path, format!("missing; {rule}")));
                return Vec::new();
            }
        };
        let mut found = Vec::new();
        for (at, item) in items.into_iter().enumerate() {
            let path = format!("{path}[{at}]");
            let table = match item {
                Value::Table(table) => table,
                Value::String(text) => Table::from_iter([(short.to_owned(), Value::String(text))]),
                other => {
                    let rule = format!("must be a string ({short}) or a table {{ {short} = .. }}");
                    self.report.fault(&path, shown(&other), rule);
                    continue;
                }
            };
            found.push(Section::read(path, table, self.report, |item| read(at, item)));
        }
        found
    }
}

/// A value as its default would be written: `25.0` is `25`.
fn written(value: &Value) -> String {
    match value {
        Value::Float(number) => number.to_string(),
        other => other.to_string(),
    }
}

/// What names are made of, for rules.
pub(super) const NAME_DOMAIN: &str = "1..=64 of a-z A-Z 0-9 _ . -";

/// Whether a word may name a listener, pool or backend.
pub(super) fn is_name(word: &str) -> bool {
    (1..=limits::NAME_CHARS_MAX).contains(&word.len())
        && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

/// A full path from its keys.
pub(super) fn path(keys: &[&str]) -> String {
    keys.iter().map(|key| shown_key(key)).collect::<Vec<_>>().join(".")
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { shown_key(key) } else { format!("{path}.{}", shown_key(key)) }
}

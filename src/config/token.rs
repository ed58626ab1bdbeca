//! The admin token: what one looks like, and reading it from a file of its own.

use super::limits::{TOKEN_CHARS_MAX, TOKEN_CHARS_MIN};
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

/// What a token is made of, for rules.
pub(super) fn domain() -> String {
    format!("{TOKEN_CHARS_MIN}..={TOKEN_CHARS_MAX} visible ASCII characters without spaces")
}

/// Whether this can be a token: hard enough to guess, and fit for a header.
pub(super) fn fits(token: &str) -> bool {
    (TOKEN_CHARS_MIN..=TOKEN_CHARS_MAX).contains(&token.len())
        && token.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The token in a file, without the space around it.
///
/// # Errors
/// Why there is none, in words that do not repeat the content.
pub(super) fn read(path: &Path) -> Result<String, String> {
    let cannot = |error: std::io::Error| format!("cannot be read: {error}");
    // Asked before it is opened, for opening a pipe would wait until somebody writes to it.
    if !std::fs::metadata(path).map_err(cannot)?.is_file() {
        return Err("cannot be read: not a regular file".into());
    }
    let room = 2 * TOKEN_CHARS_MAX;
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(room as u64).read_to_end(&mut bytes))
        .map_err(cannot)?;
    let text = String::from_utf8(bytes).unwrap_or_default();
    let token = text.trim();
    if !fits(token) {
        return Err(format!("the file must hold {}", domain()));
    }
    Ok(token.to_owned())
}

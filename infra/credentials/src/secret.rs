//! A text that shows itself only where it is asked for by name.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

/// Stands in for a secret that is set where settings are written. Reading it gives a secret of just this text: whoever
/// reads what was written has to refuse it.
pub const HIDDEN: &str = "(not shown)";

/// A setting that must not be seen, such as a key or a password; empty where there is none.
///
/// Its `Debug` output says only whether it is set, and it has no `Display`. Serde reads the text, but writes [`HIDDEN`] in
/// its place, or nothing where it is empty. [`Secret::expose`] is the only way to the text.
///
/// `==` is for comparing settings. Its time depends on the texts: what a stranger brings has to be compared by hashes.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Hides a text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text. To be used at once, and not to be kept where it could be shown.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether none is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_empty() { "Secret(none)" } else { "Secret(..)" })
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(if self.is_empty() { "" } else { HIDDEN })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_read_but_neither_shown_nor_written() {
        let secret: Secret = serde_json::from_str(r#""sesame""#).unwrap();
        assert_eq!(secret.expose(), "sesame");
        assert_eq!(format!("{secret:?} {secret:#?}"), "Secret(..) Secret(..)");
        assert_eq!(serde_json::to_string(&secret).unwrap(), r#""(not shown)""#);
        assert!(serde_json::from_str::<Secret>("3").is_err());
    }

    #[test]
    fn a_secret_that_is_not_set_is_seen_to_be_none() {
        let none = Secret::default();
        assert!(none.is_empty() && !Secret::new("x").is_empty());
        assert_eq!(format!("{none:?}"), "Secret(none)");
        assert_eq!(serde_json::to_string(&none).unwrap(), r#""""#);
    }
}

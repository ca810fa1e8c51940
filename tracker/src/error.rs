//! What the operator has to act on. What viewers do wrong is no error here: they are told, and it is counted.

/// Why the tracker can't start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is out of range or does not parse.
    #[error("tracker: {0}")]
    Config(String),
}

//! Which recordings have to go. Pure.

/// A closed recording, as far as this matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    /// Its key in the registry.
    pub(super) folder: String,
    pub(super) closed_ms: u64,
    pub(super) bytes: u64,
}

/// How long and how much is kept; none: without limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) age_max_ms: Option<u64>,
    pub(super) bytes_max: Option<u64>,
}

/// The folders of the recordings to delete, oldest first. `open_bytes` are taken by recordings that are still being
/// made: they count, but cannot be deleted.
pub(super) fn plan(mut closed: Vec<Candidate>, open_bytes: u64, now_ms: u64, limits: Limits) -> Vec<String> {
    closed.sort_by_key(|candidate| candidate.closed_ms);
    let mut bytes = closed.iter().map(|candidate| candidate.bytes).sum::<u64>() + open_bytes;
    let mut expired = Vec::new();
    for candidate in closed {
        let is_old = limits.age_max_ms.is_some_and(|max| candidate.closed_ms.saturating_add(max) <= now_ms);
        if !is_old && limits.bytes_max.is_none_or(|max| bytes <= max) {
            break;
        }
        bytes -= candidate.bytes;
        expired.push(candidate.folder);
    }
    expired
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed() -> Vec<Candidate> {
        [("c", 300, 10), ("a", 100, 10), ("b", 200, 10)]
            .map(|(folder, closed_ms, bytes)| Candidate { folder: folder.to_owned(), closed_ms, bytes })
            .to_vec()
    }

    #[test]
    fn oldest_recordings_go_first_and_no_more_than_needed() {
        let limits = |age_max_ms, bytes_max| Limits { age_max_ms, bytes_max };
        for (open_bytes, limits, expected) in [
            (0, limits(None, None), &[][..]),
            (0, limits(None, Some(30)), &[]),
            (0, limits(None, Some(29)), &["a"]),
            (5, limits(None, Some(30)), &["a"]),
            (100, limits(None, Some(30)), &["a", "b", "c"]),
            (0, limits(Some(901), None), &[]),
            (0, limits(Some(900), None), &["a"]),
            (0, limits(Some(800), Some(30)), &["a", "b"]),
            (0, limits(Some(900), Some(10)), &["a", "b"]),
        ] {
            assert_eq!(plan(closed(), open_bytes, 1_000, limits), expected, "{open_bytes} {limits:?}");
        }
    }
}

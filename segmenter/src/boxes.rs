//! Boxes of MP4 (ISO/IEC 14496-12), one inside the other. Pure.
//!
//! The bytes are anybody's: what cannot be read is none, never a panic. The lint has a stricter reader of its own, in
//! `playlist/src/lint/mp4.rs`.

/// A box's type and content, one after the other, as far as they can be read.
pub(crate) fn boxes(mut bytes: &[u8]) -> impl Iterator<Item = ([u8; 4], &[u8])> {
    std::iter::from_fn(move || {
        let size = number32(bytes, 0)? as usize;
        let kind = bytes.get(4..8)?.try_into().ok()?;
        // To the end, which only the last one may. Sizes of 64 bits are for more media than we take.
        let size = if size == 0 { bytes.len() } else { size };
        let content = bytes.get(8..size)?;
        bytes = bytes.get(size..)?;
        Some((kind, content))
    })
}

/// The content of the first box of a kind.
pub(crate) fn child<'a>(bytes: &'a [u8], kind: &[u8; 4]) -> Option<&'a [u8]> {
    boxes(bytes).find(|(found, _)| found == kind).map(|(_, content)| content)
}

/// The four bytes at `at` as a number.
pub(crate) fn number32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// The two bytes at `at` as a number.
pub(crate) fn number16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

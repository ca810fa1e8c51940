//! The machine-readable clock in the top strip of each test-pattern frame.
//!
//! Glass-to-glass latency is read from pixels: what the publisher draws here, a page or a test reads from the
//! decoded frame. The frame is divided into [`COLUMNS`] equal columns; columns 0 and 51 are white, 1 and 50 black
//! (guards), columns 2..=49 hold 48 bits, most significant first, white = 1: the low 40 bits of the unix time in
//! milliseconds, then an 8-bit checksum, the XOR of those five bytes. The strip's height is 1/12 of the frame's,
//! at least 16 pixels. The same rule is implemented in TypeScript by the watch page.

/// Columns of the strip: four guards and 48 bits.
pub const COLUMNS: usize = 52;
/// Bits of the time that the strip holds: 34 years of milliseconds before it repeats.
pub const TIME_BITS: u32 = 40;
/// A strip lower than this does not survive chroma subsampling and scaling.
const HEIGHT_MIN: usize = 16;
/// Luma of white and black in the limited range that H.264 uses by default, and the threshold half way.
const WHITE: u8 = 235;
const BLACK: u8 = 16;
const THRESHOLD: u32 = 126;

/// The strip's height in a frame of `height` lines.
pub fn strip_height(height: usize) -> usize {
    (height / 12).max(HEIGHT_MIN).min(height)
}

/// Draws `unix_ms` into the luma plane of a frame of `width` × `height` whose lines are `stride` bytes apart.
///
/// Chroma is not touched: the caller keeps it neutral under the strip.
pub fn draw(plane: &mut [u8], stride: usize, width: usize, height: usize, unix_ms: u64) {
    let word = encode(unix_ms);
    let strip = strip_height(height);
    let mut line = vec![BLACK; width];
    for column in 0..COLUMNS {
        let is_white = match column {
            0 | 51 => true,
            1 | 50 => false,
            _ => word >> (49 - column) & 1 == 1,
        };
        let (from, to) = (column * width / COLUMNS, (column + 1) * width / COLUMNS);
        line[from..to].fill(if is_white { WHITE } else { BLACK });
    }
    for row in plane.chunks_mut(stride).take(strip) {
        row[..width].copy_from_slice(&line);
    }
}

/// Reads the strip from a luma plane: the low [`TIME_BITS`] bits of the unix time in milliseconds at which the
/// frame was generated, or nothing when guards or checksum do not fit. [`expand`] completes the value.
///
/// The threshold fits limited-range luma (16 to 235) and full-range luma alike.
pub fn read(plane: &[u8], stride: usize, width: usize, height: usize) -> Option<u64> {
    if width < COLUMNS || height < HEIGHT_MIN || stride < width || plane.len() < stride * (height - 1) + width
    {
        return None;
    }
    let middle_row = strip_height(height) / 2;
    let is_white = |column: usize| {
        let middle = (2 * column + 1) * width / (2 * COLUMNS);
        let mut sum = 0;
        for row in middle_row - 1..=middle_row + 1 {
            for x in middle - 1..=middle + 1 {
                sum += u32::from(plane[row * stride + x.min(width - 1)]);
            }
        }
        sum > 9 * THRESHOLD
    };
    // Column 0's middle is at least half a cell from the border only when cells are wide enough.
    if width / (2 * COLUMNS) < 1 {
        return None;
    }
    if !is_white(0) || is_white(1) || is_white(COLUMNS - 2) || !is_white(COLUMNS - 1) {
        return None;
    }
    let word = (2..=49).fold(0u64, |word, column| word << 1 | u64::from(is_white(column)));
    let time = word >> 8;
    (checksum(time) == (word & 0xff) as u8).then_some(time)
}

/// Completes a value of [`read`] to full unix milliseconds: the moment nearest to `now_ms` with these low bits.
pub fn expand(low_bits: u64, now_ms: u64) -> u64 {
    let period = 1u64 << TIME_BITS;
    let base = now_ms & !(period - 1) | low_bits & (period - 1);
    [base.checked_sub(period), Some(base), base.checked_add(period)]
        .into_iter()
        .flatten()
        .min_by_key(|candidate| candidate.abs_diff(now_ms))
        .unwrap_or(base)
}

fn encode(unix_ms: u64) -> u64 {
    let time = unix_ms & ((1 << TIME_BITS) - 1);
    time << 8 | u64::from(checksum(time))
}

fn checksum(time: u64) -> u8 {
    time.to_be_bytes()[3..].iter().fold(0, |sum, byte| sum ^ byte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(width: usize, height: usize, stride: usize, unix_ms: u64) -> Vec<u8> {
        let mut plane = vec![128; stride * height];
        draw(&mut plane, stride, width, height, unix_ms);
        plane
    }

    proptest! {
        #[test]
        fn draw_then_read_is_identity(
            unix_ms in 0u64..1 << 48,
            width in 160usize..2000,
            height in 90usize..400,
            padding in 0usize..64,
        ) {
            let plane = frame(width, height, width + padding, unix_ms);
            let read = read(&plane, width + padding, width, height);
            prop_assert_eq!(read, Some(unix_ms & ((1 << 40) - 1)));
            prop_assert_eq!(read.map(|low| expand(low, unix_ms + 5_000)), Some(unix_ms));
        }
    }

    #[test]
    fn every_single_flipped_cell_is_noticed() {
        let (width, height) = (640, 360);
        let good = frame(width, height, width, 1_790_000_123_456);
        for column in 0..COLUMNS {
            let mut bad = good.clone();
            for row in bad.chunks_mut(width).take(strip_height(height)) {
                for luma in &mut row[column * width / COLUMNS..(column + 1) * width / COLUMNS] {
                    *luma = if *luma > 126 { BLACK } else { WHITE };
                }
            }
            assert_eq!(read(&bad, width, width, height), None, "column {column}");
        }
    }

    #[test]
    fn frames_without_a_clock_read_as_none() {
        for luma in [0, 16, 128, 235, 255] {
            assert_eq!(read(&vec![luma; 640 * 360], 640, 640, 360), None);
        }
        assert_eq!(read(&[], 640, 640, 360), None);
        assert_eq!(read(&[255; 100], 10, 10, 10), None);
    }

    #[test]
    fn known_time_has_the_documented_bits() {
        // 0x01_A0C4_2F00 has the bytes a0 c4 2f 00 after its leading 01: checksum 01^a0^c4^2f^00 = 4a.
        assert_eq!(encode(0x01_a0c4_2f00), 0x01a0_c42f_004a);
        assert_eq!(encode(0xffff_ff01_a0c4_2f00), 0x01a0_c42f_004a);
    }
}

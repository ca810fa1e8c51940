//! What a rung becomes for a given picture, and what it costs. Pure.

use super::config::Rung;

/// Bits per second for each pixel per second, where the operator set no limit: 2.8 Mbit/s at 1280x720.
const BITS_PER_PIXEL: f64 = 0.1;
/// Small pictures need more for each pixel.
const BITS_PER_SECOND_MIN: f64 = 150_000.0;
/// What limits and costs are computed for: how many there really are is known later.
const PICTURES_PER_SECOND: f64 = 30.0;
/// What one transcoding is: the unit of `transcodes_max`.
const UNIT_PIXELS: u64 = 1280 * 720;
/// Decoding takes this part of what encoding as many pixels does.
const DECODING_SHARE: u64 = 3;

/// The size of a rung for a picture: its shorter side has `height` pixels, but never more than the picture has. Even,
/// as x264 wants it.
pub(super) fn fit((width, height): (u32, u32), rung_height: u32) -> (u32, u32) {
    let shorter = width.min(height);
    let target = rung_height.min(shorter);
    let scale = |side: u32| {
        let exact = f64::from(side) * f64::from(target) / f64::from(shorter.max(1));
        ((exact / 2.0).round() as u32 * 2).max(16)
    };
    (scale(width), scale(height))
}

/// The most that a rung of this size may take, in bits per second.
pub(super) fn bits_per_second(rung: Rung, (width, height): (u32, u32)) -> u32 {
    rung.bits_per_second.unwrap_or_else(|| {
        let pixels = f64::from(width) * f64::from(height) * PICTURES_PER_SECOND;
        (pixels * BITS_PER_PIXEL).max(BITS_PER_SECOND_MIN) as u32
    })
}

/// What encoding pictures of this size takes, in thousandths of a transcoding.
pub(super) fn encoding_cost((width, height): (u32, u32)) -> usize {
    let pixels = u64::from(width) * u64::from(height);
    usize::try_from((pixels * 1000).div_ceil(UNIT_PIXELS)).unwrap_or(usize::MAX)
}

/// What decoding them takes.
pub(super) fn decoding_cost((width, height): (u32, u32)) -> usize {
    let pixels = u64::from(width) * u64::from(height);
    usize::try_from((pixels * 1000).div_ceil(UNIT_PIXELS * DECODING_SHARE)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rungs_keep_the_picture_s_shape_and_never_enlarge_it() {
        assert_eq!(fit((1920, 1080), 720), (1280, 720));
        assert_eq!(fit((1280, 720), 480), (854, 480));
        assert_eq!(fit((720, 1280), 480), (480, 854), "upright");
        assert_eq!(fit((640, 360), 720), (640, 360));
        assert_eq!(fit((641, 361), 720), (642, 362), "even");
        assert_eq!(fit((4096, 16), 48), (4096, 16));
    }

    #[test]
    fn cost_is_counted_in_pictures_of_1280x720() {
        assert_eq!(encoding_cost((1280, 720)), 1000);
        assert_eq!(encoding_cost((640, 360)), 250);
        assert_eq!(decoding_cost((1280, 720)), 334);
    }

    #[test]
    fn limit_follows_the_size_unless_it_is_set() {
        let rung = |bits_per_second| Rung { height: 720, bits_per_second };
        assert_eq!(bits_per_second(rung(None), (1280, 720)), 2_764_800);
        assert_eq!(bits_per_second(rung(None), (160, 90)), 150_000);
        assert_eq!(bits_per_second(rung(Some(900_000)), (1280, 720)), 900_000);
    }
}

//! The generated picture and sound: what `test-pattern` and `flash` show and play.
//!
//! Pure drawing: positions and times come in, pixels and samples go out. `source/live.rs` paces and encodes.
//! From top to bottom the test pattern has the machine-readable clock (`clock.rs`), colour bars, and an arena with
//! the time for people, a moving box, a lamp that lights with the beep, and a panel of noise that brings the
//! bitrate up to what a camera's picture has.

mod font;
pub(crate) mod tone;

use crate::{clock, options::Size};

/// How long flash, lamp and beep last. Three frames at 30 fps: seen by eyes and by samplers that skip frames.
pub(crate) const BEEP_US: i64 = 100_000;

/// 75 % bars in limited-range BT.709-ish YUV: exact colorimetry matters less than that they differ.
const BARS: [[u8; 3]; 7] = [
    [180, 128, 128],
    [162, 44, 142],
    [131, 156, 44],
    [112, 72, 58],
    [84, 184, 198],
    [65, 100, 212],
    [35, 212, 114],
];
const BLACK: u8 = 16;
const WHITE: u8 = 235;
const ARENA: u8 = 32;
const NEUTRAL: u8 = 128;
/// The noise texture is this much larger than its panel, to be shown at changing offsets.
const NOISE_MARGIN: usize = 64;

/// What a frame shows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    /// Counts frames from 0.
    pub(crate) number: u64,
    /// The publisher's wall clock, in microseconds: decides flash and time of day.
    pub(crate) unix_us: i64,
    /// What the machine-readable clock shows; without it there is no strip (black instead).
    pub(crate) strip_unix_ms: Option<u64>,
}

impl Moment {
    fn is_flash(&self) -> bool {
        self.unix_us.rem_euclid(1_000_000) < BEEP_US
    }
}

/// Which picture to draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Bars,
    Flash,
}

/// Draws frames of one size.
#[derive(Debug)]
pub(crate) struct Pattern {
    kind: Kind,
    width: usize,
    height: usize,
    noise: Vec<u8>,
    noise_area: Area,
}

#[derive(Clone, Copy, Debug)]
struct Area {
    x: usize,
    y: usize,
    width: usize,
    height: usize,
}

impl Pattern {
    /// `bits_per_pixel` of the encoded video sets how much noise there is to encode.
    pub(crate) fn new(kind: Kind, size: Size, bits_per_pixel: f64) -> Self {
        let (width, height) = (size.width as usize, size.height as usize);
        let arena = arena_top(height);
        let noise_area = Area {
            x: (width * 11 / 16) & !1,
            y: arena + (height - arena) / 8,
            width: width / 4,
            height: (height - arena) / 2,
        };
        let amplitude = (bits_per_pixel * 300.0).clamp(0.0, 24.0);
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let noise = (0..(noise_area.width + NOISE_MARGIN) * (noise_area.height + NOISE_MARGIN))
            .map(|_| {
                // xorshift64: any fixed sequence that motion search can't predict will do.
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let unit = (state >> 40) as f64 / (1u64 << 24) as f64;
                (100.0 + (unit * 2.0 - 1.0) * amplitude) as u8
            })
            .collect();
        Self { kind, width, height, noise, noise_area }
    }

    /// Draws plane 0 (luma).
    pub(crate) fn draw_luma(&self, moment: &Moment, plane: &mut [u8], stride: usize) {
        let strip = clock::strip_height(self.height);
        match self.kind {
            Kind::Flash => {
                let luma = if moment.is_flash() { WHITE } else { BLACK };
                for line in plane.chunks_mut(stride).take(self.height) {
                    line[..self.width].fill(luma);
                }
            }
            Kind::Bars => {
                for line in plane.chunks_mut(stride).take(arena_top(self.height)).skip(strip) {
                    for (bar, colour) in BARS.iter().enumerate() {
                        line[bar * self.width / 7..(bar + 1) * self.width / 7].fill(colour[0]);
                    }
                }
                self.draw_arena(moment, plane, stride);
            }
        }
        match moment.strip_unix_ms {
            Some(unix_ms) => clock::draw(plane, stride, self.width, self.height, unix_ms),
            None => fill(plane, stride, Area { x: 0, y: 0, width: self.width, height: strip }, BLACK),
        }
    }

    /// Draws plane 1 (U) or 2 (V), which have half the size. They are the same in each frame.
    pub(crate) fn draw_chroma(&self, index: usize, plane: &mut [u8], stride: usize) {
        let (width, height) = (self.width / 2, self.height / 2);
        let strip = clock::strip_height(self.height).div_ceil(2);
        let bars = strip..arena_top(self.height) / 2;
        for (y, line) in plane.chunks_mut(stride).take(height).enumerate() {
            if self.kind == Kind::Bars && bars.contains(&y) {
                for (bar, colour) in BARS.iter().enumerate() {
                    line[bar * width / 7..(bar + 1) * width / 7].fill(colour[index]);
                }
            } else {
                line[..width].fill(NEUTRAL);
            }
        }
    }

    fn draw_arena(&self, moment: &Moment, plane: &mut [u8], stride: usize) {
        let top = arena_top(self.height);
        let height = self.height - top;
        fill(plane, stride, Area { x: 0, y: top, width: self.width, height }, ARENA);

        let scale = (self.width / 150).min(height / 24).max(1);
        let (text, number) = (time_of_day(moment.unix_us), format!("#{:07}", moment.number));
        let margin = self.width / 20;
        font::draw(plane, stride, margin, top + height / 8, scale, &text);
        font::draw(plane, stride, margin, top + height / 8 + 10 * scale, scale.div_ceil(2), &number);

        // The box crosses the lane below once in two seconds, there and back: a dropped frame shows as a jump.
        let side = height.min(self.width) / 6;
        let lane = (self.width - side) as i64;
        let phase = moment.unix_us.rem_euclid(4_000_000);
        let way = if phase < 2_000_000 { phase } else { 4_000_000 - phase };
        let x = (lane * way / 2_000_000) as usize;
        let bottom = self.height - side - height / 12;
        fill(plane, stride, Area { x, y: bottom, width: side, height: side }, 200);

        let lamp =
            Area { x: margin + 54 * scale, y: top + height / 8 + 10 * scale, width: side, height: side / 2 };
        fill(plane, stride, lamp, if moment.is_flash() { WHITE } else { BLACK });
        self.draw_noise(moment, plane, stride);
    }

    fn draw_noise(&self, moment: &Moment, plane: &mut [u8], stride: usize) {
        let Area { x, y, width, height } = self.noise_area;
        let margin = NOISE_MARGIN as u64;
        let (dx, dy) = ((moment.number * 37 % margin) as usize, (moment.number * 23 % margin) as usize);
        for row in 0..height {
            let from = (row + dy) * (width + NOISE_MARGIN) + dx;
            let line = (y + row) * stride + x;
            plane[line..line + width].copy_from_slice(&self.noise[from..from + width]);
        }
    }
}

/// Even, so that chroma lines up.
fn arena_top(height: usize) -> usize {
    (height * 11 / 20) & !1
}

fn fill(plane: &mut [u8], stride: usize, area: Area, luma: u8) {
    for line in plane.chunks_mut(stride).skip(area.y).take(area.height) {
        let end = (area.x + area.width).min(line.len());
        line[area.x.min(end)..end].fill(luma);
    }
}

/// UTC, as hours, minutes, seconds and milliseconds.
fn time_of_day(unix_us: i64) -> String {
    let ms = unix_us.div_euclid(1000).rem_euclid(86_400_000);
    format!("{:02}:{:02}:{:02}.{:03}", ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60, ms % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(kind: Kind, moment: &Moment, stride: usize) -> Vec<u8> {
        let mut plane = vec![0; stride * 360];
        Pattern::new(kind, Size { width: 640, height: 360 }, 0.1).draw_luma(moment, &mut plane, stride);
        plane
    }

    #[test]
    fn each_frame_carries_its_clock_and_differs_from_the_one_before() {
        let at = |number: u64| Moment {
            number,
            unix_us: 1_790_000_000_500_000 + number as i64 * 33_333,
            strip_unix_ms: Some(1_790_000_000_500 + number * 33),
        };
        let (first, second) = (draw(Kind::Bars, &at(0), 704), draw(Kind::Bars, &at(1), 704));
        let now = 1_790_000_000_000;
        let read = |plane: &[u8]| clock::read(plane, 704, 640, 360).map(|low| clock::expand(low, now));
        assert_eq!(read(&first), Some(1_790_000_000_500));
        assert_eq!(read(&second), Some(1_790_000_000_533));
        let arena = arena_top(360) * 704;
        assert_ne!(first[arena..], second[arena..]);
    }

    #[test]
    fn flash_is_white_for_the_first_tenth_of_each_second_only() {
        for (offset_us, luma) in [(0, WHITE), (99_999, WHITE), (100_000, BLACK), (999_999, BLACK)] {
            let moment =
                Moment { number: 0, unix_us: 1_790_000_000_000_000 + offset_us, strip_unix_ms: None };
            let plane = draw(Kind::Flash, &moment, 640);
            assert_eq!(plane[200 * 640 + 320], luma, "{offset_us}");
            assert_eq!(clock::read(&plane, 640, 640, 360), None);
        }
    }

    #[test]
    fn every_allowed_size_can_be_drawn() {
        for (width, height) in [(160, 90), (90 * 2, 3840), (3840, 90), (720, 1280)] {
            let pattern = Pattern::new(Kind::Bars, Size { width, height }, 0.1);
            let moment = Moment { number: u64::MAX / 64, unix_us: 1, strip_unix_ms: Some(1) };
            pattern.draw_luma(&moment, &mut vec![0; (width * height) as usize], width as usize);
            pattern.draw_chroma(1, &mut vec![0; (width * height / 4) as usize], width as usize / 2);
        }
    }

    #[test]
    fn time_of_day_reads_as_people_write_it() {
        assert_eq!(time_of_day(1_790_000_000_123_456), "14:13:20.123");
    }
}

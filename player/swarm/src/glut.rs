//! Whether what is pushed does nothing but fill the viewer's line.
//!
//! A line that is full delays what parents push; what is late is fetched from the origin, over the same line; then it comes
//! a second time, and the line stays full of what nobody needs. A viewer on a line of one and a half times the stream's rate
//! did not find out of that by itself. So pushes are refused for a while, in which it lives on what it asks for.

use crate::{Span, Time, rng::Rng};

/// In so many looks in a row, half a second apart, most of what was pushed was there already.
const LOOKS: u8 = 4;
/// Fewer blocks between two looks say nothing.
const BLOCKS_MIN: u32 = 2;
/// Pushes are refused for so long, and up to half as long again by lot.
const PAUSE: Span = Span::from_secs(5);

/// What came of the pushes of late.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Glut {
    /// Pushed blocks since the last look.
    useful: u32,
    useless: u32,
    looks: u8,
    until: Option<Time>,
}

impl Glut {
    /// A block was pushed.
    pub(crate) fn note(&mut self, is_useless: bool) {
        let count = if is_useless { &mut self.useless } else { &mut self.useful };
        *count = count.saturating_add(1);
    }

    /// To be called twice a second.
    pub(crate) fn look(&mut self, now: Time, rng: &mut Rng) {
        let is_glut = self.useless >= BLOCKS_MIN && self.useless > 2 * self.useful;
        self.looks = if is_glut { self.looks + 1 } else { 0 };
        (self.useful, self.useless) = (0, 0);
        if self.looks >= LOOKS {
            self.looks = 0;
            self.until = Some(now + PAUSE + Span::from_us(rng.below(PAUSE.as_us() / 2)));
        }
    }

    /// Whether pushes are refused.
    pub(crate) fn is_on(&self, now: Time) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After how many looks with so many useless and useful blocks each pushes are refused.
    fn refused_after(useless: u32, useful: u32) -> Option<u64> {
        let (mut glut, mut rng) = (Glut::default(), Rng::new(1));
        (1..100).find(|look| {
            (0..useless).for_each(|_| glut.note(true));
            (0..useful).for_each(|_| glut.note(false));
            let now = Time::from_ms(look * 500);
            glut.look(now, &mut rng);
            glut.is_on(now)
        })
    }

    #[test]
    fn pushes_are_refused_where_most_of_them_are_useless_for_two_seconds() {
        assert_eq!(refused_after(10, 4), Some(4));
        assert_eq!(refused_after(10, 5), None, "a third of use is worth the rest");
        assert_eq!(refused_after(1, 0), None, "a block now and then fills no line");
        assert_eq!(refused_after(0, 10), None);
    }

    #[test]
    fn they_are_taken_again_after_a_while() {
        let (mut glut, mut rng) = (Glut::default(), Rng::new(1));
        for ms in [500, 1_000, 1_500, 2_000] {
            (0..10).for_each(|_| glut.note(true));
            glut.look(Time::from_ms(ms), &mut rng);
        }
        assert!(glut.is_on(Time::from_ms(6_900)) && !glut.is_on(Time::from_ms(9_500)));
    }
}

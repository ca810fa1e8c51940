//! A set of block indexes of one piece.
//!
//! Nearly every piece has at most 64 blocks, so the first word is inline and no memory is allocated for it.

/// More blocks than a piece can have: 64 MiB in blocks of 16 KiB.
pub(crate) const BLOCKS_MAX: u32 = 4096;

/// A set of numbers below [`BLOCKS_MAX`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bits {
    first: u64,
    rest: Vec<u64>,
}

impl Bits {
    /// The numbers below `count`.
    pub(crate) fn below(count: u32) -> Self {
        let count = count.min(BLOCKS_MAX);
        let full = |bits: u32| if bits >= 64 { u64::MAX } else { (1 << bits) - 1 };
        let mut rest = Vec::new();
        for word in 1..count.div_ceil(64) {
            rest.push(full(count - word * 64));
        }
        Self { first: full(count), rest }
    }

    pub(crate) fn contains(&self, index: u32) -> bool {
        self.word(index / 64) >> (index % 64) & 1 == 1
    }

    /// Adds a number; says whether it was new. Numbers over the limit are ignored.
    pub(crate) fn insert(&mut self, index: u32) -> bool {
        if index >= BLOCKS_MAX || self.contains(index) {
            return false;
        }
        *self.word_mut(index / 64) |= 1 << (index % 64);
        true
    }

    pub(crate) fn remove(&mut self, index: u32) {
        if self.contains(index) {
            *self.word_mut(index / 64) &= !(1 << (index % 64));
        }
    }

    pub(crate) fn union(&mut self, other: &Self) {
        self.first |= other.first;
        while self.rest.len() < other.rest.len() {
            self.rest.push(0);
        }
        for (at, theirs) in other.rest.iter().enumerate() {
            self.rest[at] |= theirs;
        }
    }

    pub(crate) fn subtract(&mut self, other: &Self) {
        self.first &= !other.first;
        for (at, mine) in self.rest.iter_mut().enumerate() {
            *mine &= !other.rest.get(at).copied().unwrap_or(0);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first == 0 && self.rest.iter().all(|word| *word == 0)
    }

    pub(crate) fn count(&self) -> u32 {
        let mut count = 0;
        for word in self.words() {
            count += word.count_ones();
        }
        count
    }

    /// The numbers in the set, ascending.
    pub(crate) fn iter(&self) -> Iter<'_> {
        Iter { word: self.first, from: 0, rest: self.rest.iter() }
    }

    /// The set as words, the least significant bit of the first being 0.
    pub(crate) fn words(&self) -> impl Iterator<Item = u64> {
        (0..=self.rest.len() as u32).map(|word| self.word(word))
    }

    fn word(&self, word: u32) -> u64 {
        if word == 0 { self.first } else { self.rest.get(word as usize - 1).copied().unwrap_or(0) }
    }

    /// Adds numbers given as a bitmap, the least significant bit of the first byte being 0.
    pub(crate) fn add_bitmap(&mut self, bitmap: &[u8]) {
        for (byte, at) in bitmap.iter().zip(0_u32..) {
            *self.word_mut(at / 8) |= u64::from(*byte) << (at % 8 * 8);
        }
    }

    fn word_mut(&mut self, word: u32) -> &mut u64 {
        if word == 0 {
            return &mut self.first;
        }
        let word = word as usize - 1;
        while self.rest.len() <= word {
            self.rest.push(0);
        }
        &mut self.rest[word]
    }
}

/// The numbers in a set. By hand, because a chain of the library's adapters is many times the code, which browsers
/// download.
#[derive(Debug)]
pub(crate) struct Iter<'a> {
    /// What is left of the present word, and the number of its first bit.
    word: u64,
    from: u32,
    rest: std::slice::Iter<'a, u64>,
}

impl Iterator for Iter<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        while self.word == 0 {
            self.word = *self.rest.next()?;
            self.from += 64;
        }
        let bit = self.word.trailing_zeros();
        self.word &= self.word - 1;
        Some(self.from + bit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    proptest::proptest! {
        #[test]
        fn behaves_like_a_set(steps in proptest::collection::vec((0_u32..300, proptest::bool::ANY), 0..200)) {
            let (mut bits, mut set) = (Bits::default(), BTreeSet::new());
            for (index, is_insert) in steps {
                if is_insert {
                    assert_eq!(bits.insert(index), set.insert(index));
                } else {
                    bits.remove(index);
                    set.remove(&index);
                }
            }
            assert!(bits.iter().eq(set.iter().copied()));
            assert_eq!(bits.count() as usize, set.len());
            assert_eq!(bits.is_empty(), set.is_empty());
        }
    }

    #[test]
    fn what_is_subtracted_is_out_and_the_rest_stays() {
        for (mine, theirs) in [(10, 4), (4, 10), (200, 70), (70, 200), (64, 64)] {
            let mut bits = Bits::below(mine);
            bits.subtract(&Bits::below(theirs));
            assert!(bits.iter().eq(theirs..mine.max(theirs)), "{mine} {theirs}");
        }
    }

    #[test]
    fn below_holds_each_number_once() {
        for count in [0, 1, 63, 64, 65, 128, 200, BLOCKS_MAX, BLOCKS_MAX + 1] {
            assert!(Bits::below(count).iter().eq(0..count.min(BLOCKS_MAX)), "{count}");
        }
    }

    #[test]
    fn a_number_over_the_limit_takes_no_memory() {
        let mut bits = Bits::default();
        assert!(!bits.insert(u32::MAX));
        assert!(bits.is_empty());
    }
}

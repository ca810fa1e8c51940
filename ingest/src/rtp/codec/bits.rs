//! A reader of bits, as the headers of H.264, VP9 and AV1 need it.

use super::Malformed;

/// Reads bits, most significant first.
#[derive(Clone, Debug)]
pub(super) struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Bits<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn bit(&mut self) -> Result<u32, Malformed> {
        let byte = self.bytes.get(self.at / 8).ok_or(Malformed("a header ends too early"))?;
        let bit = byte >> (7 - self.at % 8) & 1;
        self.at += 1;
        Ok(u32::from(bit))
    }

    pub(super) fn flag(&mut self) -> Result<bool, Malformed> {
        self.bit().map(|bit| bit == 1)
    }

    /// Up to 32 bits.
    pub(super) fn bits(&mut self, count: u32) -> Result<u32, Malformed> {
        let mut value = 0;
        for _ in 0..count {
            value = value << 1 | self.bit()?;
        }
        Ok(value)
    }

    /// `ue(v)` of H.264.
    pub(super) fn unsigned_exp_golomb(&mut self) -> Result<u32, Malformed> {
        let mut zeros = 0;
        while !self.flag()? {
            zeros += 1;
            if zeros > 31 {
                return Err(Malformed("an Exp-Golomb code is too long"));
            }
        }
        let rest = self.bits(zeros)?;
        Ok(((1u64 << zeros) - 1 + u64::from(rest)).min(u64::from(u32::MAX)) as u32)
    }

    /// `se(v)` of H.264.
    pub(super) fn signed_exp_golomb(&mut self) -> Result<i32, Malformed> {
        let code = i64::from(self.unsigned_exp_golomb()?);
        Ok(if code % 2 == 0 { -(code / 2) } else { (code + 1) / 2 } as i32)
    }
}

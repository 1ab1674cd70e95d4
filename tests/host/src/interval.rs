// SPDX-License-Identifier: GPL-2.0

//! Plain half-open intervals of bytes, for the checks that must not use the code under test.

use std::vec::Vec;

/// `[start, end)` in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interval {
    /// First byte.
    pub start: u64,
    /// First byte after it.
    pub end: u64,
}

/// The interval `[start, end)`.
pub const fn interval(start: u64, end: u64) -> Interval {
    Interval { start, end }
}

impl Interval {
    /// Length in bytes.
    pub fn size(self) -> u64 {
        self.end - self.start
    }

    /// Whether the two share a byte.
    pub fn meets(self, other: Interval) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// What is left of this interval when `others` are taken away, in ascending order.
    pub fn without(self, others: &[Interval]) -> Vec<Interval> {
        let mut left = Vec::from([self]);
        for &other in others {
            left = left
                .into_iter()
                .flat_map(|piece| {
                    [
                        interval(piece.start, piece.end.min(other.start)),
                        interval(piece.start.max(other.end), piece.end),
                    ]
                })
                .filter(|piece| piece.start < piece.end)
                .collect();
        }
        left
    }

    /// Whether `others` together cover all of it.
    pub fn inside(self, others: &[Interval]) -> bool {
        self.without(others).is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taking_away_leaves_the_pieces() {
        let whole = interval(10, 20);
        assert_eq!(whole.without(&[]), [whole]);
        assert_eq!(
            whole.without(&[interval(12, 13), interval(0, 11), interval(19, 25)]),
            [interval(11, 12), interval(13, 19)]
        );
        assert_eq!(whole.without(&[interval(20, 30), interval(0, 10)]), [whole]);
        assert!(whole.inside(&[interval(15, 20), interval(5, 15)]));
        assert!(!whole.inside(&[interval(15, 20), interval(5, 14)]));
    }
}

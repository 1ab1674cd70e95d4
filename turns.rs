// SPDX-License-Identifier: GPL-2.0

//! Who does which part when several CPUs share a job that falls into parts.
//!
//! [`Turns`] gives out each part once: the largest that is left of the node that asks, or when the
//! node has none left the largest of all, so that no CPU is idle while there is work, and what is
//! done last is small. [`crew`] says which CPUs are worth asking.
//!
//! Pure: `core` only, never panics; the storage is lent by the caller. Used by `parallel`.

#![cfg_attr(not(CONFIG_INTEL_TDX_HOST_KUNIT_TEST), forbid(unsafe_code))]
#![deny(missing_docs)]

use crate::memlist::NodeId;
use crate::store::{
    Store,
    StoreFull, //
};

/// A part of the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Where it is done best.
    node: NodeId,
    /// How much work it is, in any unit.
    size: u64,
    taken: bool,
}

impl Part {
    /// A part of `size`, done best on `node`.
    pub const fn new(node: NodeId, size: u64) -> Self {
        Part {
            node,
            size,
            taken: false,
        }
    }
}

/// The parts of a job that are left to do.
#[derive(Debug)]
pub struct Turns<S> {
    parts: S,
}

impl<S: Store<Part>> Turns<S> {
    /// All of `parts` are left.
    pub const fn new(parts: S) -> Self {
        Turns { parts }
    }

    /// Takes the part that a CPU of `node` does next, and answers its place in the list of parts;
    /// [`None`] when nothing is left.
    pub fn next(&mut self, node: NodeId) -> Option<usize> {
        // Places are compared the other way round: of equal parts the first comes first.
        let rank = |(index, part): &(usize, &Part)| {
            (part.node == node, part.size, core::cmp::Reverse(*index))
        };
        let parts = self.parts.as_slice().iter().enumerate();
        let (index, _) = parts.filter(|(_, part)| !part.taken).max_by_key(rank)?;
        self.parts.as_mut_slice().get_mut(index)?.taken = true;
        Some(index)
    }

    /// The parts, taken or not.
    pub fn parts(&self) -> &[Part] {
        self.parts.as_slice()
    }
}

/// Chooses from `cpus` (number and node) at most `most` that shall share `parts`, in the emptied
/// `chosen`: from each node as many as it has parts, then any.
///
/// # Errors
///
/// [`StoreFull`] if there is no room.
pub fn crew<C: Store<(u32, NodeId)>>(
    parts: &[Part],
    most: usize,
    cpus: &[(u32, NodeId)],
    chosen: &mut C,
) -> Result<(), StoreFull> {
    chosen.clear();
    for &cpu in cpus {
        let parts_there = parts.iter().filter(|part| part.node == cpu.1).count();
        let have = chosen.as_slice();
        let cpus_there = have.iter().filter(|other| other.1 == cpu.1).count();
        if have.len() < most && cpus_there < parts_there {
            chosen.push(cpu)?;
        }
    }
    for &cpu in cpus {
        if chosen.as_slice().len() < most && !chosen.as_slice().contains(&cpu) {
            chosen.push(cpu)?;
        }
    }
    Ok(())
}

#[cfg(any(test, CONFIG_INTEL_TDX_HOST_KUNIT_TEST))]
#[cfg_attr(
    CONFIG_INTEL_TDX_HOST_KUNIT_TEST,
    kernel::macros::kunit_tests(tdx_host_turns)
)]
mod tests {
    use super::*;
    use crate::store::SliceStore;

    const A: NodeId = NodeId::new(0);
    const B: NodeId = NodeId::new(1);
    const ELSEWHERE: NodeId = NodeId::new(-1);

    /// The parts in the order in which a CPU of `node` gets them.
    fn order<const N: usize>(parts: [Part; N], node: NodeId) -> [Option<usize>; N] {
        let mut space = parts;
        let mut store = SliceStore::new(&mut space);
        for part in parts {
            if store.push(part).is_err() {
                return [None; N];
            }
        }
        let mut turns = Turns::new(store);
        let order = [(); N].map(|()| turns.next(node));
        assert_eq!(turns.next(node), None);
        order
    }

    #[test]
    fn own_node_goes_first_and_large_parts_before_small() {
        let parts = [
            Part::new(A, 1),
            Part::new(B, 2),
            Part::new(A, 3),
            Part::new(B, 2),
        ];
        let some = |order: [usize; 4]| order.map(Some);
        assert_eq!(order(parts, A), some([2, 0, 1, 3]));
        assert_eq!(order(parts, B), some([1, 3, 2, 0]));
        assert_eq!(order(parts, ELSEWHERE), some([2, 1, 3, 0]));
    }

    #[test]
    fn nothing_is_left_of_nothing() {
        assert_eq!(order([], A), []);
    }

    /// Chooses with room for three.
    fn chosen(parts: &[Part], most: usize, cpus: &[(u32, NodeId)], expected: &[u32]) -> bool {
        let mut space = [(0, A); 3];
        let mut out = SliceStore::new(&mut space);
        let found = crew(parts, most, cpus, &mut out);
        let numbers = out.as_slice().iter().map(|(cpu, _)| *cpu);
        found.is_ok() && numbers.eq(expected.iter().copied())
    }

    #[test]
    fn crew_comes_from_where_the_parts_are() {
        let parts = [Part::new(B, 1), Part::new(A, 1), Part::new(B, 1)];
        let cpus = [(0, A), (1, A), (2, B), (3, B), (4, B)];
        assert!(chosen(&parts, 3, &cpus, &[0, 2, 3]));
        assert!(chosen(&parts, 1, &cpus, &[0]));
        assert!(chosen(&parts, 0, &cpus, &[]));
        // A node without parts helps those that have no CPUs.
        assert!(chosen(&parts, 3, &cpus[..2], &[0, 1]));
        assert!(chosen(&parts, 2, &cpus[2..], &[2, 3]));
        assert!(chosen(&[], 3, &cpus, &[0, 1, 2]));
    }

    #[test]
    fn crew_that_finds_no_room_is_an_error() {
        let cpus = [(0, A), (1, A), (2, B), (3, B)];
        assert!(!chosen(&[], 4, &cpus, &[0, 1, 2]));
    }
}

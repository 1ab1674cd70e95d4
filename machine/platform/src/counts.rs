// SPDX-License-Identifier: GPL-2.0

//! How many instructions the calls of some kernel functions take.
//!
//! The plugin counts the instructions of each processor and says when a [`Function`] is entered and
//! when something returns; [`Counts`] matches the two by the stack pointer. A call during which the
//! processor was interrupted is left out, so the numbers do not depend on when interrupts come.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A function whose calls are counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Function {
    /// Name of the symbol.
    pub name: String,
    /// Address of its first instruction.
    pub address: u64,
}

/// What is known of the calls of one function.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallCounts {
    /// Calls that returned or were interrupted.
    pub calls: u64,
    /// Those during which the processor took an interrupt or exception: not in the numbers below.
    pub interrupted: u64,
    /// Fewest instructions of a call; none if all were interrupted.
    pub min: Option<u64>,
    /// Of the calls in ascending order, the one in the middle (the lower of two).
    pub median: Option<u64>,
    /// Most instructions of a call.
    pub max: Option<u64>,
}

/// A call that has not returned yet.
#[derive(Clone, Copy, Debug)]
struct Open {
    function: usize,
    /// Stack pointer at the first instruction, where the return address lies.
    rsp: u64,
    /// Instructions that the processor had executed before the first.
    before: u64,
}

/// Calls of one function: how many took how many instructions.
#[derive(Clone, Debug, Default)]
struct Calls {
    by_length: BTreeMap<u64, u64>,
    interrupted: u64,
}

impl Calls {
    fn report(&self) -> CallCounts {
        let counted: u64 = self.by_length.values().sum();
        let at = |position: u64| {
            let mut seen = 0;
            let mut lengths = self.by_length.iter();
            let found = lengths.find(|(_, calls)| {
                seen += **calls;
                seen > position
            });
            found.map(|(length, _)| *length)
        };
        CallCounts {
            calls: counted + self.interrupted,
            interrupted: self.interrupted,
            min: at(0),
            median: at(counted.saturating_sub(1) / 2),
            max: self.by_length.keys().next_back().copied(),
        }
    }
}

/// The calls of all counted functions, on all processors.
#[derive(Debug, Default)]
pub struct Counts {
    functions: Vec<Function>,
    calls: Vec<Calls>,
    open: Vec<Vec<Open>>,
}

impl Counts {
    /// Counts calls of `functions` on `cpus` processors.
    pub fn new(functions: Vec<Function>, cpus: u32) -> Counts {
        Counts {
            calls: vec![Calls::default(); functions.len()],
            open: vec![Vec::new(); cpus as usize],
            functions,
        }
    }

    /// Index of the function that begins at `address`, for [`Counts::enter`].
    pub fn find(&self, address: u64) -> Option<usize> {
        self.functions.iter().position(|f| f.address == address)
    }

    /// Processor `lp` is about to execute the first instruction of `function`, with this stack
    /// pointer and so many instructions behind it. Answers how many calls are open there.
    pub fn enter(&mut self, lp: u32, function: usize, rsp: u64, before: u64) -> usize {
        let Some(open) = self.open.get_mut(lp as usize) else {
            return 0;
        };
        // The first instruction can also be the head of a loop.
        let again = |last: &Open| (last.function, last.rsp) == (function, rsp);
        if !open.last().is_some_and(again) {
            open.push(Open {
                function,
                rsp,
                before,
            });
        }
        open.len()
    }

    /// Processor `lp` is about to execute a RET with this stack pointer, and has executed so many
    /// instructions when it is done. Answers how many calls are open then.
    pub fn leave(&mut self, lp: u32, rsp: u64, after: u64) -> usize {
        let Some(open) = self.open.get_mut(lp as usize) else {
            return 0;
        };
        // More than one if a function jumps to another one at its end.
        while let Some(call) = open.pop_if(|call| call.rsp == rsp) {
            if let Some(calls) = self.calls.get_mut(call.function) {
                let length = after.saturating_sub(call.before);
                *calls.by_length.entry(length).or_default() += 1;
            }
        }
        open.len()
    }

    /// Processor `lp` has taken an interrupt or exception: its open calls are not counted.
    pub fn interrupt(&mut self, lp: u32) {
        for call in self
            .open
            .get_mut(lp as usize)
            .into_iter()
            .flat_map(|o| o.drain(..))
        {
            if let Some(calls) = self.calls.get_mut(call.function) {
                calls.interrupted += 1;
            }
        }
    }

    /// The functions that were called, by name.
    pub fn report(&self) -> BTreeMap<String, CallCounts> {
        let mut by_name: BTreeMap<&str, Calls> = BTreeMap::new();
        // Static functions of one name are one.
        for (function, calls) in self.functions.iter().zip(&self.calls) {
            let sum = by_name.entry(&function.name).or_default();
            sum.interrupted += calls.interrupted;
            for (length, n) in &calls.by_length {
                *sum.by_length.entry(*length).or_default() += n;
            }
        }
        by_name
            .into_iter()
            .map(|(name, calls)| (name.to_owned(), calls.report()))
            .filter(|(_, counts)| counts.calls > 0)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STACK: u64 = 0xffff_c900_0000_3f00;

    fn counts() -> Counts {
        let function = |name: &str, address| Function {
            name: name.into(),
            address,
        };
        Counts::new(
            vec![function("outer", 0x1000), function("inner", 0x2000)],
            2,
        )
    }

    /// One call of `function` on `lp` that takes `length` instructions.
    fn call(counts: &mut Counts, lp: u32, function: usize, length: u64) {
        assert_eq!(counts.enter(lp, function, STACK, 100), 1);
        assert_eq!(counts.leave(lp, STACK, 100 + length), 0);
    }

    fn numbers(counts: &CallCounts) -> [Option<u64>; 3] {
        [counts.min, counts.median, counts.max]
    }

    #[test]
    fn functions_are_found_by_their_first_instruction() {
        assert_eq!(counts().find(0x2000), Some(1));
        assert_eq!(counts().find(0x2001), None);
    }

    #[test]
    fn fewest_middle_and_most_are_reported() {
        let mut counts = counts();
        for length in [9, 3, 5, 70] {
            call(&mut counts, 0, 1, length);
        }
        let report = counts.report();
        assert_eq!(report["inner"].calls, 4);
        assert_eq!(numbers(&report["inner"]), [Some(3), Some(5), Some(70)]);
        assert!(!report.contains_key("outer"), "it was not called");
    }

    #[test]
    fn returns_of_other_functions_do_not_end_a_call() {
        let mut counts = counts();
        counts.enter(0, 0, STACK, 10);
        assert_eq!(counts.leave(0, STACK - 8, 12), 1);
        assert_eq!(counts.leave(1, STACK, 13), 0, "another processor");
        assert_eq!(counts.enter(0, 1, STACK - 0x20, 20), 2);
        assert_eq!(counts.leave(0, STACK - 0x20, 25), 1);
        assert_eq!(counts.leave(0, STACK, 30), 0);
        let report = counts.report();
        assert_eq!(numbers(&report["inner"]), [Some(5); 3]);
        assert_eq!(numbers(&report["outer"]), [Some(20); 3]);
    }

    #[test]
    fn jump_to_another_function_ends_both_with_its_return() {
        let mut counts = counts();
        counts.enter(0, 0, STACK, 10);
        counts.enter(0, 1, STACK, 14);
        assert_eq!(counts.leave(0, STACK, 20), 0);
        let report = counts.report();
        assert_eq!(numbers(&report["outer"]), [Some(10); 3]);
        assert_eq!(numbers(&report["inner"]), [Some(6); 3]);
    }

    #[test]
    fn loop_to_the_first_instruction_is_no_call() {
        let mut counts = counts();
        counts.enter(0, 0, STACK, 10);
        assert_eq!(counts.enter(0, 0, STACK, 12), 1);
        counts.leave(0, STACK, 20);
        assert_eq!(numbers(&counts.report()["outer"]), [Some(10); 3]);
    }

    #[test]
    fn interrupted_calls_are_told_and_left_out() {
        let mut counts = counts();
        call(&mut counts, 0, 0, 7);
        counts.enter(0, 0, STACK, 200);
        counts.enter(1, 0, STACK, 50);
        counts.interrupt(0);
        assert_eq!(counts.leave(0, STACK, 9000), 0);
        assert_eq!(counts.leave(1, STACK, 58), 0, "the other one went on");
        let report = counts.report();
        assert_eq!((report["outer"].calls, report["outer"].interrupted), (3, 1));
        assert_eq!(numbers(&report["outer"]), [Some(7), Some(7), Some(8)]);
    }

    #[test]
    fn function_that_was_always_interrupted_has_no_numbers() {
        let mut counts = counts();
        counts.enter(0, 0, STACK, 1);
        counts.interrupt(0);
        assert_eq!(numbers(&counts.report()["outer"]), [None; 3]);
    }

    #[test]
    fn processors_that_do_not_exist_are_ignored() {
        let mut counts = counts();
        assert_eq!(counts.enter(7, 0, STACK, 1), 0);
        assert_eq!(counts.leave(7, STACK, 2), 0);
        counts.interrupt(7);
        assert!(counts.report().is_empty());
    }
}

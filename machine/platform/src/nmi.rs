// SPDX-License-Identifier: GPL-2.0

//! Non-maskable interrupts at chosen places: for the processor that makes the Nth call of a kernel
//! function, before the first instruction of it, or that comes for the Nth time to another instruction.
//! With the kernel parameter `unknown_nmi_panic` the kernel panics there.

use crate::counts::Function;
use serde::{Deserialize, Serialize};

/// Where an NMI comes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NmiPlace {
    /// Function that is called, or another instruction.
    pub function: Function,
    /// Call at which it comes, from 1, counted on all processors together.
    pub call: u64,
}

/// The places, and how often each has been reached.
#[derive(Debug)]
pub(crate) struct Nmis(Vec<(NmiPlace, u64)>);

impl Nmis {
    pub(crate) fn new(places: &[NmiPlace]) -> Nmis {
        Nmis(places.iter().map(|place| (place.clone(), 0)).collect())
    }

    /// A processor is at the first instruction of the function at `address`. Answers the place if it
    /// is to get an NMI.
    ///
    /// After the NMI the processor comes by once more, which is the same call; so that nothing is
    /// counted twice, the other places do not count a call that gets an NMI.
    pub(crate) fn reach(&mut self, address: u64) -> Option<NmiPlace> {
        let here = |place: &NmiPlace| place.function.address == address;
        let due = self
            .0
            .iter_mut()
            .find(|(place, calls)| here(place) && calls + 1 == place.call);
        if let Some((place, calls)) = due {
            *calls = place.call;
            return Some(place.clone());
        }
        for (_, calls) in self.0.iter_mut().filter(|(p, c)| here(p) && *c < p.call) {
            *calls += 1;
        }
        None
    }

    /// Places that were not reached as often as it would have taken.
    pub(crate) fn unused(&self) -> Vec<String> {
        let unused = self.0.iter().filter(|(place, calls)| *calls < place.call);
        let name = |place: &NmiPlace| format!("{}:{}=nmi", place.function.name, place.call);
        unused.map(|(place, _)| name(place)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str, address: u64, call: u64) -> NmiPlace {
        let name = name.to_owned();
        let function = Function { name, address };
        NmiPlace { function, call }
    }

    #[test]
    fn nmi_comes_once_at_its_call() {
        let mut nmis = Nmis::new(&[place("f", 1, 2), place("f", 1, 3), place("g", 2, 2)]);
        let due: Vec<_> = [1, 2, 1, 1, 1, 1, 1]
            .map(|address| nmis.reach(address).map(|place| place.call))
            .into();
        // The second call of f, its repeat, the third call, its repeat, the fourth.
        let expected = [None, None, Some(2), None, Some(3), None, None];
        assert_eq!(due, expected);
        assert_eq!(nmis.unused(), ["g:2=nmi"]);
    }
}

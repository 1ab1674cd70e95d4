// SPDX-License-Identifier: GPL-2.0

//! The kernels that run one after the other on a machine that is not reset between them: what each
//! did to private memory, and what it left to the next.
//!
//! A kernel that starts another one (kexec, after a crash as well as in order) tells nobody. What the
//! processor shows is where it loads its interrupt descriptor table: a kernel runs in the upper half
//! of the address space, but all code on the way to it (the end of the old kernel, what stands
//! between the two, the decompressor and the first instructions of the new one) runs at addresses
//! that are also physical ones. So a processor that executes LIDT in the lower half and then in the
//! upper half has just entered a kernel. This holds whichever processor it is; those that are
//! started by another one execute no LIDT in the lower half, at least not in 64-bit mode.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How a kernel ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KernelEnd {
    /// Another kernel was started, without a RESET.
    NextKernel,
    /// The machine was reset.
    Reset,
    /// It was the last.
    #[default]
    EndOfRun,
}

/// What one kernel did, and what was left when it ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelSummary {
    /// How it ended.
    pub end: KernelEnd,
    /// SEAMCALLs that reached the module.
    pub seamcalls: u64,
    /// Those of them that came after the kernel had begun to convert PAMT memory.
    pub seamcalls_after_conversion: u64,
    /// WBINVDs by processor.
    pub wbinvds: Vec<u64>,
    /// Bytes converted with MOVDIR64B, by processor.
    pub converted_bytes: Vec<u64>,
    /// Bytes the module itself gave back.
    pub released_bytes: u64,
    /// Bytes still private at its end, by use.
    pub private_bytes: BTreeMap<String, u64>,
    /// Processors whose caches may still hold private lines dirty at its end.
    pub dirty_cpus: Vec<u32>,
}

/// What is private or dirty at the moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Left {
    /// Private bytes by use.
    pub(crate) private_bytes: BTreeMap<String, u64>,
    /// Processors with dirty caches.
    pub(crate) dirty_cpus: Vec<u32>,
}

/// The account of all kernels since power-on.
#[derive(Debug)]
pub(crate) struct Kernels {
    cpus: usize,
    ended: Vec<KernelSummary>,
    /// Of the kernel that runs, or before the first of what runs before it.
    current: KernelSummary,
    running: bool,
    /// The kernel that runs has converted PAMT memory.
    converting: bool,
    /// Processors whose last LIDT was in the lower half.
    entering: Vec<bool>,
}

impl Kernels {
    /// No kernel has run yet on a machine with so many processors.
    pub(crate) fn new(cpus: u32) -> Kernels {
        let cpus = cpus as usize;
        Kernels {
            cpus,
            ended: Vec::new(),
            current: KernelSummary::default().sized(cpus),
            running: false,
            converting: false,
            entering: vec![false; cpus],
        }
    }

    /// LIDT in CPL 0 and 64-bit mode. Answers whether a kernel has just been entered.
    pub(crate) fn lidt(&mut self, cpu: u32, rip: u64) -> bool {
        let lower_half = rip >> 63 == 0;
        let entering = self.entering.get_mut(cpu as usize);
        entering.is_some_and(|entering| std::mem::replace(entering, lower_half) && !lower_half)
    }

    /// A kernel begins. Answers the account of the one before it, if there was one since the last
    /// RESET.
    pub(crate) fn begin(&mut self, left: Left) -> Option<&KernelSummary> {
        let before = std::mem::replace(&mut self.running, true);
        if !before {
            return None;
        }
        self.close(KernelEnd::NextKernel, left);
        self.ended.last()
    }

    /// RESET.
    pub(crate) fn reset(&mut self, left: Left) {
        if std::mem::replace(&mut self.running, false) {
            self.close(KernelEnd::Reset, left);
        }
        self.entering.fill(false);
    }

    fn close(&mut self, end: KernelEnd, left: Left) {
        let next = KernelSummary::default().sized(self.cpus);
        let account = std::mem::replace(&mut self.current, next);
        self.ended.push(account.closed(end, left));
        self.converting = false;
    }

    /// Number of kernels so far.
    pub(crate) fn count(&self) -> usize {
        self.ended.len() + usize::from(self.running)
    }

    /// A SEAMCALL reaches the module.
    pub(crate) fn seamcall(&mut self) {
        self.current.seamcalls += 1;
        self.current.seamcalls_after_conversion += u64::from(self.converting);
    }

    /// WBINVD on `cpu`.
    pub(crate) fn wbinvd(&mut self, cpu: u32) {
        if let Some(count) = self.current.wbinvds.get_mut(cpu as usize) {
            *count += 1;
        }
    }

    /// `cpu` converted `bytes`, of PAMT memory or other.
    pub(crate) fn converted(&mut self, cpu: u32, bytes: u64, pamt: bool) {
        self.converting |= pamt;
        if let Some(sum) = self.current.converted_bytes.get_mut(cpu as usize) {
            *sum += bytes;
        }
    }

    /// The module gave `bytes` back.
    pub(crate) fn released(&mut self, bytes: u64) {
        self.current.released_bytes += bytes;
    }

    /// All accounts, that of the kernel that runs as it stands.
    pub(crate) fn report(&self, left: Left) -> Vec<KernelSummary> {
        let current = self.current.clone().closed(KernelEnd::EndOfRun, left);
        let current = self.running.then_some(current);
        self.ended.iter().cloned().chain(current).collect()
    }
}

impl KernelSummary {
    fn sized(self, cpus: usize) -> KernelSummary {
        KernelSummary {
            wbinvds: vec![0; cpus],
            converted_bytes: vec![0; cpus],
            ..self
        }
    }

    fn closed(self, end: KernelEnd, left: Left) -> KernelSummary {
        KernelSummary {
            end,
            private_bytes: left.private_bytes,
            dirty_cpus: left.dirty_cpus,
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOW: u64 = 0x100_0000;
    const HIGH: u64 = 0xffff_ffff_8100_0000;

    #[test]
    fn kernel_is_entered_from_the_lower_half() {
        let mut kernels = Kernels::new(2);
        let seen: Vec<_> = [HIGH, LOW, LOW, HIGH, HIGH, LOW, HIGH]
            .map(|rip| kernels.lidt(0, rip))
            .into();
        let expected = [false, false, false, true, false, false, true];
        assert_eq!(seen, expected);
        kernels.lidt(0, LOW);
        assert!(!kernels.lidt(1, HIGH), "another processor");
        assert!(!kernels.lidt(2, LOW) && !kernels.lidt(2, HIGH), "no such");
    }

    #[test]
    fn each_kernel_has_an_account_of_its_own() {
        let mut kernels = Kernels::new(2);
        assert_eq!(kernels.count(), 0);
        assert!(kernels.begin(Left::default()).is_none());
        kernels.seamcall();
        kernels.converted(0, 64, false);
        kernels.seamcall();
        kernels.converted(1, 64, true);
        kernels.seamcall();
        kernels.wbinvd(1);
        let left = Left {
            dirty_cpus: vec![0],
            ..Left::default()
        };
        let first = kernels.begin(left).unwrap().clone();
        assert_eq!(
            (first.end, &first.dirty_cpus),
            (KernelEnd::NextKernel, &vec![0])
        );
        assert_eq!((first.seamcalls, first.seamcalls_after_conversion), (3, 1));
        assert_eq!(
            (first.wbinvds, first.converted_bytes),
            (vec![0, 1], vec![64, 64])
        );
        kernels.seamcall();
        kernels.released(128);
        let all = kernels.report(Left::default());
        assert_eq!((all.len(), kernels.count()), (2, 2));
        assert_eq!(
            (all[1].seamcalls, all[1].seamcalls_after_conversion),
            (1, 0)
        );
        assert_eq!(
            (all[1].released_bytes, all[1].end),
            (128, KernelEnd::EndOfRun)
        );
    }

    #[test]
    fn reset_ends_a_kernel_and_starts_none() {
        let mut kernels = Kernels::new(1);
        kernels.reset(Left::default());
        assert_eq!(kernels.report(Left::default()), []);
        kernels.begin(Left::default());
        kernels.lidt(0, LOW);
        kernels.reset(Left::default());
        assert!(!kernels.lidt(0, HIGH), "forgotten");
        assert!(
            kernels.begin(Left::default()).is_none(),
            "nothing was left to it"
        );
        let ends = kernels.report(Left::default()).into_iter().map(|k| k.end);
        assert_eq!(
            ends.collect::<Vec<_>>(),
            [KernelEnd::Reset, KernelEnd::EndOfRun]
        );
    }
}

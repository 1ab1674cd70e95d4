// SPDX-License-Identifier: GPL-2.0

//! The simulated TDX machine around the TDX module: processors, keys, memory, and the rules a host
//! has to keep.
//!
//! [`Machine`] is the whole; the QEMU plugin calls it for every instruction of interest. It is made
//! from a [`MachineConfig`](config::MachineConfig) and owns a [`Module`](tdx_module::Module) of the
//! neighbouring crate, which answers the SEAMCALLs; `seamldr` replaces it at run time. What it judges: `private` knows which lines are
//! private, `lp` whose caches may hold them, `violation` names what a host must not do. What it
//! tells: `trace`, `summary`, `kernels` and `counts`. What it does on command: `inject`, `nmi`, and inside its TDs: `script`, with
//! `tds` for where they are.
//!
//! No QEMU and no `unsafe` here, so all of it is tested by itself.

#![forbid(unsafe_code)]

pub mod config;
pub mod counts;
pub mod cpuid;
mod handover;
pub mod inject;
pub mod kernels;
pub mod lp;
mod machine;
pub mod msr;
pub mod nmi;
pub mod operands;
pub mod private;
pub mod script;
mod seam;
pub mod seamldr;
pub mod summary;
pub mod tds;
pub mod trace;
pub mod violation;

pub use machine::{Access, At, Machine, Stack};
pub use seam::Reply;
pub use tdx_module;

/// Guest memory by physical address, KeyID 0.
pub trait GuestMemory: Send + Sync {
    /// Fills `buf` from `pa`; `false` if some byte is not RAM.
    fn read(&self, pa: u64, buf: &mut [u8]) -> bool;
    /// Writes `data` to `pa`; `false` if some byte is not RAM.
    fn write(&self, pa: u64, data: &[u8]) -> bool;
}

#[cfg(test)]
mod tests {
    use super::GuestMemory;
    use serde_json::Value;
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    /// Keeps what is written.
    #[derive(Clone, Default)]
    pub(crate) struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend(data);
            Ok(data.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Sink {
        /// All of it.
        pub(crate) fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }

        /// Each line as JSON.
        pub(crate) fn lines(&self) -> Vec<Value> {
            let text = self.text();
            text.lines()
                .map(|l| serde_json::from_str(l).unwrap())
                .collect()
        }
    }

    /// Guest memory for tests: some bytes from address 0 on.
    pub(crate) struct Ram(Mutex<Vec<u8>>);

    impl Ram {
        pub(crate) fn new(len: usize) -> Ram {
            Ram(Mutex::new(vec![0; len]))
        }

        /// Stores `words` at `pa`.
        pub(crate) fn put(&self, pa: u64, words: &[u64]) {
            let data: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
            assert!(self.write(pa, &data));
        }
    }

    impl GuestMemory for Ram {
        fn read(&self, pa: u64, buf: &mut [u8]) -> bool {
            let ram = self.0.lock().unwrap();
            let end = pa.checked_add(buf.len() as u64);
            let Some(data) = end.and_then(|end| ram.get(pa as usize..end as usize)) else {
                return false;
            };
            buf.copy_from_slice(data);
            true
        }
        fn write(&self, pa: u64, data: &[u8]) -> bool {
            let mut ram = self.0.lock().unwrap();
            let Some(to) = ram.get_mut(pa as usize..pa as usize + data.len()) else {
                return false;
            };
            to.copy_from_slice(data);
            true
        }
    }
}

// SPDX-License-Identifier: GPL-2.0

//! The P-SEAMLDR: replaces the TDX module while the machine runs.
//!
//! `Seamldr` is its state. SEAMLDR.INSTALL has to be called on every processor that firmware
//! enabled; `Seamldr::install` counts them and says when the old module is gone and when the new
//! one is there (`Installed`). The machine carries that out (`seam::loader`), and keeps two
//! processors from being inside at once.
//!
//! Hardly anything about it is public. What is not stands in [`OpenPoints`](config::OpenPoints).

pub mod config;
pub mod image;
mod params;

use crate::GuestMemory;
use config::SeamldrConfig;
use params::{INFO_LEN, Params, info};
use std::collections::BTreeSet;
use tdx_module::ModuleConfig;

/// Leaf numbers, without bit 63 of RAX.
pub(crate) mod leaf {
    /// SEAMLDR.INFO.
    pub(crate) const INFO: u16 = 0;
    /// SEAMLDR.INSTALL.
    pub(crate) const INSTALL: u16 = 1;
}

/// Name of a leaf of the P-SEAMLDR.
pub fn leaf_name(leaf: u16) -> Option<&'static str> {
    match leaf {
        leaf::INFO => Some("SEAMLDR.INFO"),
        leaf::INSTALL => Some("SEAMLDR.INSTALL"),
        _ => None,
    }
}

/// Why the P-SEAMLDR refuses a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// Leaf or operands are wrong.
    BadOperand,
    /// The image is not a genuine module.
    BadImage,
    /// No update is left.
    NoUpdates,
    /// This processor has installed the module already.
    OutOfOrder,
}

impl Refusal {
    /// Name in the trace.
    pub fn name(self) -> &'static str {
        match self {
            Refusal::BadOperand => "SEAMLDR_BAD_OPERAND",
            Refusal::BadImage => "SEAMLDR_BAD_IMAGE",
            Refusal::NoUpdates => "SEAMLDR_NO_UPDATES",
            Refusal::OutOfOrder => "SEAMLDR_OUT_OF_ORDER",
        }
    }

    /// Its status word.
    pub fn status(self, config: &SeamldrConfig) -> u64 {
        match self {
            Refusal::BadOperand => config.open.bad_operand,
            Refusal::BadImage => config.open.bad_image,
            Refusal::NoUpdates => config.open.no_updates,
            Refusal::OutOfOrder => config.open.out_of_order,
        }
    }
}

/// A call that was refused, and what exactly is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) refusal: Refusal,
    pub(crate) why: String,
}

impl Refused {
    pub(crate) fn new(refusal: Refusal, why: impl Into<String>) -> Refused {
        let why = why.into();
        Refused { refusal, why }
    }
}

/// A module that takes the place of the old one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Next {
    pub(crate) config: ModuleConfig,
    /// It may take over what the old one handed over.
    pub(crate) update: bool,
}

/// What a successful SEAMLDR.INSTALL means for the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Installed {
    /// From here on no call reaches the old module.
    pub(crate) old_gone: bool,
    /// From here on calls reach this one.
    pub(crate) next: Option<Next>,
    /// All processors have installed it.
    pub(crate) complete: bool,
}

/// An update that not all processors have finished.
#[derive(Debug)]
struct Session {
    params: Params,
    /// The module, if the image was looked at.
    module: Option<ModuleConfig>,
    done: BTreeSet<u32>,
}

/// The P-SEAMLDR's memory.
#[derive(Debug)]
pub(crate) struct Seamldr {
    config: SeamldrConfig,
    /// Updates left.
    updates: u32,
    session: Option<Session>,
}

impl Seamldr {
    /// As firmware leaves it.
    pub(crate) fn new(config: SeamldrConfig) -> Seamldr {
        Seamldr {
            updates: config.updates,
            config,
            session: None,
        }
    }

    /// SEAMLDR.INFO into memory at `pa`; `module` says that a TDX module is there.
    pub(crate) fn info(&self, mem: &dyn GuestMemory, pa: u64, module: bool) -> Result<(), Refused> {
        let aligned = pa.is_multiple_of(INFO_LEN as u64);
        if aligned && mem.write(pa, &info(&self.config, self.updates, module)) {
            return Ok(());
        }
        let why = format!("SEAMLDR_INFO cannot be written to {pa:#x}");
        Err(Refused::new(Refusal::BadOperand, why))
    }

    /// SEAMLDR.INSTALL on processor `lp` of `lps`, with operands at `pa`.
    pub(crate) fn install(
        &mut self,
        mem: &dyn GuestMemory,
        pa: u64,
        lp: u32,
        lps: u32,
    ) -> Result<Installed, Refused> {
        let params = Params::read(mem, pa)?;
        let twice = |session: &Session| session.done.contains(&lp);
        if self.session.as_ref().is_some_and(twice) {
            if !self.config.open.second_call_restarts {
                let why = "this CPU has installed the module already, others have not";
                return Err(Refused::new(Refusal::OutOfOrder, why));
            }
            self.session = None;
        }
        let first = self.session.is_none();
        if first {
            self.begin(mem, params)?;
        } else if self.session.as_ref().is_some_and(|s| s.params != params) {
            let why = "these are not the operands that the first CPU had";
            return Err(Refused::new(Refusal::BadOperand, why));
        }
        self.count(mem, lp, lps, first)
    }

    /// The first processor's part.
    fn begin(&mut self, mem: &dyn GuestMemory, params: Params) -> Result<(), Refused> {
        if self.updates == 0 {
            let why = "no update is left until the machine is reset";
            return Err(Refused::new(Refusal::NoUpdates, why));
        }
        let open = &self.config.open;
        let module = match open.image_checked_last && !open.active_at_first {
            true => None,
            false => Some(self.read_image(mem, &params)?),
        };
        if open.unfinished_counts {
            self.updates -= 1;
        }
        self.session = Some(Session {
            params,
            module,
            done: BTreeSet::new(),
        });
        Ok(())
    }

    fn read_image(&self, mem: &dyn GuestMemory, params: &Params) -> Result<ModuleConfig, Refused> {
        let (sigstruct, code) = params.image(mem)?;
        let module = image::open(&sigstruct, &code, self.config.open.signature_checked)
            .and_then(|module| module.check().map(|()| module).map_err(|e| e.to_string()));
        module.map_err(|why| Refused::new(Refusal::BadImage, why))
    }

    /// Every processor's part.
    fn count(
        &mut self,
        mem: &dyn GuestMemory,
        lp: u32,
        lps: u32,
        first: bool,
    ) -> Result<Installed, Refused> {
        let Some(mut session) = self.session.take() else {
            return Ok(Installed::default());
        };
        session.done.insert(lp);
        let complete = session.done.len() >= lps as usize;
        let appears = match self.config.open.active_at_first {
            true => first,
            false => complete,
        };
        let next = match session.module.clone() {
            _ if !appears => None,
            Some(config) => Some(config),
            // The session is over if this fails, and the old module gone.
            None => Some(self.read_image(mem, &session.params)?),
        };
        let installed = Installed {
            old_gone: first && !self.config.open.old_module_answers || appears,
            next: next.map(|config| Next {
                config,
                update: session.params.update,
            }),
            complete,
        };
        if complete && !self.config.open.unfinished_counts {
            self.updates -= 1;
        } else if !complete {
            self.session = Some(session);
        }
        Ok(installed)
    }
}

#[cfg(test)]
mod tests;

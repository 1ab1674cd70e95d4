// SPDX-License-Identifier: GPL-2.0

//! The module as a whole: [`Module`], entry and exit of a call, and the dispatcher.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::call::{Answer, Call};
use crate::guest_exit::{self, GuestExit};
use crate::leaf::number;
use crate::metadata::Metadata;
use crate::profile::Facts;
use crate::state::{State, SysState};
use crate::vp_enter::{self, Entry};
use crate::{ConfigError, ModuleConfig, Operand, Platform, Regs, Status};
use crate::{
    disable, mem_page, mem_range, mem_sept, mng, mr, phymem, shutdown, sys_config, sys_init,
};
use crate::{sys_key, sys_lp_init, td_fields, tdmr_init, teardown, vp, vp_fields};

/// How a SEAMCALL ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The module returned to the host; RAX holds the status. CF is 0.
    Returned,
    /// The module entered the guest, or went back to it: the registers are now the guest's. The
    /// processor stays there until [`Module::guest_exit`].
    Entered,
}

/// One loaded TDX module.
///
/// All methods take `&self` and may be called by several threads at once, each for its own logical
/// processor. A call never waits for another one: where the real module finds a lock taken, this
/// one answers with the same BUSY status.
pub struct Module {
    config: ModuleConfig,
    facts: Facts,
    metadata: Metadata,
    state: Mutex<State>,
}

/// There is no guest on the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoGuest;

impl std::fmt::Display for NoGuest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("no guest runs on this processor")
    }
}

impl std::error::Error for NoGuest {}

const UNKNOWN_LEAF: Status = Status::OPERAND_INVALID.operand(Operand::Rax);

type Leaf = fn(&mut Call<'_>) -> Answer;

/// Marks a processor as being inside the module until dropped.
struct InSeam<'a> {
    module: &'a Module,
    lp: usize,
}

impl<'a> InSeam<'a> {
    fn enter(module: &'a Module, lp: usize) -> Self {
        module.state().lp(lp).in_seam = true;
        Self { module, lp }
    }
}

impl Drop for InSeam<'_> {
    fn drop(&mut self) {
        self.module.state().lp(self.lp).in_seam = false;
    }
}

impl Module {
    /// A module that has just been loaded: no leaf was called yet.
    ///
    /// # Errors
    ///
    /// A configuration whose numbers are out of range.
    pub fn new(config: ModuleConfig) -> Result<Self, ConfigError> {
        config.check()?;
        let facts = Facts::new(&config);
        let metadata = Metadata::new(&config, &facts);
        Ok(Self {
            config,
            facts,
            metadata,
            state: Mutex::default(),
        })
    }

    /// The configuration given to [`Module::new`].
    pub fn config(&self) -> &ModuleConfig {
        &self.config
    }

    /// Executes one SEAMCALL with RAX bit 63 clear on logical processor `lp`.
    ///
    /// The caller has already decided that the instruction reaches the module (VMX on, ring 0, and
    /// so on). `regs` are the inputs; on return RAX is the status, outputs of the leaf are set, and
    /// every other register is unchanged. `lp` must be below [`Platform::lp_count`].
    pub fn seamcall(&self, lp: usize, regs: &mut Regs, platform: &dyn Platform) -> Outcome {
        let inside = InSeam::enter(self, lp);
        let mut call = Call {
            module: self,
            lp,
            regs,
            platform,
        };
        if let Err(status) = self.check_leaf(call.regs.rax) {
            regs.rax = status.raw();
            return Outcome::Returned;
        }
        if call.regs.rax as u16 != number::VP_ENTER {
            let answer = self.dispatch(&mut call);
            regs.rax = answer.err().unwrap_or(Status::SUCCESS).raw();
            return Outcome::Returned;
        }
        match vp_enter::enter(&mut call) {
            Ok(Entry::Guest(guest)) => {
                *regs = guest;
                std::mem::forget(inside);
                return Outcome::Entered;
            }
            Ok(Entry::StillFaulting) => {}
            Err(status) => regs.rax = status.raw(),
        }
        Outcome::Returned
    }

    /// The guest on processor `lp` has stopped (a VM exit) as `exit` describes.
    ///
    /// If the module returns to the host, `regs` are the host's registers after its
    /// TDH.VP.ENTER; if it goes back to the guest, they are the guest's.
    ///
    /// # Errors
    ///
    /// No guest runs on that processor; nothing has changed.
    pub fn guest_exit(
        &self,
        lp: usize,
        exit: &GuestExit,
        regs: &mut Regs,
        platform: &dyn Platform,
    ) -> Result<Outcome, NoGuest> {
        let run = self.state().lp(lp).guest.clone().ok_or(NoGuest)?;
        *regs = run.host;
        let mut call = Call {
            module: self,
            lp,
            regs,
            platform,
        };
        Ok(guest_exit::exit(&mut call, &run, exit))
    }

    /// A new module of the same build is in place, as the P-SEAMLDR leaves it after an update.
    ///
    /// Module and logical processors start from scratch; memory and the handoff data that
    /// TDH.SYS.SHUTDOWN wrote stay for TDH.SYS.UPDATE.
    pub fn replaced(&self) {
        let mut state = self.state();
        *state = State {
            handoff: state.handoff.take(),
            ..State::default()
        };
    }

    /// The module that the P-SEAMLDR has put in the place of this one, of the release that `config`
    /// says.
    ///
    /// It takes the handoff data away from this module, and nothing else.
    ///
    /// # Errors
    ///
    /// A configuration whose numbers are out of range; nothing was taken.
    pub fn successor(&self, config: ModuleConfig) -> Result<Self, ConfigError> {
        let next = Self::new(config)?;
        next.state().handoff = self.state().handoff.take();
        Ok(next)
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn facts(&self) -> &Facts {
        &self.facts
    }

    pub(crate) fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Whether the module knows the leaf and version in RAX and answers it in its present state.
    fn check_leaf(&self, rax: u64) -> Answer {
        let (leaf, version) = (rax as u16, (rax >> 16) as u8);
        if rax >> 24 != 0 || version > 0 && !self.facts.has_versions(leaf) {
            return Err(UNKNOWN_LEAF);
        }
        self.check_sys_state(leaf)
    }

    fn dispatch(&self, call: &mut Call<'_>) -> Answer {
        self.leaf(call.regs.rax as u16).ok_or(UNKNOWN_LEAF)?(call)
    }

    /// Whether the module answers `leaf` in its present state.
    fn check_sys_state(&self, leaf: u16) -> Answer {
        let open = &self.config.open;
        match self.state().sys {
            SysState::Ready => Ok(()),
            SysState::Shutdown if leaf == number::SYS_LP_SHUTDOWN => Ok(()),
            SysState::Shutdown => Err(Status::SYS_SHUTDOWN),
            SysState::Disabling if leaf == number::SYS_DISABLE => Ok(()),
            SysState::Disabling if is_sys_leaf(leaf) => {
                Err(Status::from_raw(open.disabling_status_sys))
            }
            SysState::Disabling => Err(Status::from_raw(open.disabling_status_other)),
            state if self.config.sys_disable && leaf == number::SYS_DISABLE => {
                disable::may_start(open, state)
            }
            _ if answers_before_ready(leaf) => Ok(()),
            _ => Err(Status::SYS_NOT_READY),
        }
    }

    fn leaf(&self, leaf: u16) -> Option<Leaf> {
        Some(match leaf {
            number::MNG_CREATE => mng::create,
            number::MNG_KEY_CONFIG => mng::key_config,
            number::MNG_ADDCX => mng::addcx,
            number::MNG_INIT => mng::init,
            number::MNG_RD => td_fields::read,
            number::MNG_VPFLUSHDONE => teardown::vpflushdone,
            number::MNG_KEY_FREEID => teardown::key_freeid,
            number::MNG_KEY_RECLAIMID => teardown::key_reclaimid,
            number::VP_CREATE => vp::create,
            number::VP_ADDCX => vp::addcx,
            number::VP_INIT => vp::init,
            number::VP_FLUSH => vp::flush,
            number::VP_RD => vp_fields::read,
            number::VP_WR => vp_fields::write,
            number::MEM_SEPT_ADD => mem_sept::add,
            number::MEM_SEPT_REMOVE => mem_sept::remove,
            number::MEM_PAGE_ADD => mem_page::add,
            number::MEM_PAGE_AUG => mem_page::aug,
            number::MEM_PAGE_REMOVE => mem_page::remove,
            number::MEM_RANGE_BLOCK => mem_range::block,
            number::MEM_RANGE_UNBLOCK => mem_range::unblock,
            number::MEM_TRACK => mem_range::track,
            number::MR_EXTEND => mr::extend,
            number::MR_FINALIZE => mr::finalize,
            number::PHYMEM_PAGE_RECLAIM => teardown::page_reclaim,
            number::PHYMEM_PAGE_WBINVD => phymem::page_wbinvd,
            number::PHYMEM_PAGE_RDMD => phymem::page_rdmd,
            number::PHYMEM_CACHE_WB => phymem::cache_wb,
            number::SYS_KEY_CONFIG => sys_key::key_config,
            number::SYS_INIT => sys_init::init,
            number::SYS_RD => crate::metadata::sys_rd,
            number::SYS_LP_INIT => sys_lp_init::lp_init,
            number::SYS_TDMR_INIT => tdmr_init::tdmr_init,
            number::SYS_LP_SHUTDOWN => shutdown::lp_shutdown,
            number::SYS_CONFIG => sys_config::config,
            number::SYS_SHUTDOWN => shutdown::shutdown,
            number::SYS_UPDATE => shutdown::update,
            number::SYS_DISABLE if self.config.sys_disable => disable::disable,
            _ => return None,
        })
    }
}

/// Leaves that the dispatcher lets through before the module is ready.
fn answers_before_ready(leaf: u16) -> bool {
    matches!(
        leaf,
        number::SYS_KEY_CONFIG
            | number::SYS_INFO
            | number::SYS_INIT
            | number::SYS_RD
            | number::SYS_LP_INIT
            | number::SYS_RDALL
            | number::SYS_LP_SHUTDOWN
            | number::SYS_CONFIG
            | number::SYS_UPDATE
    )
}

fn is_sys_leaf(leaf: u16) -> bool {
    answers_before_ready(leaf) || matches!(leaf, number::SYS_TDMR_INIT | number::SYS_SHUTDOWN)
}

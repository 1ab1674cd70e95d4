// SPDX-License-Identifier: GPL-2.0

//! The module as a whole: [`Module`], entry and exit of a call, and the dispatcher.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::call::{Answer, Call};
use crate::leaf::number;
use crate::metadata::Metadata;
use crate::profile::Facts;
use crate::state::{State, SysState};
use crate::{ConfigError, ModuleConfig, Operand, Platform, Regs, Status};
use crate::{disable, phymem, shutdown, sys_config, sys_init, sys_key, sys_lp_init, tdmr_init};

/// How a SEAMCALL ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The module returned to the host; RAX holds the status. CF is 0.
    Returned,
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
        let _inside = InSeam::enter(self, lp);
        let answer = self.dispatch(Call {
            module: self,
            lp,
            regs,
            platform,
        });
        regs.rax = answer.err().unwrap_or(Status::SUCCESS).raw();
        Outcome::Returned
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

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn facts(&self) -> &Facts {
        &self.facts
    }

    pub(crate) fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn dispatch(&self, mut call: Call<'_>) -> Answer {
        let unknown = Status::OPERAND_INVALID.operand(Operand::Rax);
        let rax = call.regs.rax;
        let (leaf, version) = (rax as u16, (rax >> 16) as u8);
        if rax >> 24 != 0 || version > 0 && !self.facts.has_versions(leaf) {
            return Err(unknown);
        }
        self.check_sys_state(leaf)?;
        self.leaf(leaf).ok_or(unknown)?(&mut call)
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

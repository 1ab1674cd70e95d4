// SPDX-License-Identifier: GPL-2.0

//! What the TDX module says about itself: read by TDH.SYS.RD, logged, kept for C.
//!
//! [`read`] gets everything the kernel cannot do without, [`read_cmrs`] what helps the log, and
//! [`to_c`] turns the result into the structure that KVM and others look at. The decoding is in
//! [`crate::metadata`].
//!
//! C it replaces: `tdx_global_metadata.c` in `arch/x86/virt/vmx/tdx`.

use core::cell::UnsafeCell;
use kernel::alloc::flags::GFP_KERNEL;
use kernel::bindings;
use kernel::prelude::*;

use crate::fields::{
    self,
    FieldId, //
};
use crate::leaf::Leaf;
use crate::lockstep::AllStopped;
use crate::log::fail;
use crate::memlist::{
    NodeId,
    Region, //
};
use crate::metadata::{
    self,
    BuildInfo,
    Features,
    FieldReader,
    MetadataError,
    SysInfo,
    TdCtrl,
    TdmrCaps,
    Version, //
};
use crate::range::PfnRange;
use crate::seamcall::{
    self,
    Args,
    SeamcallError, //
};

/// TDH.SYS.RD as the decoder of metadata wants it.
struct SysRd;

impl FieldReader for SysRd {
    type Error = SeamcallError;

    fn read(&mut self, id: FieldId) -> Result<u64, SeamcallError> {
        let args = Args {
            rdx: id.raw(),
            ..Args::default()
        };
        seamcall::call(Leaf::TDH_SYS_RD, args).map(|reply| reply.out.r8)
    }
}

/// Errors of reading metadata, as the log and the caller want them.
fn metadata_failure(error: MetadataError<SeamcallError>) -> Error {
    match error {
        MetadataError::Read { field, error } => error.report(fmt!("reading {field}")),
        other => fail(other, EINVAL),
    }
}

/// Reads the version of the data that the module hands over to its successor. Any context.
pub(crate) fn read_handoff_version() -> Result<u64> {
    let field = fields::MODULE_HV.id();
    SysRd
        .read(field)
        .map_err(|e| e.report(fmt!("reading {field}")))
}

/// Reads the version and the features of a module that has just replaced another. Any context.
pub(crate) fn read_again() -> Result<(Version, Features)> {
    let version = Version::read(&mut SysRd).map_err(metadata_failure)?;
    let features = Features::read(&mut SysRd).map_err(metadata_failure)?;
    Ok((version, features))
}

/// Reads all metadata; the version is in the log before the rest can fail.
pub(crate) fn read() -> Result<KBox<SysInfo>> {
    let mut info = KBox::new(SysInfo::EMPTY, GFP_KERNEL)?;
    info.version = Version::read(&mut SysRd).map_err(metadata_failure)?;
    match BuildInfo::read(&mut SysRd) {
        Ok(build) => pr_info!(
            "Module version: {}, build {} of {}\n",
            info.version,
            build.build_num,
            build.build_date
        ),
        // Only the log misses it.
        Err(_) => pr_info!("Module version: {}\n", info.version),
    }
    info.features = Features::read(&mut SysRd).map_err(metadata_failure)?;
    pr_info!("Module features:{}\n", info.features.tdx_features0);
    info.tdmr = TdmrCaps::read(&mut SysRd).map_err(metadata_failure)?;
    info.td_ctrl = TdCtrl::read(&mut SysRd).map_err(metadata_failure)?;
    info.td_conf.read(&mut SysRd).map_err(metadata_failure)?;
    Ok(info)
}

/// The module's list of CMRs, empty if it does not tell: only the log misses it.
///
/// A CMR looks like a region of memory without a node.
pub(crate) fn read_cmrs() -> KVec<Region> {
    let mut cmrs = KVec::new();
    match metadata::read_cmrs(&mut SysRd, &mut cmrs) {
        Ok(()) | Err(MetadataError::Read { .. }) => {}
        Err(other) => pr_warn!("the list of CMRs is not usable: {other}\n"),
    }
    let mut regions = KVec::new();
    for cmr in cmrs {
        let frames = PfnRange::new(cmr.start().frame(), cmr.end().frame());
        if let Some(frames) = frames {
            let region = Region::new(frames, NodeId::new(-1));
            if regions.push(region, GFP_KERNEL).is_err() {
                return KVec::new();
            }
        }
    }
    regions
}

/// The metadata as C callers know it.
pub(crate) fn to_c(info: &SysInfo) -> Result<KBox<bindings::tdx_sys_info>> {
    let mut c = KBox::init(
        pin_init::init_zeroed::<bindings::tdx_sys_info>(),
        GFP_KERNEL,
    )?;
    c.version = version_to_c(info.version);
    c.features.tdx_features0 = info.features.tdx_features0.raw();
    let t = &info.tdmr;
    c.tdmr.max_tdmrs = t.max_tdmrs;
    c.tdmr.max_reserved_per_tdmr = t.max_reserved_per_tdmr;
    c.tdmr.pamt_4k_entry_size = t.pamt_4k_entry_size;
    c.tdmr.pamt_2m_entry_size = t.pamt_2m_entry_size;
    c.tdmr.pamt_1g_entry_size = t.pamt_1g_entry_size;
    c.td_ctrl.tdr_base_size = info.td_ctrl.tdr_base_size;
    c.td_ctrl.tdcs_base_size = info.td_ctrl.tdcs_base_size;
    c.td_ctrl.tdvps_base_size = info.td_ctrl.tdvps_base_size;
    let conf = &info.td_conf;
    c.td_conf.attributes_fixed0 = conf.attributes_fixed0;
    c.td_conf.attributes_fixed1 = conf.attributes_fixed1;
    c.td_conf.xfam_fixed0 = conf.xfam_fixed0;
    c.td_conf.xfam_fixed1 = conf.xfam_fixed1;
    c.td_conf.num_cpuid_config = conf.num_cpuid_config;
    c.td_conf.max_vcpus_per_td = conf.max_vcpus_per_td;
    c.td_conf.cpuid_config_leaves = conf.cpuid_config_leaves;
    c.td_conf.cpuid_config_values = conf.cpuid_config_values;
    Ok(c)
}

/// The metadata as C callers know it, which an update of the module rewrites in place.
///
/// # Invariants
///
/// Written only while all CPUs are stopped. C reads the version with preemption disabled (see
/// `seamldr_lock_module_update()`), and so never while it changes.
pub(crate) struct SharedSysInfo(KBox<UnsafeCell<bindings::tdx_sys_info>>);

// SAFETY: By the type invariant nobody writes while somebody reads.
unsafe impl Sync for SharedSysInfo {}

impl SharedSysInfo {
    /// Shares `info` with C.
    pub(crate) fn new(info: KBox<bindings::tdx_sys_info>) -> Self {
        // SAFETY: `UnsafeCell` has the layout of what it holds, and the box changes hands.
        Self(unsafe { KBox::from_raw(KBox::into_raw(info).cast()) })
    }

    /// Where C finds it.
    pub(crate) fn as_ptr(&self) -> *const bindings::tdx_sys_info {
        self.0.get()
    }

    /// Notes the version of a new module.
    pub(crate) fn set_version(&self, version: Version, _stopped: &AllStopped<'_>) {
        // INVARIANT: All CPUs are stopped.
        // SAFETY: No other CPU runs anything but steps of the update, of which only this one
        // touches the version.
        unsafe { (*self.0.get()).version = version_to_c(version) };
    }
}

fn version_to_c(version: Version) -> bindings::tdx_sys_info_version {
    bindings::tdx_sys_info_version {
        minor_version: version.minor_version,
        major_version: version.major_version,
        update_version: version.update_version,
    }
}

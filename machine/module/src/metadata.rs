// SPDX-License-Identifier: GPL-2.0

//! Global metadata: the field table ([`Metadata`]) and TDH.SYS.RD.
//!
//! The order of the table is the order in which TDH.SYS.RD enumerates the fields. A field is
//! looked up by class and field code alone; the other bits of an id are checked or ignored.

use std::collections::BTreeMap;

use crate::call::{Answer, Call};
use crate::fields::{self, NO_FIELD, key};
use crate::profile::Facts;
use crate::state::State;
use crate::{ModuleConfig, Profile, Status};

/// Slots of the CPUID configuration arrays.
const CPUID_SLOTS: u32 = 32;
/// Packages that the module can tell apart.
const MAX_PACKAGES: u32 = 8;
/// Slots of the CMR arrays.
const MAX_CMRS: u32 = 32;

/// Where the value of a field comes from; array fields are given the element's index.
#[derive(Clone, Copy, Debug)]
enum Source {
    Fixed(u64),
    PackageCount,
    PackageFms,
    CmrBase,
    CmrSize,
    XfamFixed0,
    CpuidLeaf,
    CpuidValue,
}

#[derive(Clone, Copy, Debug)]
struct Field {
    /// Id of the first element.
    id: u64,
    elements: u32,
    source: Source,
}

/// The fields that TDH.SYS.RD knows.
#[derive(Debug)]
pub(crate) struct Metadata {
    fields: Vec<Field>,
    /// Values to report instead of the true ones, by key.
    overrides: BTreeMap<u64, u64>,
}

impl Field {
    fn contains(&self, id: u64) -> bool {
        let (first, id) = (key(self.id), key(id));
        (first..first + u64::from(self.elements)).contains(&id)
    }
}

impl Metadata {
    pub(crate) fn new(config: &ModuleConfig, facts: &Facts) -> Self {
        let mut fields = table(config, facts);
        fields.retain(|field| !config.absent_fields.iter().any(|&id| field.contains(id)));
        let overrides = config
            .fields
            .iter()
            .map(|(&id, &value)| (key(id), value))
            .collect();
        Self { fields, overrides }
    }

    /// Position of the field that `id` names and index of the element in it.
    fn find(&self, id: u64) -> Option<(usize, u32)> {
        let position = self.fields.iter().position(|field| field.contains(id))?;
        Some((position, (key(id) - key(self.fields[position].id)) as u32))
    }

    /// Id of the element after the given one, [`NO_FIELD`] after the last.
    fn next(&self, position: usize, element: u32) -> u64 {
        let field = &self.fields[position];
        if element + 1 < field.elements {
            return field.id + u64::from(element + 1);
        }
        self.fields
            .get(position + 1)
            .map_or(NO_FIELD, |next| next.id)
    }
}

/// The fields of a profile in order of enumeration.
fn table(config: &ModuleConfig, facts: &Facts) -> Vec<Field> {
    let array = |id, elements, source| Field {
        id,
        elements,
        source,
    };
    let fixed = |id, value| array(id, 1, Source::Fixed(value));
    let [pamt_4k, pamt_2m, pamt_1g] = config.pamt_entry_size.map(u64::from);
    let mut fields = vec![
        // Platform: packages and their family, model and stepping.
        array(0x0000_0002_0000_0000, 1, Source::PackageCount),
        array(0x0000_0002_0000_0001, MAX_PACKAGES, Source::PackageFms),
        // Module version: vendor, build, numbers.
        fixed(0x0800_0002_0000_0000, 0x8086),
        fixed(0x8800_0002_0000_0001, facts.build_date.into()),
        fixed(0x8800_0001_0000_0002, facts.build_num.into()),
        fixed(0x0800_0001_0000_0003, facts.minor.into()),
        fixed(0x0800_0001_0000_0004, facts.major.into()),
        fixed(0x0800_0001_0000_0005, facts.update.into()),
        fixed(0x0800_0001_0000_0006, 0),
        // Handoff: versions, size of the data.
        fixed(0x8900_0001_0000_0000, facts.module_hv.into()),
        fixed(0x8900_0001_0000_0001, facts.min_update_hv.into()),
        fixed(0x8900_0000_0000_0002, facts.no_downgrade.into()),
        fixed(0x8900_0001_0000_0003, 13),
        fixed(0x8900_0000_0000_0004, 0),
        fixed(0x8900_0001_0000_0005, 0),
        fixed(0x8900_0002_0000_0006, 0),
        // Attributes and features.
        fixed(0x0a00_0002_0000_0000, 0),
        fixed(0x0a00_0000_0000_0001, 1),
        fixed(0x0a00_0003_0000_0008, facts.features0),
        // Convertible memory.
        fixed(0x9000_0001_0000_0000, MAX_CMRS.into()),
        array(0x9000_0003_0000_0080, MAX_CMRS, Source::CmrBase),
        array(0x9000_0003_0000_0100, MAX_CMRS, Source::CmrSize),
        // TDMRs.
        fixed(0x9100_0001_0000_0008, config.max_tdmrs.into()),
        fixed(0x9100_0001_0000_0009, config.max_reserved_per_tdmr.into()),
        fixed(0x9100_0001_0000_0010, pamt_4k),
        fixed(0x9100_0001_0000_0011, pamt_2m),
        fixed(0x9100_0001_0000_0012, pamt_1g),
        // Sizes of the control structures in bytes.
        fixed(0x9800_0001_0000_0000, 0x1000),
        fixed(0x9800_0001_0000_0100, 0x6000),
        fixed(0x9800_0001_0000_0101, 0x1000),
        fixed(0x9800_0001_0000_0200, 0x6000),
        fixed(0x9800_0001_0000_0201, 0x3000),
        // What a TD can be configured with.
        fixed(0x1900_0003_0000_0000, facts.attributes_fixed0),
        fixed(0x1900_0003_0000_0001, 0),
        array(0x1900_0003_0000_0002, 1, Source::XfamFixed0),
        fixed(0x1900_0003_0000_0003, 3),
        fixed(0x9900_0001_0000_0004, facts.cpuid_config.len() as u64),
        fixed(0x9900_0003_0000_0006, facts.config_flags_fixed0),
        fixed(0x9900_0003_0000_0007, 0),
    ];
    if facts.profile == Profile::Baseline {
        fields.push(fixed(0x9900_0001_0000_0008, 576));
    }
    fields.extend([
        array(0x9900_0003_0000_0400, CPUID_SLOTS, Source::CpuidLeaf),
        array(0x9900_0003_0000_0500, 2 * CPUID_SLOTS, Source::CpuidValue),
        fixed(0x9900_0003_0000_0600, 0x0118_0010),
        // Its meaning and value are not known; the one before it names it as its successor.
        fixed(0x9900_0001_0000_0800, 0),
    ]);
    fields
}

/// TDH.SYS.RD: reads one field of the global metadata.
pub(crate) fn sys_rd(call: &mut Call<'_>) -> Answer {
    let id = std::mem::replace(&mut call.regs.rdx, NO_FIELD);
    call.regs.r8 = 0;
    let module = call.module;
    let metadata = module.metadata();
    let mut state = call.state();
    if !state.lp(call.lp).initialized {
        return Err(Status::SYS_LP_INIT_NOT_DONE);
    }
    if fields::asks_for_first(id) {
        call.regs.rdx = metadata.fields.first().map_or(NO_FIELD, |field| field.id);
        return Err(Status::METADATA_FIRST_FIELD_ID_IN_CONTEXT);
    }
    fields::parse(id)?;
    let (position, element) = metadata
        .find(id)
        .ok_or(Status::METADATA_FIELD_ID_INCORRECT)?;
    let overridden = metadata.overrides.get(&key(id)).copied();
    call.regs.r8 = overridden.unwrap_or_else(|| {
        value(
            metadata.fields[position].source,
            element,
            module.facts(),
            &state,
        )
    });
    call.regs.rdx = metadata.next(position, element);
    Ok(())
}

fn value(source: Source, element: u32, facts: &Facts, state: &State) -> u64 {
    let index = element as usize;
    let cmr = || state.snapshot.cmrs.get(index).copied().unwrap_or_default();
    match source {
        Source::Fixed(value) => value,
        Source::PackageCount => state.initialized_packages().count_ones().into(),
        Source::PackageFms => match state.initialized_packages() >> element & 1 {
            0 => 0,
            _ => state.snapshot.cpuid(1, 0).eax.into(),
        },
        Source::CmrBase => cmr().base,
        Source::CmrSize => cmr().size,
        Source::XfamFixed0 => 0x6_dbe7 & state.snapshot.supported_xfam(),
        Source::CpuidLeaf => facts.cpuid_config.get(index).map_or(u64::MAX, |config| {
            u64::from(config.leaf) | u64::from(config.subleaf) << 32
        }),
        Source::CpuidValue => cpuid_value(index, facts, state),
    }
}

/// One half of the configurable bits of a CPUID leaf: EBX:EAX or EDX:ECX.
fn cpuid_value(index: usize, facts: &Facts, state: &State) -> u64 {
    let Some(config) = facts.cpuid_config.get(index / 2) else {
        return 0;
    };
    let subleaf = if config.subleaf == u32::MAX {
        0
    } else {
        config.subleaf
    };
    let native = state.snapshot.cpuid(config.leaf, subleaf);
    let native = [native.eax, native.ebx, native.ecx, native.edx];
    let half = index % 2 * 2;
    let allow = if facts.reports_allowed_cpuid() {
        config.allow
    } else {
        [0; 4]
    };
    let bits = |n: usize| u64::from(config.direct[n] | allow[n] & native[n]);
    bits(half) | bits(half + 1) << 32
}

// SPDX-License-Identifier: GPL-2.0

//! Metadata of a TD: the field table and TDH.MNG.RD. The CPUID fields are in `cpuid_values.rs`.

use crate::call::{Answer, Call};
use crate::cpuid_values;
use crate::fields::{self, NO_FIELD, key};
use crate::locks::Mode;
use crate::pamt::PageType;
use crate::sept::{SeptIndex, level_size, report_content};
use crate::state::State;
use crate::td::Td;
use crate::td_call::{BUILT, OpLock};
use crate::{Operand, Status};

/// Entries of an S-EPT page.
const SEPT_ENTRIES: u64 = 512;

/// Where the value of a field comes from; array fields are given the element's index.
#[derive(Clone, Copy, Debug)]
enum Source {
    Zero,
    Fatal,
    TdcxCount,
    Children,
    Lifecycle,
    TdcxPage,
    Hkid,
    Packages,
    Vcpus,
    AssociatedVcpus,
    OpState,
    L2Vms,
    Attributes,
    Xfam,
    MaxVcpus,
    WideAddresses,
    Eptp,
    TscMultiplier,
    TscFrequency,
    ConfigFlags,
    Epoch,
    Running,
    Mrtd,
    /// MRCONFIGID, MROWNER or MROWNERCONFIG: the first word of it.
    Owner(usize),
    SeptRoot,
}

struct Field {
    /// Full id of its first element.
    id: u64,
    elements: u64,
    source: Source,
    /// Only a debugger can read it.
    hidden: bool,
}

const fn field(id: u64, source: Source) -> Field {
    array(id, 1, source)
}

const fn array(id: u64, elements: u64, source: Source) -> Field {
    Field {
        id,
        elements,
        source,
        hidden: false,
    }
}

const fn hidden(field: Field) -> Field {
    Field {
        hidden: true,
        ..field
    }
}

/// The fields but CPUID in the order in which MNG.RD enumerates them. Those of migration and of
/// service TDs are left out, but for the first of each run.
const FIELDS: [Field; 39] = [
    field(0x8010_0000_0000_0001, Source::Fatal),
    field(0x8010_0002_0000_0002, Source::TdcxCount),
    field(0x8010_0003_0000_0004, Source::Children),
    field(0x8010_0002_0000_0005, Source::Lifecycle),
    array(0x8010_0003_0000_0010, 9, Source::TdcxPage),
    field(0x8110_0001_0000_0001, Source::Hkid),
    field(0x8110_0003_0000_0002, Source::Packages),
    field(0x8210_0001_0000_0000, Source::Zero),
    field(0x9010_0002_0000_0001, Source::Vcpus),
    field(0x9010_0002_0000_0002, Source::AssociatedVcpus),
    field(0x9010_0002_0000_0004, Source::OpState),
    field(0x9010_0001_0000_0005, Source::L2Vms),
    field(0x1110_0003_0000_0000, Source::Attributes),
    field(0x1110_0003_0000_0001, Source::Xfam),
    field(0x1110_0002_0000_0002, Source::MaxVcpus),
    field(0x1110_0000_0000_0003, Source::WideAddresses),
    field(0x1110_0003_0000_0004, Source::Eptp),
    // TSC_OFFSET: the model's time stands still.
    field(0x1110_0003_0000_000a, Source::Zero),
    field(0x1110_0003_0000_000b, Source::TscMultiplier),
    field(0x1110_0001_0000_000c, Source::TscFrequency),
    field(0x9110_0001_0000_000e, Source::Zero),
    hidden(field(0x9110_0003_0000_0010, Source::Zero)),
    hidden(field(0x9110_0003_0000_0011, Source::Zero)),
    field(0x9110_0003_0000_0012, Source::Zero),
    field(0x9110_0003_0000_0013, Source::Zero),
    field(0x1110_0003_0000_0016, Source::ConfigFlags),
    hidden(field(0x1110_0003_0000_0017, Source::Zero)),
    hidden(field(0x9110_0000_0000_0080, Source::Zero)),
    field(0x9110_0002_0000_0800, Source::Zero),
    field(0x9210_0003_0000_0000, Source::Epoch),
    array(0x9210_0001_0000_0001, 2, Source::Running),
    array(0x1310_0003_0000_0000, 6, Source::Mrtd),
    array(0x1310_0003_0000_0010, 6, Source::Owner(0)),
    array(0x1310_0003_0000_0018, 6, Source::Owner(6)),
    array(0x1310_0003_0000_0020, 6, Source::Owner(12)),
    hidden(array(0x1310_0003_0000_0040, 24, Source::Zero)),
    field(0x9900_0000_0000_0000, Source::Zero),
    field(0x9910_0000_0000_0001, Source::Zero),
    hidden(array(0x2110_0003_0000_0000, SEPT_ENTRIES, Source::SeptRoot)),
];

impl Field {
    fn contains(&self, wanted: u64) -> bool {
        (key(self.id)..key(self.id) + self.elements).contains(&wanted)
    }
}

/// Id of the field after element `index` of the field at `position`.
fn next(position: usize, index: u64, debug: bool) -> u64 {
    let field = &FIELDS[position];
    if index + 1 < field.elements {
        return field.id + index + 1;
    }
    let mut rest = FIELDS.iter().skip(position + 1);
    let field = rest.find(|field| debug || !field.hidden);
    field.map_or(NO_FIELD, |field| field.id)
}

/// TDH.MNG.RD: reads a field of a TD.
pub(crate) fn read(call: &mut Call<'_>) -> Answer {
    let version = call.version();
    let (tdr, id) = (call.regs.rcx, call.regs.rdx);
    call.regs.r8 = 0;
    if version > 0 {
        call.regs.rdx = NO_FIELD;
    }
    if version > 1 {
        return Err(Status::OPERAND_INVALID.operand(Operand::Rax));
    }
    let _tdr = call.page(tdr, Mode::Shared, PageType::Tdr, Operand::Rcx)?;
    let _state = call.td_state(tdr, OpLock::Shared, &BUILT)?;
    if version > 0 && fields::asks_for_first(id) {
        call.regs.rdx = FIELDS[0].id;
        return Err(Status::METADATA_FIRST_FIELD_ID_IN_CONTEXT);
    }
    let wanted = fields::parse(id)?;
    let mut state = call.state();
    let answer = if cpuid_values::is_cpuid(wanted) {
        let facts = call.module.facts();
        cpuid_values::read(facts, &mut state, tdr, wanted)?
    } else {
        read_field(&mut state, tdr, wanted)?
    };
    drop(state);
    let (value, next) = answer;
    call.regs.r8 = value;
    if version > 0 {
        call.regs.rdx = next;
    }
    Ok(())
}

/// The value of a field and the id of the next one.
fn read_field(state: &mut State, tdr: u64, wanted: u64) -> Result<(u64, u64), Status> {
    let mut fields = FIELDS.iter().enumerate();
    let (position, field) = fields
        .find(|(_, field)| field.contains(wanted))
        .ok_or(Status::METADATA_FIELD_ID_INCORRECT)?;
    let td = state.tables.td(tdr);
    if field.hidden && !td.is_debug() {
        return Err(Status::METADATA_FIELD_NOT_READABLE);
    }
    let index = wanted - key(field.id);
    let next = next(position, index, td.is_debug());
    let root = matches!(field.source, Source::SeptRoot);
    let value = if root {
        sept_root(state, tdr, index)
    } else {
        value(td, field.source, index as usize)
    };
    Ok((value, next))
}

fn value(td: &Td, source: Source, index: usize) -> u64 {
    let params = &td.params;
    match source {
        Source::Zero | Source::SeptRoot => 0,
        Source::Fatal => td.fatal.into(),
        Source::TdcxCount => td.tdcx.len() as u64,
        Source::Children => td.children,
        Source::Lifecycle => td.lifecycle as u64,
        Source::TdcxPage => td.tdcx.get(index).copied().unwrap_or(0),
        Source::Hkid => td.hkid.into(),
        Source::Packages => td.packages_configured.into(),
        Source::Vcpus => td.vcpus.into(),
        Source::AssociatedVcpus => td.associated_vcpus.into(),
        Source::OpState => td.op_state as u64,
        Source::L2Vms => params.num_l2_vms.into(),
        Source::Attributes => params.attributes,
        Source::Xfam => params.xfam,
        Source::MaxVcpus => params.max_vcpus.into(),
        Source::WideAddresses => params.wide_addresses().into(),
        Source::Eptp => td.eptp(),
        Source::TscMultiplier => td.tsc_multiplier,
        Source::TscFrequency => params.tsc_frequency.into(),
        Source::ConfigFlags => params.config_flags,
        Source::Epoch => td.epochs.current,
        Source::Running => td.epochs.running.get(index).copied().unwrap_or(0).into(),
        Source::Mrtd => td.measurement.result().get(index).copied().unwrap_or(0),
        Source::Owner(first) => params
            .owner_measurements
            .get(first + index)
            .copied()
            .unwrap_or(0),
    }
}

/// An entry of the root page of the S-EPT.
fn sept_root(state: &mut State, tdr: u64, number: u64) -> u64 {
    let td = state.tables.td(tdr);
    let level = td.params.top_level();
    let entry = td
        .sept
        .get(SeptIndex::new(level, number * level_size(level)));
    report_content(entry) | entry.map_or(0, |entry| entry.hpa) | 1 << 63
}

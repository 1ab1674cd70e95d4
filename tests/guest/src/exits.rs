// SPDX-License-Identifier: GPL-2.0
//! What the VMM does when a vCPU comes back from `KVM_RUN`.
//!
//! [`step`] runs a vCPU until its next exit and answers that. The loop around
//! it is in [`mod@crate::run`].

use crate::abi::*;
use crate::device::Wish;
use crate::failure::Context;
use crate::failure::Failure;
use crate::memory::pages;
use crate::run::End;
use crate::td::Td;
use kvm_bindings::KVM_EXIT_INTERNAL_ERROR;
use kvm_bindings::KVM_MEMORY_EXIT_FLAG_PRIVATE;
use kvm_bindings::kvm_run;
use kvm_ioctls::HypercallExit;
use kvm_ioctls::VcpuExit;
use kvm_ioctls::VcpuFd;
use rustix::io::Errno;

/// The errno of KVM's hypercall interface for arguments that are not valid.
const HYPERCALL_EINVAL: u64 = 22;
/// Offset of the status in the buffer of a quote request.
const QUOTE_STATUS: u64 = 8;
/// Status of a quote request: there is no service that makes quotes.
const QUOTE_UNAVAILABLE: u64 = 0x8000_0000_0000_0001;
/// First and last interrupt vector that a guest may use for itself.
const VECTORS: std::ops::RangeInclusive<u64> = 32..=255;
/// Bit of the TDVMCALL list: event notification.
const HAS_EVENT_NOTIFY: u64 = 1 << 1;

/// What came of one `KVM_RUN`.
pub enum Step {
    /// It was interrupted by a signal: no exit of the TD.
    Interrupted,
    /// An exit of this kind was answered, and the vCPU can go on.
    Continue(&'static str),
    /// An exit after which the TD does not go on.
    Ended(&'static str, End),
}

/// Run a vCPU until its next exit, and answer it.
///
/// # Errors
///
/// `KVM_RUN` fails, or the exit is one that cannot be answered.
pub fn step(td: &Td, vcpu: &mut VcpuFd) -> Result<Step, Failure> {
    match vcpu.run() {
        Err(e) if e.errno() == Errno::INTR.raw_os_error() => Ok(Step::Interrupted),
        Err(e) if e.errno() == Errno::AGAIN.raw_os_error() => Ok(Step::Interrupted),
        Ok(VcpuExit::Intr) => Ok(Step::Interrupted),
        Ok(VcpuExit::Unsupported(KVM_EXIT_TDX)) => {
            tdvmcall(td, vcpu.get_kvm_run())?;
            Ok(Step::Continue("tdvmcall"))
        }
        Ok(VcpuExit::InternalError) => Err(internal_error(vcpu.get_kvm_run())),
        Ok(exit) => answer(td, exit),
        Err(e) => Err(e).step("KVM_RUN"),
    }
}

/// Answer an exit that kvm-ioctls knows.
fn answer(td: &Td, exit: VcpuExit<'_>) -> Result<Step, Failure> {
    match exit {
        VcpuExit::Hypercall(call) => hypercall(td, call),
        VcpuExit::MemoryFault { flags, gpa, size } => memory_fault(td, flags, gpa, size),
        VcpuExit::MmioRead(address, data) => {
            td.devices.mmio_read(address, data);
            Ok(Step::Continue("mmio-read"))
        }
        VcpuExit::MmioWrite(address, data) => {
            td.devices.mmio_write(address, data);
            Ok(Step::Continue("mmio-write"))
        }
        VcpuExit::IoIn(port, data) => {
            td.devices.port_read(port, data);
            Ok(Step::Continue("io-in"))
        }
        VcpuExit::IoOut(port, data) => Ok(match td.devices.port_write(port, data) {
            Wish::Nothing => Step::Continue("io-out"),
            Wish::Line(line) => {
                println!("td {}: says: {line}", td.number);
                Step::Continue("io-out")
            }
            Wish::PowerOff => Step::Ended("io-out", End::PowerOff),
        }),
        VcpuExit::Hlt => Ok(Step::Continue("hlt")),
        VcpuExit::Shutdown => Ok(Step::Ended("shutdown", End::Shutdown)),
        VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_TDX_FATAL, data) => Err(fatal(data)),
        VcpuExit::FailEntry(reason, cpu) => Err(Failure::new(format!(
            "KVM_RUN: entry failed on CPU {cpu}, reason {reason:#x}"
        ))),
        other => Err(Failure::new(format!("KVM_RUN: unexpected exit {other:?}"))),
    }
}

/// The TD asks for memory to become shared or private (MapGPA).
fn hypercall(td: &Td, call: HypercallExit<'_>) -> Result<Step, Failure> {
    if call.nr != KVM_HC_MAP_GPA_RANGE {
        return Err(Failure::new(format!(
            "KVM_RUN: unexpected hypercall {}",
            call.nr
        )));
    }
    let (gpa, size) = (call.args[0], pages(call.args[1]));
    let private = call.args[2] & KVM_MAP_GPA_RANGE_ENCRYPTED != 0;
    if !td.memory.contains(gpa, size) {
        println!(
            "td {}: MapGPA refused: GPA {gpa:#x}, {size:#x} bytes",
            td.number
        );
        *call.ret = HYPERCALL_EINVAL;
        return Ok(Step::Continue("map-gpa-refused"));
    }
    td.memory.convert(&td.vm, gpa, size, private)?;
    *call.ret = 0;
    Ok(Step::Continue(if private {
        "map-gpa-private"
    } else {
        "map-gpa-shared"
    }))
}

/// The TD used memory as private that is shared, or the other way round: it
/// means a conversion that it did not ask for first.
fn memory_fault(td: &Td, flags: u64, gpa: u64, size: u64) -> Result<Step, Failure> {
    let private = flags & u64::from(KVM_MEMORY_EXIT_FLAG_PRIVATE) != 0;
    if !td.memory.contains(gpa, size) {
        let kind = if private { "private" } else { "shared" };
        return Err(Failure::new(format!(
            "KVM_RUN: fault at {kind} GPA {gpa:#x}, where there is no memory"
        )));
    }
    td.memory.convert(&td.vm, gpa, size, private)?;
    Ok(Step::Continue(if private {
        "fault-private"
    } else {
        "fault-shared"
    }))
}

/// A TDVMCALL that KVM leaves to the VMM: words of `kvm_run`'s union are flags,
/// number, status to return, and operands.
fn tdvmcall(td: &Td, run: &mut kvm_run) -> Result<(), Failure> {
    // SAFETY: every bit pattern is valid for every member of the union.
    let bytes = unsafe { &mut run.__bindgen_anon_1.padding };
    let mut words = [0; 8];
    for (word, at) in words.iter_mut().zip((0..).step_by(8)) {
        *word = u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i] as u8));
    }
    let [_, number, status, ref mut operands @ ..] = words;
    let status = match number {
        TDVMCALL_INFO => {
            // Operands: leaf, then R11 to R14 to return.
            operands[1] = HAS_EVENT_NOTIFY;
            0
        }
        TDVMCALL_GET_QUOTE => get_quote(td, operands[0], operands[1])?,
        TDVMCALL_SETUP_EVENT_NOTIFY if VECTORS.contains(&operands[0]) => 0,
        TDVMCALL_SETUP_EVENT_NOTIFY => TDVMCALL_INVALID_OPERAND,
        _ => {
            println!(
                "td {}: unknown TDVMCALL {number:#x}, status {status:#x}",
                td.number
            );
            TDVMCALL_UNSUPPORTED
        }
    };
    words[2] = status;
    for (word, at) in words.iter().zip((0..).step_by(8)) {
        for (i, byte) in word.to_le_bytes().into_iter().enumerate() {
            bytes[at + i] = byte as _;
        }
    }
    Ok(())
}

/// A quote is asked for, in shared memory: say that nobody makes quotes.
fn get_quote(td: &Td, gpa: u64, size: u64) -> Result<u64, Failure> {
    if size < QUOTE_STATUS + 8 || !td.memory.contains(gpa, size) {
        return Ok(TDVMCALL_INVALID_OPERAND);
    }
    td.memory
        .write(gpa + QUOTE_STATUS, &QUOTE_UNAVAILABLE.to_le_bytes())?;
    Ok(0)
}

/// The TD said that it cannot go on. KVM gives its registers in `data`.
fn fatal(data: &[u64]) -> Failure {
    // R12 is the error, R14 R15 RBX RDI RSI R8 R9 RDX a message of its own.
    let at = |register: usize| data.get(register).copied().unwrap_or(0);
    let words = [14, 15, 3, 7, 6, 8, 9, 2].map(|register| at(register).to_le_bytes());
    let text: String = words
        .iter()
        .flatten()
        .take_while(|&&b| b != 0)
        .map(|&b| char::from(b))
        .collect();
    let text = text.escape_default();
    Failure::new(format!(
        "the TD reported a fatal error {:#x} \"{text}\"",
        at(12)
    ))
}

/// KVM met something it does not expect, such as a failed TDH.VP.ENTER.
fn internal_error(run: &kvm_run) -> Failure {
    debug_assert_eq!(run.exit_reason, KVM_EXIT_INTERNAL_ERROR);
    // SAFETY: every bit pattern is valid for every member of the union.
    let error = unsafe { run.__bindgen_anon_1.internal };
    let data = &error.data[..error.data.len().min(error.ndata as usize)];
    Failure::new(
        format!(
            "KVM_RUN: internal error {}, data {data:#x?}",
            error.suberror
        )
        .replace('\n', " "),
    )
}

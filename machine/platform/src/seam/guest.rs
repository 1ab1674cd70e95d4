// SPDX-License-Identifier: GPL-2.0

//! A guest between TDH.VP.ENTER and its next exit to the host.
//!
//! The guest does the steps of its [`Script`](crate::script::Script) one after the other until one of
//! them leads back to the host; no time passes meanwhile, except in `stay`. Interrupts for the host
//! stay pending in its local APIC and are taken after the exit.

use super::inside::Inside;
use crate::GuestMemory;
use crate::machine::{At, Machine, lock};
use crate::script::{Access, AtEnd, CALL_REGISTERS, Section, Step, TRIPLE_FAULT, vmcall};
use crate::tds::{Cursor, GuestSummary, Place};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tdx_module::{GuestExit, Module, Outcome, Regs, Status};

const EPT_VIOLATION: u32 = 48;
const TDCALL: u32 = 77;
/// TDCALL leaves.
const VP_VMCALL: u64 = 0;
const MEM_PAGE_ACCEPT: u64 = 6;
/// R10 to R15 in the register mask of TDG.VP.VMCALL.
const CALL_MASK: u64 = 0xfc00;
/// R10: the host wants `TDG.VP.VMCALL<MapGPA>` once more, from R11 on.
const RETRY: u64 = 1;
/// Qualification of an EPT violation: the guest linear address is valid and translated.
const LINEAR: u64 = 3 << 7;

/// What comes of a step.
enum Next {
    /// The guest goes on.
    Continue,
    /// The processor leaves the guest.
    Exit(GuestExit),
}

/// Where an access of the guest leads.
enum Target {
    /// Physical address.
    Memory(u64),
    /// EPT violation; these rights are there.
    Violation(u64),
    /// #VE, which the guest takes for emulated I/O.
    Mmio,
}

/// A guest that runs.
struct Guest<'a> {
    machine: &'a Machine,
    at: At<'a>,
    mem: &'a dyn GuestMemory,
    inside: &'a Inside<'a>,
    place: Place,
    program: Option<&'a Section>,
    cursor: Cursor,
    regs: Regs,
    /// It has executed an instruction since the entry, TDCALL not counted.
    progress: bool,
    news: GuestSummary,
}

impl Machine {
    /// The module entered the guest of the vCPU at `tdvpr` with `regs`. Runs it until the module
    /// returns to the host; answers the host's registers.
    pub(super) fn run_guest(
        &self,
        at: At,
        tdvpr: u64,
        regs: Regs,
        mem: &dyn GuestMemory,
        inside: &Inside<'_>,
        module: &Arc<Module>,
    ) -> Regs {
        let place = lock(&self.state).tds.place(tdvpr);
        let mut guest = Guest::new(self, at, mem, inside, place, regs);
        inside.linger();
        guest.take_posted_interrupts();
        guest.take_answer();
        let host = loop {
            let Next::Exit(exit) = guest.next() else {
                continue;
            };
            let mut after = Regs::default();
            match module.guest_exit(at.lp as usize, &exit, &mut after, inside) {
                Ok(Outcome::Entered) => guest.resume(after),
                _ => {
                    guest.leave(&exit, after);
                    break after;
                }
            }
        };
        lock(&self.state)
            .tds
            .stopped(tdvpr, guest.cursor, guest.news);
        host
    }
}

impl<'a> Guest<'a> {
    fn new(
        machine: &'a Machine,
        at: At<'a>,
        mem: &'a dyn GuestMemory,
        inside: &'a Inside<'a>,
        place: Place,
        regs: Regs,
    ) -> Self {
        let news = GuestSummary {
            td: place.td,
            vcpu: place.vcpu,
            entries: 1,
            ..GuestSummary::default()
        };
        Guest {
            machine,
            at,
            mem,
            inside,
            program: machine.config.td_script.section(place.td, place.vcpu),
            cursor: place.state.cursor.clone(),
            place,
            regs,
            progress: false,
            news,
        }
    }

    fn step(&self) -> Option<(usize, Step)> {
        self.program?.steps.get(self.cursor.position).copied()
    }

    fn tell(&self, what: &str) {
        let line = self.step().map(|(line, _)| line);
        let details = json!({
            "td": self.place.td,
            "vcpu": self.place.vcpu,
            "line": line,
            "text": what,
            "r10": format!("{:#x}", self.regs.r10),
            "r11": format!("{:#x}", self.regs.r11),
        });
        self.machine.event("guest", self.at.lp, details);
    }

    fn advance(&mut self) {
        self.cursor.position += 1;
        self.cursor.calling = false;
        self.cursor.map_next = None;
        self.news.steps += 1;
    }

    /// The host may have answered the call with which the guest left.
    fn take_answer(&mut self) {
        if !std::mem::take(&mut self.cursor.calling) {
            return;
        }
        self.tell("call answered");
        match self.step() {
            Some((_, Step::MapGpa { .. })) if self.regs.r10 == RETRY => {
                self.cursor.map_next = Some(self.regs.r11);
            }
            Some(_) => self.advance(),
            None => {}
        }
    }

    /// Does the next step, or what comes after the last one.
    fn next(&mut self) -> Next {
        let Some((_, step)) = self.step() else {
            return self.end();
        };
        let shared = self.shared_bit();
        match step {
            Step::Touch {
                gpa,
                shared,
                access,
            } => self.access(gpa, shared, access, None),
            Step::Load { gpa, shared } => self.access(gpa, shared, Access::Read, None),
            Step::Store { gpa, shared, value } => {
                self.access(gpa, shared, Access::Write, Some(value))
            }
            Step::Accept { gpa, level } => self.tdcall(Regs {
                rax: MEM_PAGE_ACCEPT,
                rcx: gpa & !0xfff | u64::from(level),
                ..self.regs
            }),
            Step::Call(values) => self.call(values),
            Step::Mmio { gpa, size, value } => self.mmio(gpa | shared, size, value),
            Step::MapGpa {
                gpa,
                size,
                shared: to_shared,
            } => {
                let gpa = if to_shared { gpa | shared } else { gpa };
                let start = self.cursor.map_next.unwrap_or(gpa);
                let left = gpa.wrapping_add(size).wrapping_sub(start);
                self.call([0, vmcall::MAP_GPA, start, left, 0, 0])
            }
            Step::Expect { register, value } => {
                self.expect(register, value);
                self.done()
            }
            Step::Stay(time) => {
                std::thread::sleep(Duration::from_micros(time));
                self.done()
            }
            Step::Exit([reason, qualification, gpa, info]) => Next::Exit(GuestExit {
                qualification,
                gpa,
                interruption: info as u32,
                ..self.exit(reason as u32)
            }),
        }
    }

    fn done(&mut self) -> Next {
        self.progress = true;
        self.advance();
        Next::Continue
    }

    /// After the last step.
    fn end(&mut self) -> Next {
        let at_end = self.program.map(|program| program.at_end);
        match at_end.unwrap_or_default() {
            AtEnd::Shutdown => Next::Exit(self.exit(TRIPLE_FAULT as u32)),
            AtEnd::Loop if std::mem::take(&mut self.cursor.exited) => {
                self.cursor.position = 0;
                Next::Continue
            }
            AtEnd::Loop | AtEnd::Halt => self.call([0, vmcall::HLT, 0, 0, 0, 0]),
        }
    }

    fn exit(&self, reason: u32) -> GuestExit {
        GuestExit {
            reason,
            regs: self.regs,
            progress: self.progress,
            ..GuestExit::default()
        }
    }

    fn tdcall(&self, regs: Regs) -> Next {
        Next::Exit(GuestExit {
            regs,
            ..self.exit(TDCALL)
        })
    }

    /// TDG.VP.VMCALL with these values in R10 to R15.
    fn call(&self, [r10, r11, r12, r13, r14, r15]: [u64; 6]) -> Next {
        self.tdcall(Regs {
            rax: VP_VMCALL,
            rcx: CALL_MASK,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
            ..self.regs
        })
    }

    fn mmio(&self, gpa: u64, size: u64, value: Option<u64>) -> Next {
        let write = u64::from(value.is_some());
        self.call([0, vmcall::MMIO, size, write, gpa, value.unwrap_or(0)])
    }

    fn expect(&mut self, register: usize, value: u64) {
        let mut regs = self.regs;
        let name = CALL_REGISTERS.get(register).copied().unwrap_or_default();
        let found = regs.by_name(name).copied().unwrap_or(0);
        if found != value {
            self.news.failures += 1;
            let text = format!("{name} is {found:#x}, not {value:#x}");
            self.tell(&text);
            let line = self.step().map_or(0, |(line, _)| line);
            self.machine.log(&format!(
                "TD {} vCPU {}, line {line} of the script: {text}",
                self.place.td, self.place.vcpu
            ));
        }
    }

    /// The bit of a GPA that says "shared". The module gives the guest the width of its addresses in
    /// RBX, and no step changes that.
    fn shared_bit(&self) -> u64 {
        let width = if self.regs.rbx == 52 { 52 } else { 48 };
        1 << (width - 1)
    }

    /// A load, store or fetch; `value` is stored.
    fn access(&mut self, gpa: u64, shared: bool, access: Access, value: Option<u64>) -> Next {
        let right = match access {
            Access::Read => 1,
            Access::Write => 2,
            Access::Execute => 4,
        };
        let (target, gpa) = if shared {
            let gpa = gpa | self.shared_bit();
            (self.shared_target(gpa, right), gpa)
        } else {
            let found = lock(&self.machine.state).tds.translate(self.place.tdr, gpa);
            (found.map_or(Target::Violation(0), Target::Memory), gpa)
        };
        match target {
            Target::Memory(pa) => {
                self.access_memory(pa, shared, access, value);
                self.done()
            }
            Target::Violation(rights) => Next::Exit(GuestExit {
                qualification: right | rights << 3 | LINEAR,
                gpa,
                ..self.exit(EPT_VIOLATION)
            }),
            Target::Mmio => {
                let stored = (access == Access::Write).then(|| value.unwrap_or(0));
                self.mmio(gpa, 8, stored)
            }
        }
    }

    fn access_memory(&mut self, pa: u64, shared: bool, access: Access, value: Option<u64>) {
        let is_load = matches!(self.step(), Some((_, Step::Load { .. })));
        if is_load {
            let mut buffer = [0; 8];
            self.mem.read(pa, &mut buffer);
            self.regs.r11 = u64::from_le_bytes(buffer);
        }
        if let Some(value) = value {
            self.mem.write(pa, &value.to_le_bytes());
        }
        if access == Access::Write && !shared {
            self.inside.guest_wrote(pa, 8, self.place.hkid);
        }
    }

    /// Walks the shared EPT, which has four levels.
    fn shared_target(&self, gpa: u64, right: u64) -> Target {
        const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
        let mut table = self.place.state.shared_ept & ADDRESS;
        for level in (0..4).rev() {
            let shift = 12 + 9 * level;
            let mut buffer = [0; 8];
            let entry_at = table + (gpa >> shift & 0x1ff) * 8;
            if table == 0 || !self.mem.read(entry_at, &mut buffer) {
                return Target::Violation(0);
            }
            let entry = u64::from_le_bytes(buffer);
            let rights = entry & 7;
            let leaf = level == 0 || entry >> 7 & 1 == 1;
            if rights & right == 0 {
                let suppressed = entry >> 63 == 1;
                return if suppressed || rights != 0 {
                    Target::Violation(rights)
                } else {
                    Target::Mmio
                };
            }
            table = entry & ADDRESS;
            if leaf {
                let offset = (1 << shift) - 1;
                return Target::Memory(table & !offset | gpa & offset);
            }
        }
        Target::Violation(0)
    }

    /// The module went back to the guest instead of returning to the host.
    fn resume(&mut self, regs: Regs) {
        self.regs = regs;
        match self.step() {
            Some((_, Step::Accept { gpa, level })) => {
                let status = self.regs.rax >> 32 << 32;
                if status == Status::OPERAND_BUSY.raw() {
                    // The host or another vCPU has the entry: a guest tries again.
                    return;
                }
                let already = Status::PAGE_ALREADY_ACCEPTED.raw();
                if status == Status::SUCCESS.raw() || status == already {
                    lock(&self.machine.state)
                        .tds
                        .accepted(self.place.tdr, gpa, level);
                }
                if status != Status::SUCCESS.raw() {
                    self.tell(&format!("TDG.MEM.PAGE.ACCEPT: {:#x}", self.regs.rax));
                }
            }
            Some((_, Step::Call(_) | Step::Mmio { .. } | Step::MapGpa { .. })) => {
                self.tell(&format!("TDG.VP.VMCALL: {:#x}", self.regs.rax));
            }
            Some(_) => {
                self.progress = true;
                self.tell("exception in the guest");
            }
            None => {}
        }
        self.advance();
    }

    /// The processor returns to the host.
    fn leave(&mut self, exit: &GuestExit, host: Regs) {
        self.cursor.exited = true;
        let call = exit.reason == TDCALL && exit.regs.rax == VP_VMCALL;
        let name = if call {
            format!("TDVMCALL {:#x}", exit.regs.r11)
        } else {
            format!("exit {}", host.rax as u32)
        };
        *self.news.exits.entry(name).or_default() += 1;
        self.cursor.calling = call;
        if matches!(self.step(), Some((_, Step::Exit(_)))) {
            self.advance();
        }
    }

    /// Interrupts that the host posted are delivered; the guest's handlers do nothing.
    fn take_posted_interrupts(&mut self) {
        /// Byte of the descriptor with bit ON.
        const CONTROL: u64 = 32;
        let descriptor = self.place.state.posted;
        let mut control = [0];
        if descriptor == 0 || !self.mem.read(descriptor + CONTROL, &mut control) {
            return;
        }
        if control[0] & 1 == 0 {
            return;
        }
        self.mem.write(descriptor + CONTROL, &[control[0] & !1]);
        for word in (descriptor..descriptor + CONTROL).step_by(8) {
            let mut requests = [0; 8];
            if self.mem.read(word, &mut requests) && requests != [0; 8] {
                self.mem.write(word, &[0; 8]);
                let requests = u64::from_le_bytes(requests);
                self.news.interrupts += u64::from(requests.count_ones());
            }
        }
    }
}

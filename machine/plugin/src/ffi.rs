// SPDX-License-Identifier: GPL-2.0

//! The border to QEMU: plugin interface version 7, and all `unsafe` of the machine.
//!
//! QEMU ships no header in its packages, so the functions are declared here by hand. [`Qemu`] is the
//! vCPU of the calling thread as a [`Cpu`]; [`qemu_plugin_install`] loads the machine and registers
//! the callbacks; those that execute instructions are in `execute`, those that count them in `count`.

mod count;
mod execute;

use crate::backtrace::backtrace;
use crate::cpu::{Cpu, Reg};
use crate::decode::{self, Op};
use crate::emulate::{Insn, Vcpu};
use crate::machine_check::Monitor;
use crate::trap::{Handlers, IretSites};
use count::Scoreboard;
use execute::{on_after_answer, on_handler, on_insn, on_nmi_place, on_undefined};
use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use tdx_platform::config::MachineConfig;
use tdx_platform::{Access, At, GuestMemory, Machine, Stack};

/// Interface version that this plugin is written for; QEMU looks for the symbol.
#[unsafe(no_mangle)]
pub static qemu_plugin_version: c_int = 7;

type PluginId = u64;
type VcpuCallback = unsafe extern "C" fn(c_uint, *mut c_void);
type MemCallback = unsafe extern "C" fn(c_uint, u32, u64, *mut c_void);

/// Callback reads registers.
const CB_R_REGS: c_int = 1;
/// Callback reads and writes registers.
const CB_RW_REGS: c_int = 2;
/// Callback reads and writes registers and may move the program counter.
const CB_RW_REGS_PC: c_int = 3;
/// No registers.
const CB_NO_REGS: c_int = 0;
/// Loads and stores.
const MEM_RW: c_int = 3;

#[repr(C)]
struct GByteArray {
    data: *mut u8,
    len: c_uint,
}

#[repr(C)]
struct GArray {
    data: *mut c_char,
    len: c_uint,
}

#[repr(C)]
struct RegDescriptor {
    handle: *mut c_void,
    name: *const c_char,
    feature: *const c_char,
    read_only: bool,
}

#[repr(C)]
pub(crate) struct Info {
    target_name: *const c_char,
    version: [c_int; 2],
    system_emulation: bool,
    smp_vcpus: c_int,
    max_vcpus: c_int,
}

// Each function is safe to call with the arguments its documentation in QEMU asks for, from the
// kind of callback it allows; every call below says why that holds.
unsafe extern "C" {
    fn g_byte_array_new() -> *mut GByteArray;
    fn g_byte_array_set_size(array: *mut GByteArray, len: c_uint) -> *mut GByteArray;
    fn g_array_free(array: *mut GArray, free_segment: c_int) -> *mut c_char;
    fn qemu_plugin_register_vcpu_init_cb(id: PluginId, cb: VcpuCallback, data: *mut c_void);
    fn qemu_plugin_register_vcpu_tb_trans_cb(
        id: PluginId,
        cb: unsafe extern "C" fn(*mut c_void, *mut c_void),
        data: *mut c_void,
    );
    fn qemu_plugin_register_atexit_cb(
        id: PluginId,
        cb: unsafe extern "C" fn(*mut c_void),
        data: *mut c_void,
    );
    fn qemu_plugin_register_vcpu_insn_exec_cb(
        insn: *mut c_void,
        cb: VcpuCallback,
        flags: c_int,
        data: *mut c_void,
    );
    fn qemu_plugin_register_vcpu_mem_cb(
        insn: *mut c_void,
        cb: MemCallback,
        flags: c_int,
        rw: c_int,
        data: *mut c_void,
    );
    fn qemu_plugin_tb_n_insns(tb: *const c_void) -> usize;
    fn qemu_plugin_tb_get_insn(tb: *const c_void, index: usize) -> *mut c_void;
    fn qemu_plugin_insn_data(insn: *const c_void, dest: *mut c_void, len: usize) -> usize;
    fn qemu_plugin_insn_vaddr(insn: *const c_void) -> u64;
    fn qemu_plugin_mem_size_shift(info: u32) -> c_uint;
    fn qemu_plugin_mem_is_store(info: u32) -> bool;
    fn qemu_plugin_get_hwaddr(info: u32, vaddr: u64) -> *mut c_void;
    fn qemu_plugin_hwaddr_is_io(hwaddr: *const c_void) -> bool;
    fn qemu_plugin_hwaddr_phys_addr(hwaddr: *const c_void) -> u64;
    fn qemu_plugin_get_registers() -> *mut GArray;
    fn qemu_plugin_read_register(handle: *mut c_void, buf: *mut GByteArray) -> bool;
    fn qemu_plugin_write_register(handle: *mut c_void, buf: *mut GByteArray) -> bool;
    fn qemu_plugin_read_memory_vaddr(va: u64, buf: *mut GByteArray, len: usize) -> bool;
    fn qemu_plugin_write_memory_vaddr(va: u64, buf: *mut GByteArray) -> bool;
    fn qemu_plugin_read_memory_hwaddr(pa: u64, buf: *mut GByteArray, len: usize) -> c_int;
    fn qemu_plugin_write_memory_hwaddr(pa: u64, buf: *mut GByteArray) -> c_int;
    fn qemu_plugin_translate_vaddr(va: u64, pa: *mut u64) -> bool;
}

/// Everything the callbacks share; made once by [`qemu_plugin_install`].
struct Shared {
    machine: Machine,
    summary: String,
    irets: IretSites,
    handlers: Handlers,
    vcpus: Vec<Mutex<Vcpu>>,
    /// Register handles in the order of [`Reg`]; QEMU gives every vCPU the same ones.
    handles: OnceLock<[usize; Reg::COUNT]>,
    /// Instructions that have a callback; they live as long as QEMU and are found again when the
    /// same code is translated again.
    insns: Mutex<HashMap<(u64, Op), &'static Insn>>,
    /// Addresses at which something is [pending](crate::emulate::Pending), where a translation block begins.
    after_answer: Mutex<HashSet<u64>>,
    any_after_answer: AtomicBool,
    /// There if instructions of functions are counted.
    scoreboard: Option<Scoreboard>,
    /// There if processors can get machine checks.
    monitor: Option<Monitor>,
    faults: AtomicU64,
}

static SHARED: OnceLock<Shared> = OnceLock::new();

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `f` on the shared state. A panic is a bug of the plugin: it is reported and the guest goes
/// on as if the plugin had nothing to say.
fn with_shared<T: Default>(f: impl FnOnce(&'static Shared) -> T) -> T {
    let Some(shared) = SHARED.get() else {
        return T::default();
    };
    catch_unwind(AssertUnwindSafe(|| f(shared))).unwrap_or_else(|_| {
        if shared.faults.fetch_add(1, Ordering::Relaxed) < 10 {
            eprintln!("tdx-machine: internal error in the plugin, see the message above");
        }
        T::default()
    })
}

thread_local! {
    static BUFFER: Cell<*mut GByteArray> = const { Cell::new(std::ptr::null_mut()) };
}

/// The calling thread's byte array with `data` in it.
fn buffer(data: &[u8]) -> *mut GByteArray {
    BUFFER.with(|cell| {
        if cell.get().is_null() {
            // SAFETY: No arguments; GLib aborts rather than returning null.
            cell.set(unsafe { g_byte_array_new() });
        }
        let array = cell.get();
        // SAFETY: `array` came from g_byte_array_new() and belongs to this thread alone. After
        // set_size its `data` has room for `data.len()` bytes, none of them inside `data`. Callers
        // pass at most a page, so the length fits.
        unsafe {
            g_byte_array_set_size(array, data.len() as c_uint);
            if !data.is_empty() {
                std::ptr::copy_nonoverlapping(data.as_ptr(), (*array).data, data.len());
            }
        }
        array
    })
}

/// Copies what QEMU put into `array` to `buf`; `false` if it has not as many bytes.
fn take(array: *mut GByteArray, buf: &mut [u8]) -> bool {
    // SAFETY: `array` is the calling thread's array from buffer(), so it is valid, its `len` bytes
    // at `data` are initialised and do not overlap `buf`.
    unsafe {
        if ((*array).len as usize) < buf.len() {
            return false;
        }
        std::ptr::copy_nonoverlapping((*array).data, buf.as_mut_ptr(), buf.len());
    }
    true
}

/// The vCPU of the calling thread. Made only inside a callback that may access registers.
struct Qemu<'a> {
    handles: &'a [usize; Reg::COUNT],
}

impl Cpu for Qemu<'_> {
    fn executed(&self) -> u64 {
        let scoreboard = SHARED.get().and_then(|shared| shared.scoreboard.as_ref());
        scoreboard.map_or(0, Scoreboard::total)
    }

    fn reg(&self, reg: Reg) -> u64 {
        let array = buffer(&[]);
        let handle = self.handles[reg as usize] as *mut c_void;
        // SAFETY: The handle came from qemu_plugin_get_registers() (all are found before a `Qemu`
        // is made), the array is this thread's own, and this is a callback with register access.
        let read = unsafe { qemu_plugin_read_register(handle, array) };
        // SAFETY: As in take().
        let len = unsafe { (*array).len as usize }.min(8);
        let mut value = [0; 8];
        if !read || !take(array, &mut value[..len]) {
            return 0;
        }
        u64::from_le_bytes(value)
    }

    fn set_reg(&mut self, reg: Reg, value: u64) {
        let handle = self.handles[reg as usize] as *mut c_void;
        // SAFETY: As in reg(); no register named in `Reg` is wider than the 8 bytes given.
        unsafe { qemu_plugin_write_register(handle, buffer(&value.to_le_bytes())) };
    }

    fn read_virt(&self, va: u64, buf: &mut [u8]) -> bool {
        let array = buffer(&[]);
        // SAFETY: The array is this thread's own and this is a vCPU callback.
        !buf.is_empty()
            && unsafe { qemu_plugin_read_memory_vaddr(va, array, buf.len()) }
            && take(array, buf)
    }

    fn write_virt(&mut self, va: u64, data: &[u8]) -> bool {
        // SAFETY: As in read_virt().
        !data.is_empty() && unsafe { qemu_plugin_write_memory_vaddr(va, buffer(data)) }
    }

    fn translate(&self, va: u64) -> Option<u64> {
        let mut pa = 0;
        // SAFETY: `pa` is valid for the write and this is a vCPU callback.
        unsafe { qemu_plugin_translate_vaddr(va, &mut pa) }.then_some(pa)
    }

    fn read_phys(&self, pa: u64, buf: &mut [u8]) -> bool {
        QemuMemory.read(pa, buf)
    }

    fn write_phys(&mut self, pa: u64, data: &[u8]) -> bool {
        QemuMemory.write(pa, data)
    }
}

impl Stack for Qemu<'_> {
    fn backtrace(&self) -> Vec<u64> {
        backtrace(self)
    }
}

/// Guest memory, reached through whatever vCPU the calling thread runs.
struct QemuMemory;

impl GuestMemory for QemuMemory {
    fn read(&self, pa: u64, buf: &mut [u8]) -> bool {
        let array = buffer(&[]);
        // SAFETY: The array is this thread's own; only vCPU callbacks use `QemuMemory`.
        !buf.is_empty()
            && unsafe { qemu_plugin_read_memory_hwaddr(pa, array, buf.len()) } == 0
            && take(array, buf)
    }

    fn write(&self, pa: u64, data: &[u8]) -> bool {
        // SAFETY: As in read().
        !data.is_empty() && unsafe { qemu_plugin_write_memory_hwaddr(pa, buffer(data)) } == 0
    }
}

/// QEMU calls this when it loads the plugin.
///
/// # Safety
///
/// `info` and the `argc` strings at `argv` must be valid, as QEMU promises.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn qemu_plugin_install(
    id: PluginId,
    info: *const Info,
    argc: c_int,
    argv: *mut *mut c_char,
) -> c_int {
    // SAFETY: The caller promises `argc` valid strings and a valid `info`.
    let (args, max_vcpus, x86) = unsafe {
        let args: Vec<String> = (0..argc.max(0) as usize)
            .map(|i| CStr::from_ptr(*argv.add(i)).to_string_lossy().into_owned())
            .collect();
        let target = CStr::from_ptr((*info).target_name).to_bytes();
        (
            args,
            (*info).max_vcpus,
            target == b"x86_64" && (*info).system_emulation,
        )
    };
    let loaded = catch_unwind(|| {
        if !x86 {
            return Err("only qemu-system-x86_64 can be a TDX machine".to_owned());
        }
        let shared = load(&args, max_vcpus.max(1) as usize)?;
        SHARED
            .set(shared)
            .map_err(|_| "the plugin is loaded twice".to_owned())
    });
    if let Ok(Err(error)) = &loaded {
        eprintln!("tdx-machine: {error}");
    }
    if !matches!(loaded, Ok(Ok(()))) {
        return 1;
    }
    let none = std::ptr::null_mut();
    // SAFETY: `id` is ours, the callbacks have the types version 7 asks for and live as long as the
    // library, which QEMU never unloads by itself.
    unsafe {
        qemu_plugin_register_vcpu_init_cb(id, on_vcpu_init, none);
        qemu_plugin_register_vcpu_tb_trans_cb(id, on_translate, none);
        qemu_plugin_register_atexit_cb(id, on_exit, none);
    }
    if SHARED
        .get()
        .is_some_and(|shared| shared.scoreboard.is_some())
    {
        count::watch_traps(id);
    }
    0
}

/// Makes the machine from the plugin's arguments `config=FILE`, `trace=FILE`, `summary=FILE` and, if the
/// erratum is to have consequences, `monitor=SOCKET`.
fn load(args: &[String], max_vcpus: usize) -> Result<Shared, String> {
    let argument = |name: &str| {
        let value = args
            .iter()
            .find_map(|arg| arg.strip_prefix(name)?.strip_prefix('='));
        value
            .map(str::to_owned)
            .ok_or_else(|| format!("plugin argument {name}=FILE is missing"))
    };
    let (path, trace) = (argument("config")?, argument("trace")?);
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
    let config: MachineConfig = serde_json::from_str(&text).map_err(|e| format!("{path}: {e}"))?;
    let trace = File::create(&trace).map_err(|e| format!("{trace}: {e}"))?;
    let counting = !config.counted.is_empty();
    let monitor = config.strict.then(|| argument("monitor")).transpose()?;
    Ok(Shared {
        machine: Machine::new(config, Box::new(trace), Box::new(std::io::stderr()))?,
        summary: argument("summary")?,
        irets: IretSites::default(),
        handlers: Handlers::default(),
        vcpus: (0..max_vcpus).map(|_| Mutex::default()).collect(),
        handles: OnceLock::new(),
        insns: Mutex::default(),
        after_answer: Mutex::default(),
        any_after_answer: AtomicBool::new(false),
        scoreboard: counting.then(Scoreboard::new),
        monitor: monitor.map(Monitor::new),
        faults: AtomicU64::new(0),
    })
}

unsafe extern "C" fn on_vcpu_init(_vcpu: c_uint, _data: *mut c_void) {
    with_shared(|shared| {
        if shared.handles.get().is_none() {
            match find_registers() {
                Ok(handles) => drop(shared.handles.set(handles)),
                Err(name) => eprintln!("tdx-machine: this QEMU has no register '{name}'"),
            }
        }
    });
}

/// Handles of all registers of [`Reg`], or the name of one that QEMU does not have.
fn find_registers() -> Result<[usize; Reg::COUNT], &'static str> {
    // SAFETY: Called from the vcpu_init callback. The array holds `len` descriptors with valid,
    // interned names; it is ours and freed once.
    let known: HashMap<Vec<u8>, usize> = unsafe {
        let array = qemu_plugin_get_registers();
        let descriptors = (*array).data.cast::<RegDescriptor>();
        let known = (0..(*array).len as usize)
            .map(|i| &*descriptors.add(i))
            .map(|d| {
                (
                    CStr::from_ptr(d.name).to_bytes().to_vec(),
                    d.handle as usize,
                )
            })
            .collect();
        g_array_free(array, 1);
        known
    };
    let mut handles = [0; Reg::COUNT];
    for (handle, name) in handles.iter_mut().zip(Reg::NAMES) {
        *handle = *known.get(name.as_bytes()).ok_or(name)?;
    }
    Ok(handles)
}

/// Linear address of the first instruction after RESET.
const RESET_VECTOR: u64 = 0xffff_fff0;

unsafe extern "C" fn on_translate(tb: *mut c_void, _data: *mut c_void) {
    with_shared(|shared| {
        // SAFETY: `tb` is valid during this callback, as are the instructions QEMU returns for it.
        let count = unsafe { qemu_plugin_tb_n_insns(tb) };
        let mut after_answer = false;
        for index in 0..count {
            // SAFETY: `index` is below the number of instructions.
            let insn = unsafe { qemu_plugin_tb_get_insn(tb, index) };
            after_answer = translate(shared, insn, index == 0, after_answer, index + 1 == count);
        }
    });
}

/// Registers the callbacks that one instruction needs. Answers whether the next one needs
/// [`on_after_answer`].
fn translate(
    shared: &'static Shared,
    insn: *mut c_void,
    first: bool,
    after_answer: bool,
    last: bool,
) -> bool {
    let mut bytes = [0u8; 15];
    // SAFETY: `insn` is valid during translation; `bytes` has the length given.
    let (len, va) = unsafe {
        (
            qemu_plugin_insn_data(insn, bytes.as_mut_ptr().cast(), 15),
            qemu_plugin_insn_vaddr(insn),
        )
    };
    count::translate(shared, insn, va, &bytes[..len.min(15)]);
    let none = std::ptr::null_mut();
    let register = |cb: VcpuCallback, flags, data| {
        // SAFETY: `insn` is valid; `data` is null or a reference that lives for ever.
        unsafe { qemu_plugin_register_vcpu_insn_exec_cb(insn, cb, flags, data) }
    };
    if va == RESET_VECTOR {
        register(on_reset, CB_NO_REGS, none);
    }
    let missed = first
        && shared.any_after_answer.load(Ordering::Relaxed)
        && lock(&shared.after_answer).contains(&va);
    if after_answer || missed {
        register(on_after_answer, CB_RW_REGS, va as *mut c_void);
    }
    let nmis = &shared.machine.config().nmis;
    if nmis.iter().any(|place| place.function.address == va) {
        register(on_nmi_place, CB_RW_REGS_PC, va as *mut c_void);
    }
    if first && shared.handlers.contains(va) {
        register(on_handler, CB_RW_REGS_PC, none);
    }
    let found = find(shared, &bytes[..len.min(15)], va);
    // What an IRETQ reads is not the program's: it may be the way out of a trap.
    let iretq = matches!(found, Some((Op::Iretq, _)));
    let config = shared.machine.config();
    if config.watch_memory && !iretq {
        let partial = config.strict && decode::is_non_temporal(&bytes[..len.min(15)]);
        let cb = if partial { on_partial_write } else { on_memory };
        // SAFETY: `insn` is valid; the data is an address that is only ever used as a number.
        unsafe { qemu_plugin_register_vcpu_mem_cb(insn, cb, CB_R_REGS, MEM_RW, va as *mut c_void) };
    }
    let Some((op, length)) = found else {
        return false;
    };
    if iretq {
        shared.irets.note(va);
        return false;
    }
    let data = *lock(&shared.insns).entry((va, op)).or_insert_with(|| {
        Box::leak(Box::new(Insn {
            op,
            rip: va,
            len: length as u64,
        }))
    });
    let insn_data = std::ptr::from_ref(data).cast_mut().cast();
    if op.is_undefined() {
        register(on_undefined, CB_R_REGS, insn_data);
        return false;
    }
    register(on_insn, CB_RW_REGS_PC, insn_data);
    let answers = matches!(op, Op::Cpuid | Op::Rdmsr | Op::ReadCr4(_) | Op::WriteCr4(_));
    if answers && last {
        lock(&shared.after_answer).insert(va.wrapping_add(length as u64));
        shared.any_after_answer.store(true, Ordering::Relaxed);
    }
    answers
}

/// Decodes the instruction at `va`, of which QEMU has read `bytes`.
fn find(shared: &Shared, bytes: &[u8], va: u64) -> Option<(Op, usize)> {
    if !decode::interesting(bytes) {
        return None;
    }
    // QEMU stops reading an instruction it does not know, so the bytes may be incomplete.
    let mut whole = [0u8; 15];
    let handles = shared.handles.get()?;
    if (Qemu { handles }).read_virt(va, &mut whole) {
        decode::decode(&whole, va)
    } else {
        decode::decode(bytes, va)
    }
}

/// The boot processor is at the reset vector. At power-on, and when firmware resets once more before
/// it has started a kernel, there is nothing to forget.
unsafe extern "C" fn on_reset(_vcpu: c_uint, _data: *mut c_void) {
    with_shared(|shared| {
        let kernel_ran = |vcpu: &Mutex<Vcpu>| lock(vcpu).tables.idt.is_some();
        if shared.vcpus.iter().any(kernel_ran) {
            for vcpu in &shared.vcpus {
                *lock(vcpu) = Vcpu::default();
            }
            shared.machine.reset();
        }
    });
}

unsafe extern "C" fn on_memory(vcpu: c_uint, info: u32, va: u64, data: *mut c_void) {
    // SAFETY: This is a callback for an access, and these are its arguments.
    unsafe { access(vcpu, info, va, data as u64, Access::Store) }
}

unsafe extern "C" fn on_partial_write(vcpu: c_uint, info: u32, va: u64, data: *mut c_void) {
    // SAFETY: As in on_memory().
    unsafe { access(vcpu, info, va, data as u64, Access::NonTemporal) }
}

/// The instruction at `rip` accesses `va`. If it is a store, it is one of the kind `store`.
///
/// # Safety
///
/// `vcpu`, `info` and `va` are those of the callback for the access, which is the caller.
unsafe fn access(vcpu: c_uint, info: u32, va: u64, rip: u64, store: Access) {
    with_shared(|shared| {
        // SAFETY: `info` and `va` are those of this callback, during which the handle is valid.
        let (pa, len, is_store) = unsafe {
            let hwaddr = qemu_plugin_get_hwaddr(info, va);
            if hwaddr.is_null() || qemu_plugin_hwaddr_is_io(hwaddr) {
                return;
            }
            (
                qemu_plugin_hwaddr_phys_addr(hwaddr),
                1u64 << qemu_plugin_mem_size_shift(info).min(12),
                qemu_plugin_mem_is_store(info),
            )
        };
        if shared.machine.may_be_private(pa) {
            let cpu = shared.handles.get().map(|handles| Qemu { handles });
            let at = At {
                lp: vcpu,
                rip,
                stack: cpu.as_ref().map(|cpu| cpu as &dyn Stack),
                ..At::default()
            };
            let access = if is_store { store } else { Access::Load };
            let poisoned = shared.machine.access(at, pa, len, access);
            if let (Some(line), Some(monitor)) = (poisoned, &shared.monitor)
                && let Err(error) = monitor.machine_check(vcpu, line)
            {
                let what = format!("a machine check cannot be raised ({error})");
                shared.machine.unsupported(at, &what);
            }
        }
    });
}

unsafe extern "C" fn on_exit(_data: *mut c_void) {
    with_shared(|shared| {
        let summary = shared.machine.finish();
        let written = File::create(&shared.summary)
            .and_then(|file| serde_json::to_writer_pretty(file, &summary).map_err(Into::into));
        if let Err(error) = written {
            eprintln!("tdx-machine: {}: {error}", shared.summary);
        }
    });
}

// SPDX-License-Identifier: GPL-2.0
//! Loading a kernel: `kexec_file_load`, for which the C library has no function.

use std::ffi::CString;
use std::ffi::c_int;
use std::ffi::c_ulong;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

/// The kernel starts at the next panic.
const ON_CRASH: c_ulong = 2;
/// There is no initramfs.
const NO_INITRAMFS: c_ulong = 4;

/// Load `kernel` with `initrd` and the command line `line`, for the next panic if `crash` says so.
///
/// # Errors
///
/// A file is missing, or the kernel refuses: the image is none, no memory is set
/// aside for a crash.
pub fn load(kernel: &Path, initrd: Option<&Path>, line: &str, crash: bool) -> Result<(), String> {
    let open = |path: &Path| File::open(path).map_err(|e| format!("{}: {e}", path.display()));
    let image = open(kernel)?;
    let initrd = initrd.map(open).transpose()?;
    let line = CString::new(line).map_err(|e| format!("command line: {e}"))?;
    let crash = if crash { ON_CRASH } else { 0 };
    let flags = crash | initrd.as_ref().map_or(NO_INITRAMFS, |_| 0);
    let initrd = initrd.as_ref().map_or(-1, AsRawFd::as_raw_fd);
    kexec_file_load(image.as_raw_fd(), initrd, &line, flags)
        .map_err(|e| format!("load {}: {e}", kernel.display()))
}

fn kexec_file_load(kernel: c_int, initrd: c_int, line: &CString, flags: c_ulong) -> io::Result<()> {
    let length = line.as_bytes_with_nul().len();
    // SAFETY: The kernel reads `length` bytes at `line`, which are valid and end with
    // a zero byte, and writes nothing.
    let result = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            kernel,
            initrd,
            length,
            line.as_ptr(),
            flags,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

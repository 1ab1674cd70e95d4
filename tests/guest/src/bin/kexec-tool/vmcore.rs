// SPDX-License-Identifier: GPL-2.0
//! Reading the memory of the crashed kernel.

use memmap2::MmapOptions;
use std::fs::File;
use std::path::Path;

/// Bytes mapped and copied at a time.
const CHUNK: usize = 4 << 20;

/// Read all of `path`, as a program would that saves it, and print its length: `vmcore=BYTES`.
///
/// Programs that save it map it, as `read()` maps each page for itself.
///
/// # Errors
///
/// The file cannot be mapped to its end, or it is no ELF file.
pub fn copy(path: &Path) -> Result<(), String> {
    let failed = |e| format!("{}: {e}", path.display());
    let file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    let mut copied = vec![0; CHUNK];
    let mut at = 0;
    while at < length {
        let size = CHUNK.min(usize::try_from(length - at).unwrap_or(CHUNK));
        // SAFETY: The kernel that crashed does not run, and nobody here writes to its memory or
        // changes the file.
        let memory = unsafe { MmapOptions::new().offset(at).len(size).map(&file) }
            .map_err(|e| format!("{}, after {at} bytes: {e}", path.display()))?;
        copied[..size].copy_from_slice(&memory);
        if at == 0 && !copied.starts_with(b"\x7fELF") {
            return Err(format!("{} is no ELF file", path.display()));
        }
        at += size as u64;
    }
    println!("vmcore={length}");
    Ok(())
}

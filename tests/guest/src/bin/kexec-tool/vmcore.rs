// SPDX-License-Identifier: GPL-2.0
//! Reading the memory of the crashed kernel.

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Bytes read at a time.
const CHUNK: usize = 1 << 20;

/// Read all of `path`, as a program would that saves it, and print its length: `vmcore=BYTES`.
///
/// # Errors
///
/// The file cannot be read to its end, or it is no ELF file.
pub fn copy(path: &Path) -> Result<(), String> {
    let failed = |e| format!("{}: {e}", path.display());
    let mut file = File::open(path).map_err(failed)?;
    let mut chunk = vec![0; CHUNK];
    let mut length = 0_u64;
    loop {
        let read = file
            .read(&mut chunk)
            .map_err(|e| format!("{}, after {length} bytes: {e}", path.display()))?;
        if length == 0 && !chunk[..read].starts_with(b"\x7fELF") {
            return Err(format!("{} is no ELF file", path.display()));
        }
        if read == 0 {
            break;
        }
        length += read as u64;
    }
    println!("vmcore={length}");
    Ok(())
}

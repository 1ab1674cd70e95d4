// SPDX-License-Identifier: GPL-2.0
//! Memory that was private, if any is left, does not stand partial writes.

use memmap2::MmapMut;
use std::arch::x86_64::{_mm_sfence, _mm_stream_si64};
use std::hint::black_box;

const LINE: usize = 64;
/// Words in a line.
const WORDS: usize = LINE / size_of::<i64>();

/// Take nearly all memory there is, write a part of each line of it around the caches, read it, and
/// print how many there were: `lines=NUMBER`.
///
/// # Errors
///
/// The memory cannot be had, or it is not as it was written.
pub fn writes() -> Result<(), String> {
    let size = usize::try_from(available()? / 10 * 9).map_err(|e| e.to_string())?;
    let mut memory = MmapMut::map_anon(size).map_err(|e| format!("{size} bytes: {e}"))?;
    // SAFETY: Any bytes are integers, and the mapping is aligned to a page.
    let (_, words, _) = unsafe { memory.align_to_mut::<i64>() };
    let mut lines = 0;
    for line in words.chunks_exact_mut(WORDS) {
        lines += 1;
        // SAFETY: The reference is to a word that may be written.
        unsafe { _mm_stream_si64(&mut line[0], lines) };
    }
    // SAFETY: All x86-64 processors have the instruction. It orders the stores before what follows.
    unsafe { _mm_sfence() };
    let read = black_box(&*words).chunks_exact(WORDS).map(|line| line[0]);
    match read.zip(1..).find(|(found, written)| found != written) {
        Some((found, written)) => Err(format!("line {written} has {found}")),
        None => {
            println!("lines={lines}");
            Ok(())
        }
    }
}

/// Bytes that can be had without taking them from somebody.
fn available() -> Result<u64, String> {
    const FILE: &str = "/proc/meminfo";
    let text = std::fs::read_to_string(FILE).map_err(|e| format!("{FILE}: {e}"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kilobytes.ok_or_else(|| format!("{FILE}: no MemAvailable"))? << 10)
}

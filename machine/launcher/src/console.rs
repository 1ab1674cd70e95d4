// SPDX-License-Identifier: GPL-2.0

//! Reading the guest's console: what its lines say about the run.

use crate::initramfs::{NEXT, RESULT};

/// Something the console told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sign {
    /// Init reports the exit status of the script.
    Result(i32),
    /// Init of the next kernel runs: what the kernel before said does not count any more.
    NextKernel,
    /// The kernel panicked, with this message.
    Panic(String),
    /// The kernel switches the machine off.
    PowerDown,
    /// The kernel warns or reports a bug of its own.
    Complaint(String),
}

impl Sign {
    /// The guest has nothing more to do after this. `next` says that a kernel that panics may start
    /// another one.
    pub fn is_final(&self, next: bool) -> bool {
        match self {
            Sign::Result(_) => true,
            Sign::Panic(_) => !next,
            _ => false,
        }
    }
}

const COMPLAINTS: [&str; 4] = ["WARNING: ", "BUG: ", "Oops: ", "rcu: INFO: "];
const POWER_DOWN: &str = "reboot: Power down";
const PANIC: &str = "Kernel panic - not syncing: ";

/// Collects console bytes into lines and finds [`Sign`]s in them.
#[derive(Debug, Default)]
pub struct Watcher {
    line: Vec<u8>,
}

/// Longest line kept; the rest of a longer one is dropped.
const LINE_MAX: usize = 4096;

impl Watcher {
    /// Takes the next bytes and returns the signs in the lines they complete.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Sign> {
        let mut signs = Vec::new();
        for byte in bytes {
            if *byte == b'\n' {
                signs.extend(sign(&String::from_utf8_lossy(&self.line)));
                self.line.clear();
            } else if self.line.len() < LINE_MAX {
                self.line.push(*byte);
            }
        }
        signs
    }
}

fn sign(line: &str) -> Option<Sign> {
    if let Some((_, rest)) = line.split_once(PANIC) {
        return Some(Sign::Panic(rest.trim().to_owned()));
    }
    if line.contains(NEXT) {
        return Some(Sign::NextKernel);
    }
    if line.contains(POWER_DOWN) {
        return Some(Sign::PowerDown);
    }
    if let Some(at) = COMPLAINTS.iter().filter_map(|c| line.find(c)).min() {
        return line
            .starts_with('[')
            .then(|| Sign::Complaint(line[at..].trim().to_owned()));
    }
    // A kernel message may stand before the marker on the same line.
    let (_, rest) = line.split_once(RESULT)?;
    let digits = rest.trim_start();
    let end = digits
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(digits.len());
    digits[..end].parse().ok().map(Sign::Result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_is_found_in_pieces_and_behind_noise() {
        let mut watcher = Watcher::default();
        assert_eq!(watcher.feed(b"[    1.0] boot\r\nTDX-MACHINE-RES"), []);
        assert_eq!(watcher.feed(b"ULT 7\r\n"), [Sign::Result(7)]);
        assert_eq!(
            watcher.feed(b"[ 2.0] noise TDX-MACHINE-RESULT 0\n"),
            [Sign::Result(0)]
        );
    }

    #[test]
    fn panic_message_is_kept() {
        let mut watcher = Watcher::default();
        let line = b"[    0.5] Kernel panic - not syncing: VFS: no root\r\n";
        assert_eq!(watcher.feed(line), [Sign::Panic("VFS: no root".into())]);
    }

    #[test]
    fn panic_is_final_unless_it_starts_a_kernel() {
        let panic = Sign::Panic(String::new());
        assert!(panic.is_final(false) && !panic.is_final(true));
        assert!(Sign::Result(0).is_final(true));
        let signs = Watcher::default().feed(b"[ 1.0] x TDX-MACHINE-NEXT-KERNEL\r\n");
        assert_eq!(signs, [Sign::NextKernel]);
    }

    #[test]
    fn power_down_is_not_the_last_word() {
        let signs = Watcher::default().feed(b"[    1.5] reboot: Power down\r\n");
        assert_eq!(signs, [Sign::PowerDown]);
        assert!(!signs[0].is_final(false));
    }

    #[test]
    fn kernel_complaints_are_told_from_user_output() {
        let signs =
            Watcher::default().feed(b"[    0.4] WARNING: arch/x86/x.c:5 at f+0x1\r\nBUG: mine\n");
        assert_eq!(
            signs,
            [Sign::Complaint("WARNING: arch/x86/x.c:5 at f+0x1".into())]
        );
    }

    #[test]
    fn other_lines_say_nothing() {
        let mut watcher = Watcher::default();
        assert_eq!(
            watcher.feed(b"TDX-MACHINE-RESULT\nTDX-MACHINE-RESULT x\n\xff\xfe\n"),
            []
        );
        assert_eq!(watcher.feed(&vec![b'x'; 100_000]), []);
    }
}

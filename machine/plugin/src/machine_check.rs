// SPDX-License-Identifier: GPL-2.0

//! Machine checks: a processor has read poisoned memory.
//!
//! A plugin cannot raise an exception in the middle of an instruction and keep the arithmetic flags.
//! QEMU can raise machine checks itself: its monitor has a command that fills a bank and interrupts the
//! vCPU, with all that is to it (stack, MCIP, a reset if it cannot be delivered). [`Monitor`] gives that
//! command, from the callback of the load.

use std::io::{ErrorKind, Read, Result, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::Duration;

/// The bank of the data cache.
const BANK: u32 = 1;
/// IA32_MCi_STATUS: VAL, UC, EN, MISCV, ADDRV, S and AR; the error is that of a data load.
const STATUS: u64 = 1 << 63 | 1 << 61 | 1 << 60 | 1 << 59 | 1 << 58 | 1 << 56 | 1 << 55 | 0x134;
/// IA32_MCG_STATUS: RIPV, EIPV, MCIP and LMCE_S: no other processor gets it.
const MCG_STATUS: u64 = 1 | 1 << 1 | 1 << 2 | 1 << 3;
/// IA32_MCi_MISC: the address is physical, and that of a line.
const MISC: u64 = 2 << 6 | 6;

/// What the monitor says when it waits for a command.
const PROMPT: &[u8] = b"(qemu) ";
/// How long the monitor may take to say something.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long it takes from the end of a command's echo until the vCPU has been told to stop. Too short a
/// time does no harm but that the vCPU goes on for a while.
const WORK: Duration = Duration::from_millis(5);

/// QEMU's monitor, the one for people.
pub struct Monitor {
    path: String,
    stream: Mutex<Option<UnixStream>>,
}

impl Monitor {
    /// The monitor at the socket `path`. It is connected to when it is needed.
    pub fn new(path: String) -> Monitor {
        Monitor {
            path,
            stream: Mutex::new(None),
        }
    }

    /// Raises the machine check of a load from the line at `address`. `vcpu` is the one of the calling
    /// thread; it takes the machine check when it gets to the end of the block that it executes.
    ///
    /// # Errors
    ///
    /// The monitor does not do what it should.
    pub fn machine_check(&self, vcpu: u32, address: u64) -> Result<()> {
        let mut guard = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let stream = match &mut *guard {
            Some(stream) => stream,
            none => none.insert(self.connect()?),
        };
        writeln!(stream, "{}", command(vcpu, address))?;
        // The command itself waits for the vCPU, which is here; what can be waited for is that QEMU has
        // begun with it.
        read_until(stream, b"\n")?;
        sleep(WORK);
        Ok(())
    }

    fn connect(&self) -> Result<UnixStream> {
        let mut stream = UnixStream::connect(&self.path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        read_until(&mut stream, PROMPT)?;
        Ok(stream)
    }
}

/// The monitor's command for it.
fn command(vcpu: u32, address: u64) -> String {
    format!("mce {vcpu} {BANK} {STATUS:#x} {MCG_STATUS:#x} {address:#x} {MISC:#x}")
}

/// Reads on until `end` has been read.
fn read_until(stream: &mut impl Read, end: &[u8]) -> Result<()> {
    let mut seen = Vec::new();
    let mut byte = [0];
    while !seen.ends_with(end) {
        match stream.read(&mut byte) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) => seen.extend(byte),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixListener;

    #[test]
    fn command_has_all_of_the_bank() {
        assert_eq!(
            command(3, 0x1240),
            "mce 3 1 0xbd80000000000134 0xf 0x1240 0x86"
        );
    }

    #[test]
    fn commands_are_given_one_after_the_other() {
        let path = std::env::temp_dir().join(format!("tdx-monitor-{}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        let monitor = Monitor::new(path.to_string_lossy().into_owned());
        let qemu = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"QEMU monitor\r\n(qemu) ").unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            lines
                .take(2)
                .map(|line| {
                    stream.write_all(b"mce\x1b[K\r\n(qemu) ").unwrap();
                    line.unwrap()
                })
                .collect::<Vec<_>>()
        });
        monitor.machine_check(0, 64).unwrap();
        monitor.machine_check(1, 128).unwrap();
        assert_eq!(qemu.join().unwrap(), [command(0, 64), command(1, 128)]);
        std::fs::remove_file(path).unwrap();
        assert!(monitor.machine_check(0, 64).is_err(), "nobody listens");
    }
}

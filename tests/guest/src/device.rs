// SPDX-License-Identifier: GPL-2.0
//! The devices of a TD: a serial port, a power switch, and memory-mapped
//! registers that give back what was written to them.
//!
//! [`Devices`] answers the I/O exits of [`crate::exits`].

use std::collections::BTreeMap;
use std::sync::Mutex;

/// Serial port: what is written to it is printed line by line.
const SERIAL_DATA: u16 = 0x3f8;
const SERIAL_STATUS: u16 = 0x3fd;
/// Line status: the transmitter is empty.
const TRANSMITTER_EMPTY: u8 = 0x60;
/// Power management control register, and the bit that switches off.
const PM1_CONTROL: u16 = 0x604;
const SLEEP_ENABLE: u8 = 0x20;

/// What a device wants of the VMM.
#[derive(Debug, PartialEq, Eq)]
pub enum Wish {
    /// Nothing: go on.
    Nothing,
    /// A line is to be printed.
    Line(String),
    /// The TD switches itself off.
    PowerOff,
}

/// Devices of one TD.
#[derive(Default)]
pub struct Devices {
    line: Mutex<Vec<u8>>,
    registers: Mutex<BTreeMap<u64, u8>>,
}

impl Devices {
    /// OUT to a port.
    pub fn port_write(&self, port: u16, data: &[u8]) -> Wish {
        match port {
            SERIAL_DATA => self.print(data),
            PM1_CONTROL if data.get(1).is_some_and(|high| high & SLEEP_ENABLE != 0) => {
                Wish::PowerOff
            }
            _ => Wish::Nothing,
        }
    }

    /// IN from a port; a port without a device reads as ones.
    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        data.fill(if port == SERIAL_STATUS {
            TRANSMITTER_EMPTY
        } else {
            0xff
        });
    }

    /// Write to memory-mapped registers.
    pub fn mmio_write(&self, address: u64, data: &[u8]) {
        let mut registers = self.registers.lock().unwrap_or_else(|e| e.into_inner());
        registers.extend((address..).zip(data.iter().copied()));
    }

    /// Read memory-mapped registers; those never written read as ones.
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) {
        let registers = self.registers.lock().unwrap_or_else(|e| e.into_inner());
        for (at, byte) in (address..).zip(data) {
            *byte = registers.get(&at).copied().unwrap_or(0xff);
        }
    }

    fn print(&self, data: &[u8]) -> Wish {
        let mut line = self.line.lock().unwrap_or_else(|e| e.into_inner());
        line.extend(data);
        if !line.ends_with(b"\n") {
            return Wish::Nothing;
        }
        let whole = String::from_utf8_lossy(&line).trim_end().to_owned();
        line.clear();
        Wish::Line(whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_remember_bytes() {
        let devices = Devices::default();
        devices.mmio_write(0x1000, &[1, 2, 3, 4]);
        devices.mmio_write(0x1001, &[9]);
        let mut read = [0; 5];
        devices.mmio_read(0x1000, &mut read);
        assert_eq!(read, [1, 9, 3, 4, 0xff]);
    }

    #[test]
    fn serial_port_prints_whole_lines() {
        let devices = Devices::default();
        assert_eq!(devices.port_write(SERIAL_DATA, b"h"), Wish::Nothing);
        assert_eq!(devices.port_write(SERIAL_DATA, b"i"), Wish::Nothing);
        assert_eq!(
            devices.port_write(SERIAL_DATA, b"\n"),
            Wish::Line("hi".into())
        );
        assert_eq!(
            devices.port_write(SERIAL_DATA, b"\n"),
            Wish::Line(String::new())
        );
    }

    #[test]
    fn power_goes_off_with_sleep_enable_only() {
        let devices = Devices::default();
        assert_eq!(devices.port_write(PM1_CONTROL, &[0, 0x20]), Wish::PowerOff);
        assert_eq!(
            devices.port_write(PM1_CONTROL, &[0xff, 0x1f]),
            Wish::Nothing
        );
        assert_eq!(devices.port_write(PM1_CONTROL, &[0xff]), Wish::Nothing);
    }
}

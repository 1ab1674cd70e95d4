// SPDX-License-Identifier: GPL-2.0

//! The frequency of the guest's time stamp counter, which is the host's.
//!
//! A kernel measures it against the timer at boot. While the host is busy with something else that
//! goes wrong, by a factor of 20 at worst: the guest's clock runs as much too fast, and the TDX module
//! refuses a counter below 100 MHz. So CPUID tells.

/// Frequency of this host's counter in kHz, if `/proc/cpuinfo` tells it.
pub(crate) fn khz() -> Option<u32> {
    let native = cfg!(target_arch = "x86_64");
    let text = std::fs::read_to_string("/proc/cpuinfo").ok();
    text.filter(|_| native).and_then(|text| parse(&text))
}

/// BogoMIPS of a processor with this counter are its ticks per half microsecond, whatever the
/// processor's own frequency is at the moment.
fn parse(cpuinfo: &str) -> Option<u32> {
    let value = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim())
    };
    let constant = value("flags")?.split(' ').any(|f| f == "constant_tsc");
    let mips: f64 = value("bogomips")?.parse().ok()?;
    let plausible = constant && (200.0..40_000.0).contains(&mips);
    plausible.then_some((mips * 500.0) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frequency_is_half_the_bogomips() {
        let text = "cpu MHz\t\t: 800.000\nflags\t\t: fpu tsc constant_tsc\nbogomips\t: 4800.02\n";
        assert_eq!(parse(text), Some(2_400_010));
        assert_eq!(parse(&text.replace("constant_", "")), None);
        assert_eq!(parse(&text.replace("4800", "1")), None);
        assert_eq!(parse(""), None);
    }
}

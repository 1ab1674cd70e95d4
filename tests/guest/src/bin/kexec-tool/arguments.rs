// SPDX-License-Identifier: GPL-2.0
//! The command line of the next kernel.

/// By which the machine's init knows the number of its kernel; the first has none.
const NUMBER: &str = "tdx_machine.kernel=";

/// What is said of this kernel's memory only: a crash kernel gets it from the loader.
const MEMORY: [&str; 2] = ["crashkernel=", "memmap="];

/// Command line of the next kernel: that of this one, `own`, or `base` instead of
/// it, then `append`, then the number of the kernel. For a kernel that starts after
/// a `crash` without what `own` says about memory.
pub fn next(own: &str, base: Option<&str>, append: &str, crash: bool) -> String {
    let number = own.split_whitespace().find_map(|w| w.strip_prefix(NUMBER));
    let number: u32 = number.and_then(|n| n.parse().ok()).unwrap_or(1);
    let left_out = |word: &&str| {
        let memory = MEMORY.iter().any(|name| word.starts_with(name));
        word.starts_with(NUMBER) || crash && memory
    };
    let own: Vec<_> = own
        .split_whitespace()
        .filter(|word| !left_out(word))
        .collect();
    let own = own.join(" ");
    let next = format!("{NUMBER}{}", number + 1);
    let parts = [base.unwrap_or(&own), append, &next];
    let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_counts_the_kernels() {
        assert_eq!(next("a b", None, "c", false), "a b c tdx_machine.kernel=2");
        let own = "a tdx_machine.kernel=2 b";
        assert_eq!(next(own, None, "", false), "a b tdx_machine.kernel=3");
        assert_eq!(next(own, Some("x"), "y", false), "x y tdx_machine.kernel=3");
    }

    #[test]
    fn crash_kernel_gets_its_memory_from_the_loader() {
        let own = "a crashkernel=256M memmap=exactmap memmap=1M@0 b";
        assert_eq!(next(own, None, "", true), "a b tdx_machine.kernel=2");
        let all = format!("{own} tdx_machine.kernel=2");
        assert_eq!(next(own, None, "", false), all);
    }
}

// SPDX-License-Identifier: GPL-2.0

//! Where kernel functions lie: names and addresses from the kernel's `System.map`.

use glob::Pattern;
use std::path::{Path, PathBuf};
use tdx_platform::counts::Function;

/// Where the `System.map` of the kernel image `kernel` should be: beside it, or in the build
/// directory in whose `arch/x86/boot` it lies.
pub fn system_map_of(kernel: &Path) -> Option<PathBuf> {
    let beside = kernel.parent().map(Path::to_owned);
    let build = kernel.ancestors().nth(4).map(Path::to_owned);
    [beside, build]
        .into_iter()
        .flatten()
        .map(|directory| directory.join("System.map"))
        .find(|map| map.is_file())
}

/// The functions in the text of a `System.map` whose names match one of `patterns`.
///
/// # Errors
///
/// A sentence that says which pattern matches nothing, or which line is not one of a `System.map`.
pub fn find(patterns: &[Pattern], system_map: &str) -> Result<Vec<Function>, String> {
    let mut found = Vec::new();
    let mut matched = vec![false; patterns.len()];
    for (number, line) in (1..).zip(system_map.lines()) {
        let (address, name) =
            function(line).ok_or_else(|| format!("line {number} is not a symbol: '{line}'"))?;
        let Some(address) = address else { continue };
        let mut wanted = false;
        for (pattern, matched) in patterns.iter().zip(&mut matched) {
            if pattern.matches(name) {
                (wanted, *matched) = (true, true);
            }
        }
        if wanted {
            let name = name.to_owned();
            found.push(Function { name, address });
        }
    }
    match patterns.iter().zip(matched).find(|(_, matched)| !matched) {
        Some((pattern, _)) => Err(format!("no function is called '{pattern}'")),
        None => Ok(found),
    }
}

/// Address and name of a line `ADDRESS TYPE NAME`; no address if it is not a function.
fn function(line: &str) -> Option<(Option<u64>, &str)> {
    let mut words = line.split_whitespace();
    let (address, kind, name) = (words.next()?, words.next()?, words.next()?);
    let address = u64::from_str_radix(address, 16).ok()?;
    Some((
        matches!(kind, "t" | "T" | "w" | "W").then_some(address),
        name,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const MAP: &str = "ffffffff81000000 T _text\n\
                       ffffffff81001000 t tdh_mem_track\n\
                       ffffffff81001100 T tdh_vp_enter\n\
                       ffffffff82000000 D tdh_data\n";

    fn patterns(words: &[&str]) -> Vec<Pattern> {
        words.iter().map(|w| Pattern::new(w).unwrap()).collect()
    }

    #[test]
    fn functions_are_found_by_name_and_pattern() {
        let all = find(&patterns(&["tdh_*"]), MAP).unwrap();
        let names: Vec<_> = all.iter().map(|f| (f.name.as_str(), f.address)).collect();
        let expected = [
            ("tdh_mem_track", 0xffff_ffff_8100_1000),
            ("tdh_vp_enter", 0xffff_ffff_8100_1100),
        ];
        assert_eq!(names, expected, "data is not a function");
        let one = find(&patterns(&["tdh_vp_enter", "tdh_v*"]), MAP).unwrap();
        assert_eq!(one.len(), 1, "each once");
    }

    #[test]
    fn pattern_without_a_function_and_other_files_are_errors() {
        let error = find(&patterns(&["_text", "tdh_data"]), MAP).unwrap_err();
        assert!(error.contains("'tdh_data'"), "{error}");
        let error = find(&patterns(&["_text"]), "ffffffff81000000 T _text\nhello\n").unwrap_err();
        assert!(error.contains("line 2"), "{error}");
    }

    #[test]
    fn map_lies_beside_the_image_or_in_its_build_directory() {
        let top = std::env::temp_dir().join(format!("system-map-{}", std::process::id()));
        let boot = top.join("arch/x86/boot");
        fs::create_dir_all(&boot).unwrap();
        let image = boot.join("bzImage");
        let none = system_map_of(&image);
        fs::write(top.join("System.map"), "").unwrap();
        let build = system_map_of(&image);
        fs::write(boot.join("System.map"), "").unwrap();
        let beside = system_map_of(&image);
        fs::remove_dir_all(&top).unwrap();
        assert_eq!(none, None);
        assert_eq!(build, Some(top.join("System.map")));
        assert_eq!(beside, Some(boot.join("System.map")));
    }
}

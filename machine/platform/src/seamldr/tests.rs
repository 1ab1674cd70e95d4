// SPDX-License-Identifier: GPL-2.0

//! SEAMLDR.INFO and SEAMLDR.INSTALL, call by call.

use super::config::OpenPoints;
use super::*;
use crate::tests::Ram;

const PARAMS: u64 = 0x1000;
const SIGNATURE: u64 = 0x2000;
const CODE: u64 = 0x3000;
/// Index of a word of SEAMLDR_PARAMS.
const SIGNATURE_WORD: u64 = 1;
const COUNT_WORD: u64 = 15;
const LIST_WORD: u64 = 16;

fn new_module() -> ModuleConfig {
    ModuleConfig {
        update: Some(26),
        ..ModuleConfig::default()
    }
}

/// Memory with an update to `module`, 2 pages long, the second before the first.
fn memory(module: &ModuleConfig) -> Ram {
    let ram = Ram::new(64 << 10);
    let (signature, code) = image::sign(module, 2).unwrap();
    assert!(ram.write(SIGNATURE, &signature));
    let (first, second) = code.split_at(4096);
    assert!(ram.write(CODE + 4096, first) && ram.write(CODE, second));
    ram.put(PARAMS, &[1 << 32, SIGNATURE]);
    ram.put(PARAMS + 8 * COUNT_WORD, &[2, CODE + 4096, CODE]);
    ram
}

fn loader(open: OpenPoints) -> Seamldr {
    Seamldr::new(SeamldrConfig {
        updates: 2,
        open,
        ..SeamldrConfig::default()
    })
}

fn install(loader: &mut Seamldr, ram: &Ram, lp: u32) -> Result<Installed, Refusal> {
    loader
        .install(ram, PARAMS, lp, 3)
        .map_err(|refused| refused.refusal)
}

fn next() -> Option<Next> {
    Some(Next {
        config: new_module(),
        update: true,
    })
}

/// A call in the middle of an update.
const ON_THE_WAY: Installed = Installed {
    old_gone: false,
    next: None,
    complete: false,
};

#[test]
fn module_is_there_when_the_last_processor_has_installed_it() {
    let (mut loader, ram) = (loader(OpenPoints::default()), memory(&new_module()));
    let gone = Installed {
        old_gone: true,
        ..ON_THE_WAY
    };
    assert_eq!(install(&mut loader, &ram, 2), Ok(gone));
    assert_eq!(install(&mut loader, &ram, 0), Ok(ON_THE_WAY));
    let done = Installed {
        old_gone: true,
        next: next(),
        complete: true,
    };
    assert_eq!(loader.updates, 2);
    assert_eq!(install(&mut loader, &ram, 1), Ok(done));
    assert_eq!(loader.updates, 1);
}

#[test]
fn updates_run_out() {
    let (mut loader, ram) = (loader(OpenPoints::default()), memory(&new_module()));
    for lp in [0, 1, 2, 2, 1, 0] {
        assert!(install(&mut loader, &ram, lp).is_ok());
    }
    assert_eq!(install(&mut loader, &ram, 0), Err(Refusal::NoUpdates));
}

#[test]
fn processor_that_installs_twice_is_refused_or_starts_again() {
    let ram = memory(&new_module());
    let mut strict = loader(OpenPoints::default());
    assert!(install(&mut strict, &ram, 0).is_ok());
    assert_eq!(install(&mut strict, &ram, 0), Err(Refusal::OutOfOrder));
    let mut patient = loader(OpenPoints {
        second_call_restarts: true,
        ..OpenPoints::default()
    });
    for lp in [0, 1, 0, 1] {
        assert!(!install(&mut patient, &ram, lp).unwrap().complete);
    }
    assert!(install(&mut patient, &ram, 2).unwrap().complete);
}

#[test]
fn unfinished_update_counts_if_asked_to() {
    let ram = memory(&new_module());
    for (unfinished_counts, left) in [(false, 2), (true, 1)] {
        let mut loader = loader(OpenPoints {
            unfinished_counts,
            ..OpenPoints::default()
        });
        assert!(install(&mut loader, &ram, 0).is_ok());
        assert_eq!(loader.updates, left);
        assert!(install(&mut loader, &ram, 1).is_ok() && install(&mut loader, &ram, 2).is_ok());
        assert_eq!(loader.updates, 1);
    }
}

#[test]
fn moment_of_the_change_can_be_chosen() {
    let ram = memory(&new_module());
    let mut early = loader(OpenPoints {
        active_at_first: true,
        ..OpenPoints::default()
    });
    let first = install(&mut early, &ram, 0).unwrap();
    assert!(first.old_gone && !first.complete && first.next == next());
    assert_eq!(install(&mut early, &ram, 1), Ok(ON_THE_WAY));
    let last = install(&mut early, &ram, 2).unwrap();
    assert!(last.complete && last.next.is_none());

    let mut late = loader(OpenPoints {
        old_module_answers: true,
        ..OpenPoints::default()
    });
    assert_eq!(install(&mut late, &ram, 0), Ok(ON_THE_WAY));
    assert_eq!(install(&mut late, &ram, 1), Ok(ON_THE_WAY));
    let last = install(&mut late, &ram, 2).unwrap();
    assert!(last.old_gone && last.next == next());
}

#[test]
fn image_is_checked_by_the_first_processor_or_the_last() {
    let ram = memory(&new_module());
    assert!(ram.write(CODE + 100, b"x"));
    let mut early = loader(OpenPoints::default());
    assert_eq!(install(&mut early, &ram, 0), Err(Refusal::BadImage));
    let mut late = loader(OpenPoints {
        image_checked_last: true,
        ..OpenPoints::default()
    });
    assert!(install(&mut late, &ram, 0).unwrap().old_gone);
    assert_eq!(install(&mut late, &ram, 1), Ok(ON_THE_WAY));
    assert_eq!(install(&mut late, &ram, 2), Err(Refusal::BadImage));
    assert_eq!(late.updates, 2);
    let mut careless = loader(OpenPoints {
        signature_checked: false,
        ..OpenPoints::default()
    });
    assert!(install(&mut careless, &ram, 0).is_ok());
}

#[test]
fn impossible_module_is_refused() {
    let broken = ModuleConfig {
        max_tdmrs: 0,
        ..ModuleConfig::default()
    };
    let mut loader = loader(OpenPoints::default());
    let result = install(&mut loader, &memory(&broken), 0);
    assert_eq!(result, Err(Refusal::BadImage));
}

#[test]
fn each_operand_is_checked() {
    const OUTSIDE: u64 = 1 << 40;
    let wrong: [(u64, u64, &str); 10] = [
        (0, 1 << 32 | 1, "version 1"),
        (0, 2 << 32, "no scenario 2"),
        (2, 1, "reserved"),
        (14, 1 << 63, "reserved"),
        (SIGNATURE_WORD, SIGNATURE + 8, "not aligned"),
        (SIGNATURE_WORD, OUTSIDE, "not in memory"),
        (COUNT_WORD, 0, "0 pages"),
        (COUNT_WORD, 497, "497 pages"),
        (LIST_WORD + 1, CODE + 2048, "not aligned"),
        (LIST_WORD + 1, OUTSIDE, "not in memory"),
    ];
    for (index, value, why) in wrong {
        let (mut loader, ram) = (loader(OpenPoints::default()), memory(&new_module()));
        ram.put(PARAMS + 8 * index, &[value]);
        let refused = loader.install(&ram, PARAMS, 0, 1).unwrap_err();
        assert_eq!(refused.refusal, Refusal::BadOperand);
        assert!(refused.why.contains(why), "{}", refused.why);
        assert!(loader.session.is_none());
    }
    let (mut loader, ram) = (loader(OpenPoints::default()), memory(&new_module()));
    for (pa, why) in [(PARAMS + 256, "not aligned"), (OUTSIDE, "not in memory")] {
        let refused = loader.install(&ram, pa, 0, 1).unwrap_err();
        assert!(refused.why.contains(why), "{}", refused.why);
    }
}

#[test]
fn all_processors_must_install_the_same() {
    let (mut loader, ram) = (loader(OpenPoints::default()), memory(&new_module()));
    assert!(install(&mut loader, &ram, 0).is_ok());
    ram.put(PARAMS + 8 * LIST_WORD, &[CODE]);
    assert_eq!(install(&mut loader, &ram, 1), Err(Refusal::BadOperand));
    ram.put(PARAMS + 8 * LIST_WORD, &[CODE + 4096]);
    assert!(install(&mut loader, &ram, 1).is_ok());
}

#[test]
fn info_tells_versions_and_what_is_left() {
    let (loader, ram) = (loader(OpenPoints::default()), Ram::new(0x1000));
    assert_eq!(loader.info(&ram, 0x300, true), Ok(()));
    let mut info = [0; 256];
    assert!(ram.read(0x300, &mut info));
    assert_eq!(info[8..12], 0x8086u32.to_le_bytes());
    // Minor, major, update.
    assert_eq!(info[18..24], [5, 0, 1, 0, 3, 0]);
    assert_eq!(info[28..32], 2u32.to_le_bytes());
    assert_eq!(info[160..163], [1, 0, 1]);
    for pa in [0x310, 0x1000] {
        let refused = loader.info(&ram, pa, true).unwrap_err();
        assert_eq!(refused.refusal, Refusal::BadOperand);
    }
}

// SPDX-License-Identifier: GPL-2.0

//! From the command line to a machine: [`MachineConfig`] and where its memory lies.

use crate::cli::{Erratum, ModuleOptions, ProfileName, Run};
use crate::features;
use crate::memmap::{HIGH, LOW_WITH_HIGH, Layout, Map};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::ops::Range;
use tdx_module::{MemRange, ModuleConfig, Profile};
use tdx_platform::config::{Latency, MachineConfig};
use tdx_platform::seamldr::config::SeamldrConfig;

/// Memory without `--memory` and `--memory-map`.
const DEFAULT_MEMORY: u64 = 2 << 30;
/// Least memory a kernel and its initramfs can be expected to boot with.
const MIN_MEMORY: u64 = 128 << 20;
const MAX_CMRS: usize = 32;

/// A machine, ready to be built.
#[derive(Clone, Debug)]
pub struct Setup {
    /// What the plugin gets.
    pub config: MachineConfig,
    /// Where QEMU's memory lies.
    pub layout: Layout,
    /// Kernel arguments that the memory map needs.
    pub map_arguments: Option<String>,
}

/// Makes a [`Setup`] from the options. `map` is the content of the memory map file, if one is given.
///
/// # Errors
///
/// A sentence that names the option at fault.
pub fn setup(run: &Run, map: Option<&str>) -> Result<Setup, String> {
    let (layout, cmrs, map_arguments) = memory(run, map)?;
    let (cmrs, config_cmrs) = match run.cmr.is_empty() {
        true => (cmrs, "the memory map"),
        false => (
            run.cmr.iter().map(|(start, end)| *start..*end).collect(),
            "--cmr",
        ),
    };
    if cmrs.len() > MAX_CMRS {
        return Err(format!(
            "{config_cmrs} has {} CMRs, at most {MAX_CMRS} are possible",
            cmrs.len()
        ));
    }
    let config = MachineConfig {
        cpus: run.cpus,
        enabled_cpus: run.enabled_cpus.unwrap_or(run.cpus),
        packages: run.sockets,
        vmx: !run.no_vmx,
        seamrr: !run.no_seamrr,
        module_loaded: !run.no_module,
        selfsnoop: !run.no_selfsnoop,
        movdir64b: !run.no_movdir64b,
        seamret_keeps_vmcs: !run.seamret_invalidates_vmcs,
        tdx_keyids: run.keyids.0,
        mktme_keyids: run.keyids.1,
        tsc_khz: crate::tsc::khz(),
        cmrs: cmrs
            .into_iter()
            .map(|r| MemRange {
                base: r.start,
                size: r.end - r.start,
            })
            .collect(),
        module: module(&run.module)?,
        seamldr: seamldr(run)?,
        inject: run.inject.clone(),
        allow: run.allow.clone(),
        watch_memory: run.watch_memory || run.erratum == Erratum::Strict,
        slow: run.slow.iter().copied().collect(),
        latency: latency(run),
        erratum: run.erratum != Erratum::Off,
        strict: run.erratum == Erratum::Strict,
        ..MachineConfig::default()
    };
    config.check()?;
    check_topology(run, &layout)?;
    Ok(Setup {
        config,
        layout,
        map_arguments,
    })
}

fn latency(run: &Run) -> Latency {
    let mut latency = Latency::default();
    for &(leaf, micros) in &run.latency {
        match leaf {
            Some(leaf) => drop(latency.leaves.insert(leaf, micros)),
            None => latency.all = micros,
        }
    }
    latency
}

type Memory = (Layout, Vec<Range<u64>>, Option<String>);

fn memory(run: &Run, map: Option<&str>) -> Result<Memory, String> {
    let wanted = run.memory.unwrap_or(0);
    let Some(text) = map else {
        let layout = Layout::plain(run.memory.unwrap_or(DEFAULT_MEMORY));
        return Ok((layout, layout.cmrs(), None));
    };
    let map = Map::parse(text).map_err(|e| format!("memory map: {e}"))?;
    let layout = map.layout(wanted).map_err(|e| format!("memory map: {e}"))?;
    let extra = match wanted.saturating_sub(LOW_WITH_HIGH) {
        high if high > 0 && !map.has_high_memory() => HIGH..HIGH + high,
        _ => 0..0,
    };
    let cmrs = if map.cmrs.is_empty() {
        layout.cmrs()
    } else {
        map.cmrs.clone()
    };
    Ok((layout, cmrs, Some(map.kernel_arguments(extra))))
}

/// Makes the configuration of a module from its options.
///
/// # Errors
///
/// A sentence that names the option at fault. Ranges are not checked.
pub fn module(run: &ModuleOptions) -> Result<ModuleConfig, String> {
    let profile = match run.profile {
        ProfileName::Baseline => Profile::Baseline,
        ProfileName::V1_5_01 => Profile::V1_5_01,
    };
    let features = features::resolve(profile, &run.feature, &run.no_feature)?;
    let mut module = ModuleConfig::new(profile);
    module.features0 = features.features0;
    module.sys_disable = features.sys_disable.unwrap_or(module.sys_disable);
    module.max_tdmrs = run.max_tdmrs.unwrap_or(module.max_tdmrs);
    module.max_reserved_per_tdmr = run.max_reserved.unwrap_or(module.max_reserved_per_tdmr);
    module.pamt_entry_size = run.pamt_entry_size.unwrap_or(module.pamt_entry_size);
    for (id, value) in &run.metadata {
        match value {
            Some(value) => drop(module.fields.insert(*id, *value)),
            None => drop(module.absent_fields.insert(*id)),
        }
    }
    set_all("--module", module, &run.module)
}

fn seamldr(run: &Run) -> Result<SeamldrConfig, String> {
    let mut seamldr = SeamldrConfig {
        loaded: !run.no_seamldr,
        ..SeamldrConfig::default()
    };
    seamldr.updates = run.updates.unwrap_or(seamldr.updates);
    set_all("--seamldr", seamldr, &run.seamldr)
}

/// Changes settings of what `option` is about, each `NAME=VALUE`.
fn set_all<T>(option: &str, config: T, settings: &[String]) -> Result<T, String>
where
    T: Serialize + DeserializeOwned,
{
    settings
        .iter()
        .try_fold(config, |config, setting| set(option, &config, setting))
}

/// Changes one setting, `NAME=VALUE` with NAME a path into the configuration's JSON.
fn set<T>(option: &str, config: &T, setting: &str) -> Result<T, String>
where
    T: Serialize + DeserializeOwned,
{
    let bad = |why: &dyn std::fmt::Display| format!("{option} {setting}: {why}");
    let (path, value) = setting
        .split_once('=')
        .ok_or_else(|| bad(&"expected NAME=VALUE"))?;
    let value = serde_json::from_str(value).map_err(|e| bad(&e))?;
    let mut json = serde_json::to_value(config).map_err(|e| bad(&e))?;
    let pointer = format!("/{}", path.replace('.', "/"));
    *json
        .pointer_mut(&pointer)
        .ok_or_else(|| bad(&"there is no such setting"))? = value;
    serde_json::from_value(json).map_err(|e| bad(&e))
}

fn check_topology(run: &Run, layout: &Layout) -> Result<(), String> {
    if run.numa == 0 || run.numa > 8 {
        return Err(format!("--numa {}: 1 to 8 nodes are possible", run.numa));
    }
    if !run.cpus.is_multiple_of(run.numa) {
        return Err(format!(
            "{} CPUs cannot be spread evenly over {} NUMA nodes",
            run.cpus, run.numa
        ));
    }
    if layout.total < MIN_MEMORY * u64::from(run.numa) {
        return Err(format!(
            "{:#x} bytes of memory are too few to boot with",
            layout.total
        ));
    }
    if run.dimm_slots > 0 && run.max_memory.is_none_or(|max| max <= layout.total) {
        return Err("--dimm-slots needs --max-memory above the memory of the machine".into());
    }
    if let Some(size) = run.virtio_mem {
        let room = run.max_memory.unwrap_or(0).saturating_sub(layout.total);
        if size == 0 || size > room {
            return Err("--virtio-mem needs as much room below --max-memory".into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn run(args: &str) -> Box<Run> {
        let words = ["tdx-machine", "run", "--kernel", "k"]
            .into_iter()
            .chain(args.split_whitespace());
        match Cli::parse_from(words).command {
            Command::Run(run) => run,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn options_reach_the_machine() {
        let args = "--cpus 4 --sockets 2 --memory 64G --no-feature sys-disable --max-tdmrs 3 \
                    --metadata 9100000100000009=2 --inject SYS.INIT=SYS_BUSY*2";
        let setup = setup(&run(args), None).unwrap();
        assert_eq!((setup.config.cpus, setup.config.packages), (4, 2));
        assert!(!setup.config.module.sys_disable);
        assert_eq!(setup.config.module.max_tdmrs, 3);
        assert_eq!(setup.config.module.fields[&0x9100_0001_0000_0009], 2);
        assert_eq!(setup.config.cmrs.len(), 2);
        assert_eq!(setup.config.inject.len(), 1);
    }

    #[test]
    fn any_module_setting_can_be_changed() {
        let args = "--module open.disable_gb_per_poll=1 --module update=6";
        let module = setup(&run(args), None).unwrap().config.module;
        assert_eq!(
            (module.open.disable_gb_per_poll, module.update),
            (1, Some(6))
        );
        for bad in [
            "update",
            "no_such=1",
            "update=\"x\"",
            "update=70000",
            "open.nothing=1",
        ] {
            let error = setup(&run(&format!("--module {bad}")), None).unwrap_err();
            assert!(error.contains(bad), "{error}");
        }
    }

    #[test]
    fn loader_can_be_changed() {
        let args = "--updates 3 --seamldr open.bad_image=5 --seamldr minor=7";
        let seamldr = setup(&run(args), None).unwrap().config.seamldr;
        assert!(seamldr.loaded);
        assert_eq!((seamldr.updates, seamldr.minor), (3, 7));
        assert_eq!(seamldr.open.bad_image, 5);
        assert!(
            !setup(&run("--no-seamldr"), None)
                .unwrap()
                .config
                .seamldr
                .loaded
        );
        let error = setup(&run("--seamldr open.no=1"), None).unwrap_err();
        assert!(error.contains("--seamldr open.no=1"), "{error}");
    }

    #[test]
    fn map_decides_memory_and_cmrs() {
        let map = "e820 0x0 0x3fffffff usable\ncmr 0x100000 0x40000000\n";
        let small = setup(&run(""), Some(map)).unwrap();
        assert_eq!(
            small.config.cmrs,
            [MemRange {
                base: 1 << 20,
                size: (1 << 30) - (1 << 20)
            }]
        );
        let large = setup(&run("--memory 8G"), Some(map)).unwrap();
        assert!(
            large
                .map_arguments
                .unwrap()
                .ends_with("0x180000000@0x100000000")
        );
        let other = setup(&run("--cmr 2M-4M"), Some(map)).unwrap();
        assert_eq!(
            other.config.cmrs,
            [MemRange {
                base: 2 << 20,
                size: 2 << 20
            }]
        );
    }

    #[test]
    fn impossible_machines_are_refused() {
        for args in [
            "--cpus 3 --sockets 2",
            "--cpus 3 --numa 2",
            "--numa 0",
            "--memory 1M",
            "--dimm-slots 1",
            "--dimm-slots 1 --max-memory 1G",
            "--virtio-mem 1G",
            "--virtio-mem 0 --max-memory 4G",
            "--virtio-mem 3G --max-memory 4G",
            "--enabled-cpus 0",
            "--max-tdmrs 0",
            "--feature nonsense",
            "--keyids 64,0",
        ] {
            assert!(setup(&run(args), None).is_err(), "{args}");
        }
        assert!(setup(&run(""), Some("nonsense")).is_err());
    }
}

// SPDX-License-Identifier: GPL-2.0

//! Files of a run: what the user gives, what QEMU and the plugin need, where the results go.

use crate::cli::Run;
use crate::initramfs::{self, Extra, Work};
use crate::qemu::Files;
use crate::run::Error;
use crate::setup::Setup;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

pub(crate) fn machine_error(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.display().to_string();
    move |e| Error::Machine(format!("{path}: {e}"))
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|e| Error::Usage(format!("{}: {e}", path.display())))
}

pub(crate) fn read_text(path: &Path) -> Result<String, Error> {
    String::from_utf8(read(path)?)
        .map_err(|_| Error::Usage(format!("{} is not text", path.display())))
}

pub(crate) fn write(path: &Path, data: &[u8]) -> Result<(), Error> {
    fs::write(path, data).map_err(machine_error(path))
}

/// Where the files of the run go.
pub(crate) struct Directory {
    pub(crate) path: PathBuf,
    temporary: bool,
}

impl Directory {
    pub(crate) fn new(asked: Option<&Path>) -> Result<Directory, Error> {
        let path = match asked {
            Some(path) => path.to_owned(),
            None => std::env::temp_dir().join(format!("tdx-machine-{}", std::process::id())),
        };
        fs::create_dir_all(&path).map_err(machine_error(&path))?;
        // QEMU changes nothing about the directory it runs in, but the files must be found anyway.
        let path = fs::canonicalize(&path).map_err(machine_error(&path))?;
        Ok(Directory {
            path,
            temporary: asked.is_none(),
        })
    }

    /// A directory nobody asked for is kept only when there is something to look up in it.
    pub(crate) fn done(self, success: bool) {
        if self.temporary && success {
            let _ = fs::remove_dir_all(&self.path);
        } else {
            println!("  files        {}", self.path.display());
        }
    }
}

pub(crate) fn initramfs(run: &Run) -> Result<Vec<u8>, Error> {
    let next = run.next_script.as_deref().map(read).transpose()?;
    let work = match &run.script {
        _ if run.shell => Work::Shell,
        None => Work::Script(b"true\n".to_vec(), None),
        Some(path) if path == Path::new("-") => {
            let mut script = Vec::new();
            std::io::stdin()
                .read_to_end(&mut script)
                .map_err(machine_error(path))?;
            Work::Script(script, next)
        }
        Some(path) => Work::Script(read(path)?, next),
    };
    let extras = run
        .file
        .iter()
        .map(|spec| extra(spec))
        .collect::<Result<Vec<_>, _>>()?;
    let busybox = find_busybox(run.busybox.as_deref())?;
    let busybox = fs::read(&busybox).map_err(machine_error(&busybox))?;
    Ok(initramfs::build(&busybox, &work, &extras))
}

fn extra(spec: &str) -> Result<Extra, Error> {
    let (host, guest) = spec.split_once(':').unwrap_or((spec, ""));
    let host = Path::new(host);
    let name = host
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    let guest = if guest.is_empty() {
        name
    } else {
        guest.trim_start_matches('/').to_owned()
    };
    let mode = fs::metadata(host)
        .map(|m| m.permissions().mode())
        .unwrap_or(0o644);
    Ok(Extra {
        path: guest,
        data: read(host)?,
        mode,
    })
}

fn find_busybox(asked: Option<&Path>) -> Result<PathBuf, Error> {
    if let Some(path) = asked {
        return Ok(path.to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&path).map(|dir| dir.join("busybox"));
    std::iter::once(PathBuf::from("/bin/busybox"))
        .chain(in_path)
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| {
            Error::Machine("no busybox found: install busybox-static or give --busybox".into())
        })
}

fn find_plugin(asked: Option<&Path>) -> Result<PathBuf, Error> {
    let plugin = match asked {
        Some(path) => path.to_owned(),
        None => {
            let program = std::env::current_exe().map_err(|e| Error::Machine(e.to_string()))?;
            program.with_file_name("libtdx_plugin.so")
        }
    };
    // QEMU takes a name without a slash for one of its own plugins.
    fs::canonicalize(&plugin).map_err(machine_error(&plugin))
}

pub(crate) fn prepare(
    run: &Run,
    setup: &Setup,
    out: &Path,
    initramfs: &[u8],
) -> Result<Files, Error> {
    let files = Files {
        plugin: find_plugin(run.plugin.as_deref())?,
        initramfs: out.join("initramfs.cpio"),
        config: out.join("machine.json"),
        trace: out.join("trace.jsonl"),
        summary: out.join("summary.json"),
        monitor: out.join("monitor"),
        console: out.join("console.log"),
    };
    for old in [&files.trace, &files.summary, &files.console, &files.monitor] {
        let _ = fs::remove_file(old);
    }
    let config =
        serde_json::to_vec_pretty(&setup.config).map_err(|e| Error::Machine(e.to_string()))?;
    write(&files.config, &config)?;
    write(&files.initramfs, initramfs)?;
    Ok(files)
}

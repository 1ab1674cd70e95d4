// SPDX-License-Identifier: GPL-2.0

//! The guest's user space: a cpio archive ("newc" format) with busybox, an init and a script.
//!
//! Init mounts the usual file systems, runs the script as root, prints its exit status behind
//! [`RESULT`] on the console and powers off.
//!
//! If the script is to start another kernel, there is a second script for that one, and init packs the
//! root, as long as it is as the archive made it, into an archive for it. Which kernel it is says a
//! parameter of the kernel, `tdx_machine.kernel=NUMBER`; without it, it is the first.

/// What init prints before the exit status of the script.
pub const RESULT: &str = "TDX-MACHINE-RESULT";
/// What init prints when it runs the script for the next kernel.
pub const NEXT: &str = "TDX-MACHINE-NEXT-KERNEL";

/// Where the script lies in the guest.
const SCRIPT: &str = "tdx-machine/script";
/// The script for the next kernel, if there is to be one.
const NEXT_SCRIPT: &str = "tdx-machine/next-script";
/// Present when the user wants a shell instead.
const SHELL: &str = "tdx-machine/shell";

const INIT: &str = r#"#!/bin/busybox sh
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root TERM=linux
/bin/busybox mkdir -p /proc /sys /dev /tmp /run /sbin /usr/bin /usr/sbin /root
/bin/busybox --install -s
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
mount -t tmpfs tmpfs /tmp 2>/dev/null
mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
exec 0</dev/console 1>/dev/console 2>&1
number=$(sed -n 's/.*tdx_machine\.kernel=\([0-9]*\).*/\1/p' /proc/cmdline)
export TDX_MACHINE_KERNEL=${number:-1}
script=/tdx-machine/script next=/tdx-machine/next-script
if [ -e $next ]; then
    # Not after a crash: there the memory is needed for other things.
    [ -e /proc/vmcore ] || (
        cd /
        { find . -xdev ! -path ./tmp/initramfs; echo ./dev/console; } |
            cpio -o -H newc >/tmp/initramfs 2>/dev/null
    )
    if [ "$TDX_MACHINE_KERNEL" -gt 1 ]; then
        script=$next
        for i in 1 2 3; do echo; echo TDX-MACHINE-NEXT-KERNEL; done
    fi
fi
if [ -e /tdx-machine/shell ]; then
    echo "Type 'exit' to switch the machine off."
    setsid cttyhack sh
    status=0
else
    sh $script
    status=$?
    if [ -e $next ] && [ $script != $next ] && [ $status = 0 ]; then
        echo "The script has ended, but not started another kernel."
        status=1
    fi
fi
# Three times, because kernel messages may cut a line in two.
for i in 1 2 3; do
    echo
    echo "TDX-MACHINE-RESULT $status"
done
poweroff -f
"#;

/// What init does after mounting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// Runs this shell script, and in a kernel started by it the second one.
    Script(Vec<u8>, Option<Vec<u8>>),
    /// Gives the user a shell on the console.
    Shell,
}

/// A file to put into the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extra {
    /// Path in the guest, without leading slash.
    pub path: String,
    /// Content.
    pub data: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
}

/// Builds the archive.
pub fn build(busybox: &[u8], work: &Work, extras: &[Extra]) -> Vec<u8> {
    let mut cpio = Cpio::default();
    cpio.directory("bin");
    cpio.directory("dev");
    cpio.character_device("dev/console", 5, 1);
    cpio.file("bin/busybox", 0o755, busybox);
    cpio.file("init", 0o755, INIT.as_bytes());
    cpio.directory("tdx-machine");
    match work {
        Work::Script(script, next) => {
            cpio.file(SCRIPT, 0o755, script);
            if let Some(next) = next {
                cpio.file(NEXT_SCRIPT, 0o755, next);
            }
        }
        Work::Shell => cpio.file(SHELL, 0o644, b""),
    }
    for extra in extras {
        cpio.parents(&extra.path);
        cpio.file(&extra.path, extra.mode, &extra.data);
    }
    cpio.finish()
}

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER: u32 = 0o020_000;

/// Writer of a "newc" archive.
#[derive(Default)]
struct Cpio {
    data: Vec<u8>,
    inodes: u32,
    directories: Vec<String>,
}

impl Cpio {
    fn directory(&mut self, path: &str) {
        if !self.directories.iter().any(|d| d == path) {
            self.directories.push(path.to_owned());
            self.entry(path, DIRECTORY | 0o755, (0, 0), b"");
        }
    }

    /// Directories above `path`.
    fn parents(&mut self, path: &str) {
        for (end, _) in path.match_indices('/') {
            self.directory(&path[..end]);
        }
    }

    fn file(&mut self, path: &str, mode: u32, data: &[u8]) {
        self.entry(path, REGULAR | mode & 0o7777, (0, 0), data);
    }

    fn character_device(&mut self, path: &str, major: u32, minor: u32) {
        self.entry(path, CHARACTER | 0o600, (major, minor), b"");
    }

    fn entry(&mut self, path: &str, mode: u32, (major, minor): (u32, u32), data: &[u8]) {
        self.inodes += 1;
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        // inode, mode, uid, gid, links, mtime, size, device, special device, name length, checksum
        let name_len = path.len() as u32 + 1;
        let fields = [
            self.inodes,
            mode,
            0,
            0,
            links,
            0,
            data.len() as u32,
            0,
            0,
            major,
            minor,
            name_len,
            0,
        ];
        self.data.extend(b"070701");
        for field in fields {
            self.data.extend(format!("{field:08x}").bytes());
        }
        self.data.extend(path.bytes());
        self.data.push(0);
        self.pad(4);
        self.data.extend(data);
        self.pad(4);
    }

    fn pad(&mut self, to: usize) {
        self.data.resize(self.data.len().next_multiple_of(to), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), b"");
        self.pad(512);
        self.data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, mode and content of each entry.
    fn list(archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let (mut at, mut entries) = (0, Vec::new());
        loop {
            assert_eq!(&archive[at..at + 6], b"070701");
            let field = |n: usize| {
                let text = std::str::from_utf8(&archive[at + 6 + 8 * n..at + 14 + 8 * n]).unwrap();
                u32::from_str_radix(text, 16).unwrap() as usize
            };
            let name = String::from_utf8(archive[at + 110..at + 109 + field(11)].to_vec()).unwrap();
            let data = (at + 110 + field(11)).next_multiple_of(4);
            let end = data + field(6);
            if name == "TRAILER!!!" {
                return entries;
            }
            entries.push((name, field(1) as u32, archive[data..end].to_vec()));
            at = end.next_multiple_of(4);
        }
    }

    #[test]
    fn archive_holds_what_the_guest_needs() {
        let extra = Extra {
            path: "opt/data/x".into(),
            data: b"abc".to_vec(),
            mode: 0o640,
        };
        let work = Work::Script(b"true".to_vec(), Some(b"false".to_vec()));
        let archive = build(b"BB", &work, &[extra]);
        assert_eq!(archive.len() % 512, 0);
        let entries = list(&archive);
        let find = |name: &str| {
            entries
                .iter()
                .find(|e| e.0 == name)
                .map(|e| (e.1, e.2.as_slice()))
        };
        assert_eq!(find("bin/busybox"), Some((0o100_755, &b"BB"[..])));
        assert_eq!(find(SCRIPT), Some((0o100_755, &b"true"[..])));
        assert_eq!(find(NEXT_SCRIPT), Some((0o100_755, &b"false"[..])));
        assert_eq!(find("opt/data"), Some((0o040_755, &b""[..])));
        assert_eq!(find("opt/data/x"), Some((0o100_640, &b"abc"[..])));
        assert_eq!(find("dev/console"), Some((0o020_600, &b""[..])));
        assert_eq!(find(SHELL), None);
    }

    #[test]
    fn init_knows_the_markers_and_the_files() {
        for word in [RESULT, NEXT, SCRIPT, NEXT_SCRIPT, SHELL] {
            assert!(INIT.contains(word), "{word}");
        }
    }
}

// SPDX-License-Identifier: GPL-2.0
//! Memory of a TD: one slot from GPA 0 with two backings.
//!
//! Each page is either private, in a guest_memfd that only the TD can read, or
//! shared, in ordinary memory of this process. [`Memory::convert`] changes a
//! range from one to the other as QEMU does: the attribute first, then the
//! backing that is no longer used is given back.

use crate::abi::PAGE;
use crate::failure::Context;
use crate::failure::Failure;
use kvm_bindings::KVM_MEM_GUEST_MEMFD;
use kvm_bindings::KVM_MEMORY_ATTRIBUTE_PRIVATE;
use kvm_bindings::kvm_create_guest_memfd;
use kvm_bindings::kvm_memory_attributes;
use kvm_bindings::kvm_userspace_memory_region2;
use kvm_ioctls::VmFd;
use memmap2::MmapMut;
use memmap2::MmapRaw;
use memmap2::UncheckedAdvice;
use rustix::fs::FallocateFlags;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::sync::Mutex;

/// Memory of one TD.
pub struct Memory {
    shared: MmapRaw,
    private: OwnedFd,
    size: u64,
    // Two vCPUs may ask for conversions of the same page at once.
    converting: Mutex<()>,
}

impl Memory {
    /// Give `vm` `size` bytes of memory from GPA 0, all of it private.
    ///
    /// # Errors
    ///
    /// Memory cannot be had, or KVM does not take it.
    pub fn new(vm: &VmFd, size: u64) -> Result<Self, Failure> {
        let shared = MmapMut::map_anon(size as usize)
            .step("map guest memory")?
            .into();
        let memfd = kvm_create_guest_memfd {
            size,
            ..Default::default()
        };
        let fd = vm
            .create_guest_memfd(memfd)
            .step("KVM_CREATE_GUEST_MEMFD")?;
        // SAFETY: KVM has just made this descriptor, and nothing else closes it.
        let private = unsafe { OwnedFd::from_raw_fd(fd) };
        let memory = Self {
            shared,
            private,
            size,
            converting: Mutex::new(()),
        };
        memory.set_slot(vm, size)?;
        memory.set_private(vm, 0, size, true)?;
        Ok(memory)
    }

    /// Take the memory away from `vm`, whose vCPUs no longer run.
    ///
    /// # Errors
    ///
    /// KVM refuses.
    pub fn remove(&self, vm: &VmFd) -> Result<(), Failure> {
        self.set_slot(vm, 0)
    }

    /// Address of a guest page in this process; `gpa` must lie in the memory.
    ///
    /// # Errors
    ///
    /// `gpa` does not.
    pub fn address(&self, gpa: u64, size: u64) -> Result<*mut u8, Failure> {
        if !self.contains(gpa, size) {
            return Err(Failure::new(format!(
                "GPA {gpa:#x}, {size:#x} bytes: not memory of the TD"
            )));
        }
        Ok(self.shared.as_mut_ptr().wrapping_add(gpa as usize))
    }

    /// Write to the shared backing; what the TD sees if the page is shared.
    ///
    /// # Errors
    ///
    /// The range is not memory of the TD.
    pub fn write(&self, gpa: u64, bytes: &[u8]) -> Result<(), Failure> {
        let to = self.address(gpa, bytes.len() as u64)?;
        // SAFETY: the mapping holds `bytes.len()` bytes from `to`, it lives as
        // long as `self`, and nobody has a reference to it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        Ok(())
    }

    /// Make [`gpa`, `gpa + size`) private, or shared; it may be so already.
    ///
    /// # Errors
    ///
    /// The range is not memory of the TD, or a system call fails.
    pub fn convert(&self, vm: &VmFd, gpa: u64, size: u64, private: bool) -> Result<(), Failure> {
        self.address(gpa, size)?;
        let _one = self.converting.lock().unwrap_or_else(|e| e.into_inner());
        self.set_private(vm, gpa, size, private)?;
        if private {
            // SAFETY: nobody has a reference to the mapping, so its content may go.
            unsafe {
                self.shared.unchecked_advise_range(
                    UncheckedAdvice::DontNeed,
                    gpa as usize,
                    size as usize,
                )
            }
            .step("give back shared memory")
        } else {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&self.private, flags, gpa, size).step("give back private memory")
        }
    }

    /// Whether [`gpa`, `gpa + size`) lies in the memory; nothing lies nowhere.
    pub fn contains(&self, gpa: u64, size: u64) -> bool {
        gpa.checked_add(size)
            .is_some_and(|end| size != 0 && end <= self.size)
    }

    fn set_private(&self, vm: &VmFd, gpa: u64, size: u64, private: bool) -> Result<(), Failure> {
        let attributes = if private {
            u64::from(KVM_MEMORY_ATTRIBUTE_PRIVATE)
        } else {
            0
        };
        let range = kvm_memory_attributes {
            address: gpa,
            size,
            attributes,
            flags: 0,
        };
        vm.set_memory_attributes(range)
            .step("KVM_SET_MEMORY_ATTRIBUTES")
    }

    /// Put the memory into slot 0, or empty the slot (`size` 0).
    fn set_slot(&self, vm: &VmFd, size: u64) -> Result<(), Failure> {
        let region = kvm_userspace_memory_region2 {
            slot: 0,
            flags: KVM_MEM_GUEST_MEMFD,
            guest_phys_addr: 0,
            memory_size: size,
            userspace_addr: self.shared.as_mut_ptr() as u64,
            guest_memfd_offset: 0,
            guest_memfd: self.private.as_raw_fd() as u32,
            ..Default::default()
        };
        // SAFETY: vCPUs run only while the `Td` lives that owns this mapping, and
        // nobody has a reference to the mapping.
        unsafe { vm.set_user_memory_region2(region) }.step("KVM_SET_USER_MEMORY_REGION2")
    }
}

/// Bytes of a number of pages.
pub fn pages(count: u64) -> u64 {
    count.saturating_mul(PAGE)
}

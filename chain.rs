// SPDX-License-Identifier: GPL-2.0

//! The users of TDs that take part in a memory reset: a notifier chain.
//!
//! Users come and go in task context, under the chain's lock ([`tdx_register_memory_reset_notifier`],
//! for Rust [`Registration`]). [`call`] takes no lock: it runs when nothing else does, and a notifier
//! chain can be walked at any instant of a registration, since one store puts an entry in or takes
//! it out. It calls every user, whatever the others say.
//!
//! In a crash nobody knows in what state a user is, so they are called on CPUs that the crash has
//! stopped ([`call_in_crash`], [`help`]): one that hangs or crashes takes only such a CPU with it.
//!
//! Neighbours: [`crate::kexec`] makes the call, [`crate::deputy`] lends the CPUs.

use core::marker::PhantomPinned;
use core::pin::Pin;
use kernel::bindings;
use kernel::error::to_result;
use kernel::ffi::{
    c_int,
    c_ulong,
    c_void, //
};
use kernel::prelude::*;
use kernel::types::Opaque;

use crate::books;
use crate::deputy::{
    Desk,
    Given,
    Patience, //
};
use crate::kexec::NothingElseRuns;
use crate::range::PageSize;
use crate::reset;

/// How many users are called. More are a chain that bites its tail.
const USERS_MAX: usize = 1024;

/// Pages in a region of [`books`].
const PAGES_PER_REGION: u64 = PageSize::Size2M.bytes() / PageSize::Size4K.bytes();

/// How long a user may take in a crash for each page that it converts.
///
/// It converts each page once or twice, and at most all of the 2 MB around each page that a TD had.
/// More than that is a list that bites its tail.
fn patience() -> Patience {
    let regions = (0..books::regions()).filter_map(books::noted).count() as u64;
    Patience {
        take: 1_000_000_000,
        progress: 5_000_000_000,
        most: 2 * PAGES_PER_REGION * (regions + 1),
    }
}

/// Where stopped CPUs learn which user to call.
static DESK: Desk<bindings::notifier_block> = Desk::new();

/// What one user did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Answer {
    /// Whether it could not convert everything.
    failed: bool,
    /// How many TDs it has converted.
    tds: u32,
}

impl Answer {
    fn pack(self) -> u64 {
        u64::from(self.failed) << 32 | u64::from(self.tds)
    }

    fn unpack(packed: u64) -> Self {
        Self {
            failed: packed >> 32 != 0,
            tds: packed as u32,
        }
    }
}

/// What the users did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Users {
    /// How many were called.
    pub(crate) called: u32,
    /// How many of them could not convert everything.
    pub(crate) failed: u32,
    /// How many TDs they have converted.
    pub(crate) tds: u32,
}

/// The chain that users register with.
fn chain() -> *mut bindings::blocking_notifier_head {
    &raw mut bindings::tdx_glue_reset_chain
}

/// Calls the user `nb`.
///
/// # Safety
///
/// `nb` is an entry of a chain, and valid.
unsafe fn call_user(nb: *mut bindings::notifier_block) -> Answer {
    let mut reset = bindings::tdx_memory_reset { tds: 0 };
    // SAFETY: Promised by the caller; the callback of a valid entry is one.
    let said = unsafe { (*nb).notifier_call }.map_or(0, |callback| unsafe {
        callback(nb, 0, (&raw mut reset).cast())
    });
    Answer {
        // Whether to stop here is not for a user to say. Beyond that, more than OK is an error.
        failed: said & !(bindings::NOTIFY_STOP_MASK as c_int) > bindings::NOTIFY_OK as c_int,
        tds: reset.tds,
    }
}

/// Has every user of `chain` called by `call`, in order. `None` is the answer of a user that does
/// not come back.
///
/// # Safety
///
/// `chain` is a notifier chain whose entries are valid.
unsafe fn call_chain(
    chain: *mut bindings::blocking_notifier_head,
    mut call: impl FnMut(*mut bindings::notifier_block) -> Option<Answer>,
) -> Users {
    let mut users = Users::default();
    // SAFETY: Promised by the caller.
    let mut next = unsafe { (&raw mut (*chain).head).read_volatile() };
    for _ in 0..USERS_MAX {
        if next.is_null() {
            break;
        }
        let answer = call(next);
        users.called += 1;
        users.tds = users
            .tds
            .saturating_add(answer.map_or(0, |answer| answer.tds));
        let complaint = match answer {
            Some(answer) if !answer.failed => None,
            Some(_) => Some(c"could not make its memory normal"),
            None => Some(c"hangs, or has crashed: going on without it"),
        };
        if let Some(complaint) = complaint {
            users.failed += 1;
            // SAFETY: Entries of a chain are valid; the text ends with a NUL.
            unsafe { bindings::tdx_glue_say_user(next, complaint.as_char_ptr()) };
        }
        // SAFETY: Entries of a chain are valid.
        next = unsafe { (&raw mut (*next).next).read_volatile() };
    }
    if !next.is_null() {
        // Whoever was not called has not converted anything.
        users.failed += 1;
    }
    users
}

/// Calls every user. Any context.
pub(crate) fn call(_alone: &NothingElseRuns<'_>) -> Users {
    // SAFETY: Users keep their entries valid while they are registered, and nobody registers or
    // unregisters now: at most somebody was stopped in the middle of it.
    unsafe { call_chain(chain(), |nb| Some(call_user(nb))) }
}

/// Has every user called by one of the `deputies`, CPUs that are in [`help`] or on their way to it.
/// Those that are left, if deputies run out, are called here. Any context.
pub(crate) fn call_in_crash(_alone: &NothingElseRuns<'_>, deputies: u32) -> Users {
    let mut deputies = deputies;
    let patience = patience();
    let by_deputy = |nb| {
        if deputies != 0 {
            match DESK.give(nb, patience, reset::conversions) {
                Given::Done(answer) => return Some(Answer::unpack(answer)),
                Given::Hangs => {
                    deputies -= 1;
                    return None;
                }
                Given::NotTaken => deputies = 0,
            }
        }
        // SAFETY: As below.
        Some(unsafe { call_user(nb) })
    };
    reset::count_conversions();
    // SAFETY: As in `call`; a user of which nothing was heard may still run, but stays registered.
    unsafe { call_chain(chain(), by_deputy) }
}

/// Waits on a CPU that a crash has stopped, and calls users, until [`dismiss`]. Any context.
pub(crate) fn help() {
    // SAFETY: What is given here comes from `call_chain`, whose entries are valid.
    DESK.serve(|nb| unsafe { call_user(nb) }.pack());
}

/// Lets the CPUs in [`help`] go.
pub(crate) fn dismiss() {
    DESK.close();
}

/// Registers a user; see `asm/tdx.h`.
///
/// # Safety
///
/// `nb` and its callback are valid until it was unregistered.
#[export]
pub unsafe extern "C" fn tdx_register_memory_reset_notifier(
    nb: *mut bindings::notifier_block,
) -> c_int {
    // SAFETY: Promised by the caller; the chain lives for ever.
    unsafe { bindings::blocking_notifier_chain_register(chain(), nb) }
}

/// Unregisters a user; see `asm/tdx.h`.
///
/// # Safety
///
/// `nb` is valid.
#[export]
pub unsafe extern "C" fn tdx_unregister_memory_reset_notifier(
    nb: *mut bindings::notifier_block,
) -> c_int {
    // SAFETY: Promised by the caller; the chain lives for ever.
    unsafe { bindings::blocking_notifier_chain_unregister(chain(), nb) }
}

/// A user of TDs written in Rust.
pub trait ResetUser: Sync {
    /// Converts ([`crate::reset::reset`]) every page of the user's TDs, and returns how many TDs
    /// those are.
    ///
    /// Interrupts are off and nothing else runs: no sleeping, no allocation, no lock, no SEAMCALL.
    ///
    /// # Errors
    ///
    /// Something could not be converted. Then the TDX module is asked which pages are private.
    fn reset(&self, alone: &NothingElseRuns<'_>) -> Result<u32>;
}

/// A [`ResetUser`] that takes part in memory resets while this value lives.
#[pin_data(PinnedDrop)]
pub struct Registration<U: ResetUser> {
    #[pin]
    nb: Opaque<bindings::notifier_block>,
    user: U,
    #[pin]
    _pin: PhantomPinned,
}

// SAFETY: `nb` belongs to the chain, which serialises itself; `user` is `Sync`.
unsafe impl<U: ResetUser> Sync for Registration<U> {}

impl<U: ResetUser> Registration<U> {
    /// Registers `user`. Task context, sleeps.
    pub fn new(user: U) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            user,
            _pin: PhantomPinned,
            nb <- Opaque::try_ffi_init(|nb: *mut bindings::notifier_block| {
                // SAFETY: `nb` is valid for writing, and pinned from here on; `drop` unregisters.
                unsafe {
                    nb.write(bindings::notifier_block {
                        notifier_call: Some(Self::callback),
                        next: core::ptr::null_mut(),
                        priority: 0,
                    });
                    to_result(tdx_register_memory_reset_notifier(nb))
                }
            }),
        })
    }

    /// The user.
    pub fn user(self: Pin<&Self>) -> &U {
        &self.get_ref().user
    }

    /// What the chain calls.
    ///
    /// # Safety
    ///
    /// `nb` is that of a live `Self`, and `data` a valid `struct tdx_memory_reset`.
    unsafe extern "C" fn callback(
        nb: *mut bindings::notifier_block,
        _action: c_ulong,
        data: *mut c_void,
    ) -> c_int {
        // SAFETY: `nb` lies in a `Self`, by this function's contract; `Opaque` has its address.
        let this = unsafe { &*kernel::container_of!(Opaque::cast_from(nb), Self, nb) };
        // SAFETY: The chain is called from a memory reset only.
        let alone = unsafe { NothingElseRuns::promised() };
        match this.user.reset(&alone) {
            Ok(tds) => {
                // SAFETY: `data` is valid, by this function's contract.
                unsafe { (*data.cast::<bindings::tdx_memory_reset>()).tds += tds };
                bindings::NOTIFY_OK as c_int
            }
            Err(_) => bindings::NOTIFY_BAD as c_int,
        }
    }
}

#[pinned_drop]
impl<U: ResetUser> PinnedDrop for Registration<U> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: `new` has registered it. No memory reset runs: it would have stopped this task.
        unsafe { tdx_unregister_memory_reset_notifier(self.nb.get()) };
    }
}

#[cfg(CONFIG_INTEL_TDX_HOST_KUNIT_TEST)]
#[kernel::macros::kunit_tests(tdx_host_chain)]
mod tests {
    use super::*;
    use kernel::alloc::flags::GFP_KERNEL;

    /// Claims 3 TDs and answers with its priority.
    ///
    /// # Safety
    ///
    /// `nb` is valid, and `data` a `struct tdx_memory_reset`.
    unsafe extern "C" fn answer(
        nb: *mut bindings::notifier_block,
        _action: c_ulong,
        data: *mut c_void,
    ) -> c_int {
        // SAFETY: Promised by the caller.
        unsafe {
            (*data.cast::<bindings::tdx_memory_reset>()).tds += 3;
            (*nb).priority
        }
    }

    fn user(answer_with: u32, next: *mut bindings::notifier_block) -> bindings::notifier_block {
        bindings::notifier_block {
            notifier_call: Some(answer),
            next,
            priority: answer_with as c_int,
        }
    }

    /// Calls a chain that begins with `first`.
    fn call_from(first: *mut bindings::notifier_block) -> Users {
        let chain = Opaque::<bindings::blocking_notifier_head>::zeroed();
        let chain = chain.get();
        // SAFETY: Nobody else knows the chain, whose lock is not used; the entries are valid.
        unsafe {
            (*chain).head = first;
            call_chain(chain, |nb| Some(call_user(nb)))
        }
    }

    #[test]
    fn answers_survive_packing() {
        for (failed, tds) in [(false, 0), (true, 0), (false, u32::MAX), (true, 5)] {
            let answer = Answer { failed, tds };
            assert_eq!(Answer::unpack(answer.pack()), answer);
        }
    }

    #[test]
    fn every_user_is_called_whatever_the_others_say() {
        let mut last = user(bindings::NOTIFY_OK, core::ptr::null_mut());
        let mut bad = user(bindings::NOTIFY_BAD, &raw mut last);
        let mut stop = user(
            bindings::NOTIFY_STOP_MASK | bindings::NOTIFY_OK,
            &raw mut bad,
        );
        let mut done = user(bindings::NOTIFY_DONE, &raw mut stop);
        let users = Users {
            called: 4,
            failed: 1,
            tds: 12,
        };
        assert_eq!(call_from(&raw mut done), users);
        assert_eq!(call_from(core::ptr::null_mut()), Users::default());
    }

    #[test]
    fn chain_that_bites_its_tail_ends() {
        let mut one = user(bindings::NOTIFY_OK, core::ptr::null_mut());
        let own: *mut bindings::notifier_block = &raw mut one;
        // SAFETY: The entry is valid.
        unsafe { (*own).next = own };
        let users = call_from(own);
        assert_eq!((users.called as usize, users.failed), (USERS_MAX, 1));
    }

    /// A user with a number of TDs, or a failure.
    struct Tds(Result<u32>);

    impl ResetUser for Tds {
        fn reset(&self, _alone: &NothingElseRuns<'_>) -> Result<u32> {
            self.0
        }
    }

    /// Whether `nb` is registered. Nobody else registers meanwhile.
    fn is_registered(nb: *mut bindings::notifier_block) -> bool {
        // SAFETY: Entries of the chain are valid.
        unsafe {
            let mut next = (*chain()).head;
            while !next.is_null() && next != nb {
                next = (*next).next;
            }
            !next.is_null()
        }
    }

    #[test]
    fn rust_user_is_registered_while_it_lives() -> Result {
        for (tds, answer) in [
            (Ok(5), bindings::NOTIFY_OK),
            (Err(EIO), bindings::NOTIFY_BAD),
        ] {
            let registration = KBox::pin_init(Registration::new(Tds(tds)), GFP_KERNEL)?;
            assert!(registration.as_ref().user().0 == tds);
            let nb = registration.nb.get();
            assert!(is_registered(nb));
            let mut reset = bindings::tdx_memory_reset { tds: 2 };
            // SAFETY: What the chain does, for a user that converts nothing.
            let said = unsafe { Registration::<Tds>::callback(nb, 0, (&raw mut reset).cast()) };
            assert_eq!(said, answer as c_int);
            assert_eq!(reset.tds, 2 + tds.unwrap_or(0));
            drop(registration);
            assert!(!is_registered(nb));
        }
        Ok(())
    }
}

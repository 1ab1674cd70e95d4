// SPDX-License-Identifier: GPL-2.0

//! Storage that the caller lends to the pure files, which cannot allocate.
//!
//! [`Store`] is what they ask for: append, look, empty. The kernel implements it for its fallible
//! vector; [`SliceStore`] implements it over a borrowed slice, for tests and fixed-size uses.
//!
//! Pure: `core` only, never panics. Used by `memlist`, `tdmr`, `pamt` and `metadata`.

#![cfg_attr(not(CONFIG_INTEL_TDX_HOST_KUNIT_TEST), forbid(unsafe_code))]
#![deny(missing_docs)]

/// The storage could not take another element: out of memory, or a fixed capacity is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreFull;

/// A list that can grow, and can fail to.
pub trait Store<T> {
    /// Appends `value`.
    ///
    /// # Errors
    ///
    /// [`StoreFull`] if there is no room; the list is then unchanged.
    fn push(&mut self, value: T) -> Result<(), StoreFull>;

    /// What has been stored, in order.
    fn as_slice(&self) -> &[T];

    /// What has been stored, to be changed in place.
    fn as_mut_slice(&mut self) -> &mut [T];

    /// Forgets all elements but the first `len`.
    fn truncate(&mut self, len: usize);

    /// Forgets all elements; the room is kept.
    fn clear(&mut self);
}

/// A [`Store`] of fixed capacity over a borrowed slice.
pub struct SliceStore<'a, T> {
    space: &'a mut [T],
    used: usize,
}

impl<'a, T> SliceStore<'a, T> {
    /// An empty store whose capacity is the length of `space`; its old contents do not matter.
    pub fn new(space: &'a mut [T]) -> Self {
        SliceStore { space, used: 0 }
    }
}

impl<T> Store<T> for SliceStore<'_, T> {
    fn push(&mut self, value: T) -> Result<(), StoreFull> {
        let slot = self.space.get_mut(self.used).ok_or(StoreFull)?;
        *slot = value;
        self.used = self.used.saturating_add(1);
        Ok(())
    }

    fn as_slice(&self) -> &[T] {
        self.space.get(..self.used).unwrap_or(&[])
    }

    fn as_mut_slice(&mut self) -> &mut [T] {
        self.space.get_mut(..self.used).unwrap_or(&mut [])
    }

    fn truncate(&mut self, len: usize) {
        self.used = self.used.min(len);
    }

    fn clear(&mut self) {
        self.used = 0;
    }
}

#[cfg(any(test, CONFIG_INTEL_TDX_HOST_KUNIT_TEST))]
#[cfg_attr(
    CONFIG_INTEL_TDX_HOST_KUNIT_TEST,
    kernel::macros::kunit_tests(tdx_host_store)
)]
mod tests {
    use super::*;

    #[test]
    fn slice_store_fills_up_and_empties() {
        let mut space = [0u32; 2];
        let mut store = SliceStore::new(&mut space);
        assert!(store.as_slice().is_empty());
        assert_eq!(store.push(7), Ok(()));
        assert_eq!(store.push(8), Ok(()));
        assert_eq!(store.push(9), Err(StoreFull));
        assert_eq!(store.as_slice(), &[7, 8]);
        store.truncate(3);
        assert_eq!(store.as_slice(), &[7, 8]);
        store.truncate(1);
        assert_eq!(store.as_slice(), &[7]);
        store.clear();
        assert!(store.as_slice().is_empty());
        assert_eq!(store.push(9), Ok(()));
        assert_eq!(store.as_mut_slice(), &mut [9]);
    }
}

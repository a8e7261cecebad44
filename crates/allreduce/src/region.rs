//! Runs of f32 that two threads take turns on: memory of another library, lent to the communication thread.
//! Knows nothing of what the numbers mean.
#![allow(unsafe_code)]

use std::any::Any;
use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::nccl::RegionDevice;

/// A run of f32 in memory owned elsewhere, such as by libtorch. Cheap to clone; clones and slices are the
/// same memory.
#[derive(Clone)]
pub struct Region {
    start: Start,
    len: usize,
    memory: Arc<Memory>,
}

/// What the clones and slices of a region share.
struct Memory {
    start: Start,
    len: usize,
    /// Keeps the memory alive.
    _owner: Arc<dyn Any + Send + Sync>,
    /// Held while this crate reads or writes the memory.
    access: Mutex<()>,
    /// Where the memory is not the host's, what works on it.
    device: Option<RegionDevice>,
}

/// An element of a region, or the end of one.
#[derive(Clone, Copy, Debug)]
struct Start(NonNull<f32>);

// SAFETY: it points into memory that `Memory` keeps alive and that any thread may use, as `Region::new` demands. This
// crate only dereferences it under the lock, or hands it to the device under the device's lock.
unsafe impl Send for Start {}
// SAFETY: as above.
unsafe impl Sync for Start {}

impl Region {
    /// Describes `len` elements from `ptr` on.
    ///
    /// # Safety
    /// - `ptr` is aligned and points to `len` initialised elements that stay valid as long as `owner` lives,
    ///   and may be read and written from any thread.
    /// - While an operation of this crate on the region, or on a slice of it, is under way, nobody else
    ///   touches the elements that it covers, nor uses a region made by another call of `new` over them. An
    ///   operation is under way from the call to its return; one that returns a [`Pending`](crate::Pending), until that is
    ///   gone. For a bucket of a [`Reducer`](crate::Reducer) it begins with the `mark_ready` or `seal` after which nothing of
    ///   it is missing, at the latest with `launch`, and ends when `launch` returns; of a step that is given up, when the
    ///   next `begin_step` returns. `settle` touches nothing.
    #[must_use]
    pub unsafe fn new(ptr: NonNull<f32>, len: usize, owner: Arc<dyn Any + Send + Sync>) -> Region {
        Region::of(Memory { start: Start(ptr), len, _owner: owner, access: Mutex::new(()), device: None })
    }

    /// As [`Region::new`], for memory that `device` works on and the host does not read. A
    /// [`Reducer`](crate::Reducer), [`CommThread::gather_shards`](crate::CommThread::gather_shards) and
    /// [`measure_all_reduce`](crate::measure_all_reduce) take such a region. NCCL is told of all of it before it first meets
    /// a part, and keeps `owner` alive until the exchange ends or, if nobody else has the region any more, meets another one.
    ///
    /// # Safety
    /// As [`Region::new`], but that the memory is the device's, and touched by what streams hold:
    /// - An operation begins where the stream of the thread that hands it over stands, as [`RegionDevice`] notes it then. It
    ///   is over for a stream that has been held: for that of the thread that calls `launch` when this returns, for others by
    ///   an [`Arrival`](crate::Arrival), which is still to be waited for when the `Pending` is gone. After an error it is
    ///   over only when the device is through with all that it holds.
    /// - All regions that one [`CommThread`](crate::CommThread) works on are of one `device`, or an operation is over before
    ///   one on another device is handed over.
    #[must_use]
    pub unsafe fn on_device(
        ptr: NonNull<f32>,
        len: usize,
        owner: Arc<dyn Any + Send + Sync>,
        device: RegionDevice,
    ) -> Region {
        Region::of(Memory {
            start: Start(ptr),
            len,
            _owner: owner,
            access: Mutex::new(()),
            device: Some(device),
        })
    }

    fn of(memory: Memory) -> Region {
        Region { start: memory.start, len: memory.len, memory: Arc::new(memory) }
    }

    /// All of the memory that this is a slice of.
    pub(crate) fn whole(&self) -> Region {
        Region { start: self.memory.start, len: self.memory.len, memory: Arc::clone(&self.memory) }
    }

    /// Whether both are slices of one region.
    pub(crate) fn is_same_memory(&self, other: &Region) -> bool {
        Arc::ptr_eq(&self.memory, &other.memory)
    }

    /// Whether there is no other clone or slice.
    pub(crate) fn is_the_last(&self) -> bool {
        Arc::strong_count(&self.memory) == 1
    }

    /// What works on the memory, where it is not the host's.
    pub(crate) fn device(&self) -> Option<&RegionDevice> {
        self.memory.device.as_ref()
    }

    /// The first element, for the device.
    pub(crate) fn start(&self) -> *mut f32 {
        self.start.0.as_ptr()
    }

    /// Takes the memory of a vector.
    #[must_use]
    pub fn from_vec(mut values: Vec<f32>) -> Region {
        let start = NonNull::new(values.as_mut_ptr()).unwrap_or(NonNull::dangling());
        let len = values.len();
        // SAFETY: the vector's elements stay where they are when the vector itself moves, and from here on
        // only the region reaches them.
        unsafe { Region::new(start, len, Arc::new(values)) }
    }

    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The part `range` of the same memory.
    ///
    /// # Panics
    /// When the range is not within the region.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> Region {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "elements {range:?} are not within a region of {} elements",
            self.len
        );
        // SAFETY: the offset lies within the elements, or one past them, by the check above.
        let start = Start(unsafe { self.start.0.add(range.start) });
        Region { start, len: range.len(), memory: Arc::clone(&self.memory) }
    }

    /// A copy of the elements. Waits for an operation on the region that is under way.
    #[must_use]
    pub fn to_vec(&self) -> Vec<f32> {
        self.lock().to_vec()
    }

    /// The elements, for this thread alone among the users of this region, its clones and its slices.
    ///
    /// # Panics
    /// When they are not the host's.
    pub(crate) fn lock(&self) -> RegionGuard<'_> {
        assert!(self.memory.device.is_none(), "the host does not read the memory of a device");
        // A panic under the lock leaves numbers behind, not broken invariants.
        let access = self.memory.access.lock().unwrap_or_else(PoisonError::into_inner);
        RegionGuard { region: self, _access: access }
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region").field("start", &self.start.0).field("len", &self.len).finish()
    }
}

/// Exclusive access to a region's elements.
pub(crate) struct RegionGuard<'a> {
    region: &'a Region,
    _access: MutexGuard<'a, ()>,
}

impl Deref for RegionGuard<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: valid and initialised by `Region::new`, and the host's, since `lock` gave the guard; the lock keeps this
        // crate's other accesses out, and the promise given to `Region::new` everybody else's.
        unsafe { std::slice::from_raw_parts(self.region.start.0.as_ptr(), self.region.len) }
    }
}

impl DerefMut for RegionGuard<'_> {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `deref`; `&mut self` keeps this guard's own shared slices out.
        unsafe { std::slice::from_raw_parts_mut(self.region.start.0.as_ptr(), self.region.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_and_clones_are_the_same_memory() {
        let region = Region::from_vec(vec![0.0, 1.0, 2.0, 3.0]);
        let middle = region.slice(1..3);
        middle.lock()[0] = 10.0;
        region.clone().lock()[2] = 20.0;
        assert_eq!(middle.to_vec(), [10.0, 20.0]);
        assert!(middle.is_same_memory(&region) && !middle.is_the_last());
        drop(region);
        assert_eq!(middle.slice(1..2).to_vec(), [20.0]);
        assert_eq!(middle.whole().to_vec(), [0.0, 10.0, 20.0, 3.0]);
        assert!(middle.is_the_last());
        assert!(middle.slice(2..2).is_empty());
        assert!(Region::from_vec(Vec::new()).to_vec().is_empty());
    }

    #[test]
    #[should_panic(expected = "elements 1..5 are not within a region of 4 elements")]
    fn a_slice_beyond_the_end_is_refused() {
        let _ = Region::from_vec(vec![0.0; 4]).slice(1..5);
    }

    #[test]
    fn the_owner_lives_as_long_as_any_slice() {
        let owner = Arc::new(vec![1.0f32; 8]);
        let start = NonNull::new(owner.as_ptr().cast_mut()).unwrap();
        let kept: Arc<dyn Any + Send + Sync> = Arc::<Vec<f32>>::clone(&owner);
        // SAFETY: the elements live as long as `kept`, and are only read here.
        let slice = unsafe { Region::new(start, 8, kept) }.slice(2..4);
        assert_eq!(slice.to_vec(), [1.0, 1.0]);
        assert_eq!(Arc::strong_count(&owner), 2);
        drop(slice);
        assert_eq!(Arc::strong_count(&owner), 1);
    }
}

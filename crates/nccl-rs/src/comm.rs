//! A communicator that never blocks the host: calls return at once, and [`Comm::poll`] says when they are complete.
//! How long to wait, and what to do meanwhile, is the caller's business.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_void};
use std::ptr::{self, NonNull};

use crate::result::{self, DataType, Operation, Progress};
use crate::sys::{
    NCCL_API_MAGIC, NCCL_CONFIG_UNDEF_INT, NCCL_UNIQUE_ID_BYTES, cudaStream_t, ncclComm_t, ncclConfig_t,
    ncclUniqueId,
};
use crate::{Error, Library};

/// What one rank makes and tells the others, so that they find each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UniqueId([u8; NCCL_UNIQUE_ID_BYTES]);

impl UniqueId {
    /// A new one, behind which a thread of this process listens.
    ///
    /// # Errors
    /// When NCCL finds no network interface.
    pub fn new(library: &Library) -> Result<Self, Error> {
        Ok(UniqueId(result::get_unique_id(library)?.internal.map(|byte| byte as u8)))
    }

    /// To be sent to the other ranks.
    #[must_use]
    pub fn to_bytes(self) -> [u8; NCCL_UNIQUE_ID_BYTES] {
        self.0
    }

    /// As another rank sent it; `None` when it has another length.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(UniqueId)
    }

    fn raw(self) -> ncclUniqueId {
        ncclUniqueId { internal: self.0.map(|byte| byte as c_char) }
    }
}

/// What a communicator is made with. What is absent is NCCL's own choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Fewest thread blocks (CTAs) that NCCL takes from the device for itself.
    pub min_ctas: Option<u16>,
    /// Most of them.
    pub max_ctas: Option<u16>,
}

impl Config {
    fn raw(self) -> ncclConfig_t {
        let or_undefined = |count: Option<u16>| count.map_or(NCCL_CONFIG_UNDEF_INT, c_int::from);
        ncclConfig_t {
            size: size_of::<ncclConfig_t>(),
            magic: NCCL_API_MAGIC,
            version: 21_900,
            blocking: 0,
            cgaClusterSize: NCCL_CONFIG_UNDEF_INT,
            minCTAs: or_undefined(self.min_ctas),
            maxCTAs: or_undefined(self.max_ctas),
            netName: ptr::null(),
            splitShare: NCCL_CONFIG_UNDEF_INT,
            after_2_19: NCCL_CONFIG_UNDEF_INT,
        }
    }
}

/// A buffer that a communicator knows of.
#[derive(Debug)]
#[must_use = "it is what the buffer is deregistered with"]
pub struct Registration(NonNull<c_void>);

// SAFETY: a handle, which NCCL uses from any thread.
unsafe impl Send for Registration {}

/// One rank of a group of them. May move between threads, but is used by one at a time.
///
/// Dropped before [`Comm::finalize`] has completed it is aborted, which does not wait for other ranks.
#[derive(Debug)]
pub struct Comm {
    library: Library,
    raw: ncclComm_t,
    /// It was finalised, so that only its memory is left to be freed.
    finalized: bool,
}

// SAFETY: NCCL binds a communicator to a device, not to a thread; `&mut self` keeps threads apart.
unsafe impl Send for Comm {}

impl Comm {
    /// Begins to meet the other ranks, on this thread's current device; [`Comm::poll`] says when all are there.
    ///
    /// # Errors
    /// Without a device, or when rank and world size do not fit.
    pub fn init(
        library: &Library,
        id: UniqueId,
        rank: usize,
        world_size: usize,
        config: Config,
    ) -> Result<Comm, Error> {
        // SAFETY: `Config::raw` initialises every field.
        let (raw, _) = unsafe {
            result::comm_init_rank_config(
                library,
                world_size as c_int,
                id.raw(),
                rank as c_int,
                &mut config.raw(),
            )
        }?;
        Ok(Comm { library: library.clone(), raw, finalized: false })
    }

    /// Whether everything asked for so far is complete (of operations: queued on their stream). Never waits.
    ///
    /// # Errors
    /// What has gone wrong; the communicator is then of no further use.
    pub fn poll(&mut self) -> Result<Progress, Error> {
        // SAFETY: alive until drop.
        unsafe { result::async_error(&self.library, self.raw) }
    }

    /// Its rank, number of ranks and device, as NCCL sees them.
    ///
    /// # Errors
    /// What NCCL says, such as that it is not complete yet.
    pub fn place(&mut self) -> Result<(usize, usize, usize), Error> {
        let (mut rank, mut count, mut device) = (0, 0, 0);
        // SAFETY: alive until drop.
        unsafe {
            let _ = result::comm_user_rank(&self.library, self.raw, &mut rank)?;
            let _ = result::comm_count(&self.library, self.raw, &mut count)?;
            let _ = result::comm_cu_device(&self.library, self.raw, &mut device)?;
        }
        Ok((rank as usize, count as usize, device as usize))
    }

    /// Sums, or another operation, over all ranks; in place where `send` equals `receive`.
    ///
    /// # Errors
    /// What NCCL says.
    ///
    /// # Safety
    /// As [`result::all_reduce`].
    pub unsafe fn all_reduce(
        &mut self,
        send: *const c_void,
        receive: *mut c_void,
        count: usize,
        data_type: DataType,
        operation: Operation,
        stream: cudaStream_t,
    ) -> Result<Progress, Error> {
        // SAFETY: alive until drop; the rest is the caller's promise.
        unsafe {
            result::all_reduce(&self.library, send, receive, count, data_type, operation, self.raw, stream)
        }
    }

    /// The elements of rank `root` for all.
    ///
    /// # Errors
    /// What NCCL says.
    ///
    /// # Safety
    /// As [`result::broadcast`].
    pub unsafe fn broadcast(
        &mut self,
        send: *const c_void,
        receive: *mut c_void,
        count: usize,
        data_type: DataType,
        root: usize,
        stream: cudaStream_t,
    ) -> Result<Progress, Error> {
        let root = root as c_int;
        // SAFETY: alive until drop; the rest is the caller's promise.
        unsafe { result::broadcast(&self.library, send, receive, count, data_type, root, self.raw, stream) }
    }

    /// Reduces as many elements as there are ranks times `receive_count`, and leaves block r on rank r.
    ///
    /// # Errors
    /// What NCCL says.
    ///
    /// # Safety
    /// As [`result::reduce_scatter`].
    pub unsafe fn reduce_scatter(
        &mut self,
        send: *const c_void,
        receive: *mut c_void,
        receive_count: usize,
        data_type: DataType,
        operation: Operation,
        stream: cudaStream_t,
    ) -> Result<Progress, Error> {
        let library = &self.library;
        // SAFETY: alive until drop; the rest is the caller's promise.
        unsafe {
            result::reduce_scatter(
                library,
                send,
                receive,
                receive_count,
                data_type,
                operation,
                self.raw,
                stream,
            )
        }
    }

    /// The `send_count` elements of every rank, by rank, for all.
    ///
    /// # Errors
    /// What NCCL says.
    ///
    /// # Safety
    /// As [`result::all_gather`].
    pub unsafe fn all_gather(
        &mut self,
        send: *const c_void,
        receive: *mut c_void,
        send_count: usize,
        data_type: DataType,
        stream: cudaStream_t,
    ) -> Result<Progress, Error> {
        // SAFETY: alive until drop; the rest is the caller's promise.
        unsafe { result::all_gather(&self.library, send, receive, send_count, data_type, self.raw, stream) }
    }

    /// Elements for rank `peer`, which receives as many of the same format.
    ///
    /// # Errors
    /// What NCCL says.
    ///
    /// # Safety
    /// As [`result::send`].
    pub unsafe fn send(
        &mut self,
        send: *const c_void,
        count: usize,
        data_type: DataType,
        peer: usize,
        stream: cudaStream_t,
    ) -> Result<Progress, Error> {
        // SAFETY: alive until drop; the rest is the caller's promise.
        unsafe { result::send(&self.library, send, count, data_type, peer as c_int, self.raw, stream) }
    }

    /// Elements from rank `peer`, which sends as many of the same format.
    ///
    /// # Errors
    /// What NCCL says.
    ///
    /// # Safety
    /// As [`result::recv`].
    pub unsafe fn receive(
        &mut self,
        receive: *mut c_void,
        count: usize,
        data_type: DataType,
        peer: usize,
        stream: cudaStream_t,
    ) -> Result<Progress, Error> {
        // SAFETY: alive until drop; the rest is the caller's promise.
        unsafe { result::recv(&self.library, receive, count, data_type, peer as c_int, self.raw, stream) }
    }

    /// Has the operations that `body` asks for run as one, all at the same time.
    ///
    /// # Errors
    /// That of `body`, or what NCCL says when the group ends.
    pub fn group(&mut self, body: impl FnOnce(&mut Comm) -> Result<(), Error>) -> Result<Progress, Error> {
        result::group_start(&self.library)?;
        let result = body(self);
        // Ended in any case: the next operation would otherwise join this group.
        let ended = result::group_end(&self.library);
        result.and(ended)
    }

    /// Tells NCCL of a buffer that it will meet often, so that it need not copy it. `None` where it keeps no note of
    /// it, such as with `NCCL_LOCAL_REGISTER=0`, and uses it all the same. Where one rank's buffers in an operation are
    /// registered, those of all ranks must be.
    ///
    /// # Errors
    /// What NCCL says.
    ///
    /// # Safety
    /// The buffer is memory of the device, and is not freed before it is deregistered or the communicator is dropped.
    pub unsafe fn register(
        &mut self,
        buffer: *mut c_void,
        bytes: usize,
    ) -> Result<Option<Registration>, Error> {
        let mut handle = ptr::null_mut();
        // SAFETY: alive until drop; a valid place to write to; the rest is the caller's promise.
        let _ = unsafe { result::comm_register(&self.library, self.raw, buffer, bytes, &mut handle) }?;
        Ok(NonNull::new(handle).map(Registration))
    }

    /// The buffer is met no more; every operation on it is through. To come before [`Comm::finalize`].
    ///
    /// # Errors
    /// What NCCL says.
    pub fn deregister(&mut self, registration: Registration) -> Result<(), Error> {
        // SAFETY: alive until drop; a handle, given back once, which NCCL knows or refuses.
        unsafe { result::comm_deregister(&self.library, self.raw, registration.0.as_ptr()) }.map(drop)
    }

    /// Begins to leave, after all operations; collective. When [`Comm::poll`] says that it is complete, dropping waits
    /// for nobody.
    ///
    /// # Errors
    /// What NCCL says.
    pub fn finalize(&mut self) -> Result<Progress, Error> {
        // SAFETY: alive until drop.
        let progress = unsafe { result::comm_finalize(&self.library, self.raw) }?;
        self.finalized = true;
        Ok(progress)
    }
}

impl Drop for Comm {
    fn drop(&mut self) {
        if self.raw.is_null() {
            return;
        }
        let complete = self.finalized && self.poll() == Ok(Progress::Complete);
        // Of a failure nothing follows: the communicator is given up either way.
        // SAFETY: alive, and used no more.
        let _ = unsafe {
            if complete {
                result::comm_destroy(&self.library, self.raw)
            } else {
                result::comm_abort(&self.library, self.raw)
            }
        };
    }
}

//! One thin function a call: names as in `nccl.h`, return codes as values. Streams, pointers and the order of calls
//! are the caller's business.
//!
//! With a communicator that does not block, every function may return [`Progress::Pending`]: then no other call on
//! it may follow until [`async_error`] says [`Progress::Complete`].
#![allow(unsafe_code)]
#![allow(clippy::too_many_arguments, reason = "as many as NVIDIA's functions have")]
#![allow(non_upper_case_globals, reason = "NVIDIA's names in patterns")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

use crate::sys::*;
use crate::{Error, Library};

/// How far a call has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Done; of an operation on a stream: queued there.
    Complete,
    /// Under way (`ncclInProgress`).
    Pending,
}

/// Formats of elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum DataType {
    /// Bytes.
    Uint8 = ncclUint8,
    /// IEEE half precision.
    Fp16 = ncclFloat16,
    /// IEEE single precision.
    Fp32 = ncclFloat32,
    /// The upper half of single precision.
    Bf16 = ncclBfloat16,
}

impl DataType {
    /// Bytes of an element.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            DataType::Uint8 => 1,
            DataType::Fp16 | DataType::Bf16 => 2,
            DataType::Fp32 => 4,
        }
    }
}

/// What a reduction does with the ranks' elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Operation {
    /// Adds.
    Sum = ncclSum,
    /// Multiplies.
    Product = ncclProd,
    /// Takes the largest.
    Max = ncclMax,
    /// Takes the smallest.
    Min = ncclMin,
    /// Adds and divides by the number of ranks.
    Average = ncclAvg,
}

/// [`ncclGetUniqueId`](https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/comms.html#ncclgetuniqueid)
///
/// # Errors
/// When NCCL finds no network interface to listen on.
pub fn get_unique_id(library: &Library) -> Result<ncclUniqueId, Error> {
    let mut id = ncclUniqueId { internal: [0; NCCL_UNIQUE_ID_BYTES] };
    // SAFETY: a valid place to write to.
    let code = unsafe { (library.functions().ncclGetUniqueId)(&mut id) };
    done(library, "ncclGetUniqueId", code)?;
    Ok(id)
}

/// [`ncclCommInitRankConfig`](https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/comms.html#ncclcomminitrankconfig)
///
/// # Errors
/// Without a device, or when the arguments do not fit.
///
/// # Safety
/// `config` is initialised as `NCCL_CONFIG_INITIALIZER` does it.
pub unsafe fn comm_init_rank_config(
    library: &Library,
    nranks: c_int,
    id: ncclUniqueId,
    rank: c_int,
    config: &mut ncclConfig_t,
) -> Result<(ncclComm_t, Progress), Error> {
    let mut comm = ptr::null_mut();
    // SAFETY: a valid place to write to; the rest is the caller's promise.
    let code = unsafe { (library.functions().ncclCommInitRankConfig)(&mut comm, nranks, id, rank, config) };
    Ok((comm, progress(library, "ncclCommInitRankConfig", code, ptr::null_mut())?))
}

macro_rules! calls {
    ($(
        $(#[$meta:meta])*
        fn $name:ident($($argument:ident: $type:ty),*) => $function:ident($($value:expr),*) by $comm:expr;
    )*) => {$(
        $(#[$meta])*
        ///
        /// # Errors
        /// What NCCL says.
        ///
        /// # Safety
        /// The communicator is alive. Pointers are valid, on the device, for as many elements as the call touches,
        /// until the stream has passed it.
        pub unsafe fn $name(library: &Library, $($argument: $type),*) -> Result<Progress, Error> {
            // SAFETY: the caller's promise.
            let code = unsafe { (library.functions().$function)($($value),*) };
            progress(library, stringify!($function), code, $comm)
        }
    )*};
}

calls! {
    /// [`ncclCommFinalize`](https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/comms.html#ncclcommfinalize)
    fn comm_finalize(comm: ncclComm_t) => ncclCommFinalize(comm) by comm;
    /// [`ncclCommDestroy`](https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/comms.html#ncclcommdestroy)
    fn comm_destroy(comm: ncclComm_t) => ncclCommDestroy(comm) by ptr::null_mut();
    /// [`ncclCommAbort`](https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/comms.html#ncclcommabort)
    fn comm_abort(comm: ncclComm_t) => ncclCommAbort(comm) by ptr::null_mut();
    /// [`ncclCommCount`](https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/comms.html#ncclcommcount)
    fn comm_count(comm: ncclComm_t, count: &mut c_int) => ncclCommCount(comm, count) by comm;
    /// [`ncclCommCuDevice`](https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/comms.html#ncclcommcudevice)
    fn comm_cu_device(comm: ncclComm_t, device: &mut c_int) => ncclCommCuDevice(comm, device) by comm;
    /// [`ncclCommUserRank`](https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/comms.html#ncclcommuserrank)
    fn comm_user_rank(comm: ncclComm_t, rank: &mut c_int) => ncclCommUserRank(comm, rank) by comm;
    /// [`ncclMemAlloc`](https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/comms.html#ncclmemalloc)
    fn mem_alloc(memory: &mut *mut c_void, bytes: usize) => ncclMemAlloc(memory, bytes) by ptr::null_mut();
    /// [`ncclMemFree`](https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/comms.html#ncclmemfree)
    fn mem_free(memory: *mut c_void) => ncclMemFree(memory) by ptr::null_mut();
    /// [`ncclCommRegister`](https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/comms.html#ncclcommregister)
    fn comm_register(comm: ncclComm_t, buffer: *mut c_void, bytes: usize, handle: &mut *mut c_void)
        => ncclCommRegister(comm, buffer, bytes, handle) by comm;
    /// [`ncclCommDeregister`](https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/comms.html#ncclcommderegister)
    fn comm_deregister(comm: ncclComm_t, handle: *mut c_void) => ncclCommDeregister(comm, handle) by comm;
    /// [`ncclAllReduce`](https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/colls.html#ncclallreduce)
    fn all_reduce(
        send: *const c_void, receive: *mut c_void, count: usize, data_type: DataType, operation: Operation,
        comm: ncclComm_t, stream: cudaStream_t
    ) => ncclAllReduce(send, receive, count, data_type as c_int, operation as c_int, comm, stream) by comm;
    /// [`ncclBroadcast`](https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/colls.html#ncclbroadcast)
    fn broadcast(
        send: *const c_void, receive: *mut c_void, count: usize, data_type: DataType, root: c_int,
        comm: ncclComm_t, stream: cudaStream_t
    ) => ncclBroadcast(send, receive, count, data_type as c_int, root, comm, stream) by comm;
    /// [`ncclReduceScatter`](https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/colls.html#ncclreducescatter)
    fn reduce_scatter(
        send: *const c_void, receive: *mut c_void, receive_count: usize, data_type: DataType,
        operation: Operation, comm: ncclComm_t, stream: cudaStream_t
    ) => ncclReduceScatter(
        send, receive, receive_count, data_type as c_int, operation as c_int, comm, stream
    ) by comm;
    /// [`ncclAllGather`](https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/colls.html#ncclallgather)
    fn all_gather(
        send: *const c_void, receive: *mut c_void, send_count: usize, data_type: DataType, comm: ncclComm_t,
        stream: cudaStream_t
    ) => ncclAllGather(send, receive, send_count, data_type as c_int, comm, stream) by comm;
    /// [`ncclSend`](https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/p2p.html#ncclsend)
    fn send(
        send: *const c_void, count: usize, data_type: DataType, peer: c_int, comm: ncclComm_t,
        stream: cudaStream_t
    ) => ncclSend(send, count, data_type as c_int, peer, comm, stream) by comm;
    /// [`ncclRecv`](https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/p2p.html#ncclrecv)
    fn recv(
        receive: *mut c_void, count: usize, data_type: DataType, peer: c_int, comm: ncclComm_t,
        stream: cudaStream_t
    ) => ncclRecv(receive, count, data_type as c_int, peer, comm, stream) by comm;
}

/// [`ncclCommGetAsyncError`](https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/comms.html#ncclcommgetasyncerror):
/// whether the latest call is complete.
///
/// # Errors
/// What has gone wrong on the communicator since it was made.
///
/// # Safety
/// The communicator is alive.
pub unsafe fn async_error(library: &Library, comm: ncclComm_t) -> Result<Progress, Error> {
    let mut state = ncclSuccess;
    // SAFETY: the caller's promise; a valid place to write to.
    let code = unsafe { (library.functions().ncclCommGetAsyncError)(comm, &mut state) };
    done(library, "ncclCommGetAsyncError", code)?;
    progress(library, "an operation of NCCL", state, comm)
}

/// [`ncclGroupStart`](https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/group.html#ncclgroupstart)
///
/// # Errors
/// What NCCL says.
pub fn group_start(library: &Library) -> Result<(), Error> {
    // SAFETY: may be called at any time.
    let code = unsafe { (library.functions().ncclGroupStart)() };
    done(library, "ncclGroupStart", code)
}

/// [`ncclGroupEnd`](https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api/group.html#ncclgroupend)
///
/// # Errors
/// What NCCL says to any call of the group.
pub fn group_end(library: &Library) -> Result<Progress, Error> {
    // SAFETY: may be called at any time; the calls of the group were made under their own promises.
    let code = unsafe { (library.functions().ncclGroupEnd)() };
    progress(library, "ncclGroupEnd", code, ptr::null_mut())
}

fn progress(
    library: &Library,
    call: &'static str,
    code: ncclResult_t,
    comm: ncclComm_t,
) -> Result<Progress, Error> {
    match code {
        ncclSuccess => Ok(Progress::Complete),
        ncclInProgress => Ok(Progress::Pending),
        _ => Err(failed(library, call, code, comm)),
    }
}

/// For calls that are never under way.
fn done(library: &Library, call: &'static str, code: ncclResult_t) -> Result<(), Error> {
    match code {
        ncclSuccess => Ok(()),
        _ => Err(failed(library, call, code, ptr::null_mut())),
    }
}

fn failed(library: &Library, call: &'static str, code: ncclResult_t, comm: ncclComm_t) -> Error {
    // SAFETY: takes any code.
    let meaning = text(unsafe { (library.functions().ncclGetErrorString)(code) });
    // SAFETY: a live communicator, or null.
    let last = text(unsafe { (library.functions().ncclGetLastError)(comm) });
    let sentence = match last.trim() {
        "" => meaning,
        last => format!("{meaning}; {last}"),
    };
    Error { call, code, sentence }
}

fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: NCCL's strings end in zero, and are copied before the next call.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

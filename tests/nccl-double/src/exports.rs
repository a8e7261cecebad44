//! NCCL's C functions. They never call each other: within a process that holds the real libnccl too, such a call could
//! end there.
#![allow(unsafe_code)]
#![allow(non_snake_case, reason = "NCCL's names")]
#![allow(clippy::missing_safety_doc, reason = "as NVIDIA documents them")]

use std::alloc::Layout;
use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nccl_rs::sys::*;

use crate::call::{Call, Operation, Place};
use crate::communicator::Communicator;
use crate::fault::Fault;
use crate::last_error::{fail, latest};
use crate::log::note;
use crate::{numbers, registrations};

/// As the real one of the tests' PyTorch.
const VERSION: c_int = 22_907;
const VERSION_VARIABLE: &str = "NCCL_DOUBLE_VERSION";
/// How long a communicator that blocks sleeps between looks.
const LOOK: Duration = Duration::from_micros(50);
const ALIGNMENT: usize = 512;

/// Every function has the type that [`nccl_rs::sys`] declares.
const _: Functions = Functions {
    ncclGetVersion,
    ncclGetUniqueId,
    ncclGetErrorString,
    ncclGetLastError,
    ncclCommInitRankConfig,
    ncclCommFinalize,
    ncclCommDestroy,
    ncclCommAbort,
    ncclCommGetAsyncError,
    ncclCommCount,
    ncclCommCuDevice,
    ncclCommUserRank,
    ncclMemAlloc,
    ncclMemFree,
    ncclCommRegister,
    ncclCommDeregister,
    ncclAllReduce,
    ncclBroadcast,
    ncclReduceScatter,
    ncclAllGather,
    ncclSend,
    ncclRecv,
    ncclGroupStart,
    ncclGroupEnd,
};

#[derive(Default)]
struct Groups {
    depth: usize,
    /// Calls of the outermost group, by communicator.
    calls: Vec<(*mut Communicator, Vec<Call>)>,
}

thread_local! {
    static GROUPS: RefCell<Groups> = RefCell::default();
}

fn refuse(sentence: impl Into<String>) -> ncclResult_t {
    fail(ncclInvalidArgument, sentence.into())
}

/// The communicator behind a handle.
///
/// # Safety
/// The handle is null or alive, and no other thread uses it.
unsafe fn communicator<'a>(comm: ncclComm_t) -> Option<&'a mut Communicator> {
    // SAFETY: the caller's promise.
    unsafe { comm.cast::<Communicator>().as_mut() }
}

/// How far the communicator is, after waiting if it is one that blocks.
fn settled(comm: &mut Communicator) -> ncclResult_t {
    loop {
        match comm.progress() {
            ncclInProgress if comm.blocking => std::thread::sleep(LOOK),
            state => return state,
        }
    }
}

/// Runs a call, or keeps it for the end of its group.
///
/// # Safety
/// As [`communicator`]; pointers as NCCL wants them.
unsafe fn run(
    comm: ncclComm_t,
    operation: Operation,
    send: *const c_void,
    receive: *mut c_void,
    count: usize,
    data_type: ncclDataType_t,
) -> ncclResult_t {
    // SAFETY: the caller's promise.
    let Some(this) = (unsafe { communicator(comm) }) else { return refuse("the communicator is null") };
    if numbers::bytes(data_type).is_none() {
        return refuse(format!("the double knows no data type {data_type}"));
    }
    match operation {
        Operation::AllReduce(reduction) | Operation::ReduceScatter(reduction)
            if !numbers::is_operation(reduction) =>
        {
            return refuse(format!("there is no reduction {reduction}"));
        }
        Operation::Broadcast { root: peer } | Operation::Send { peer } | Operation::Receive { peer }
            if peer >= this.place.size =>
        {
            return refuse(format!("there is no rank {peer} among {}", this.place.size));
        }
        _ => {}
    }
    let call = Call { operation, send: send.cast(), receive: receive.cast(), count, data_type };
    GROUPS.with_borrow_mut(|groups| {
        if groups.depth == 0 {
            return start(this, vec![call]);
        }
        let handle = ptr::from_mut(this);
        match groups.calls.iter_mut().find(|(of, _)| *of == handle) {
            Some((_, calls)) => calls.push(call),
            None => groups.calls.push((handle, vec![call])),
        }
        ncclSuccess
    })
}

fn start(comm: &mut Communicator, calls: Vec<Call>) -> ncclResult_t {
    match comm.progress() {
        ncclSuccess => {}
        ncclInProgress => {
            return refuse("Attempt to use communicator before the previous operation returned ncclSuccess");
        }
        failed => return failed,
    }
    comm.begin(calls);
    settled(comm)
}

/// Its presence says what it is.
#[unsafe(no_mangle)]
extern "C" fn wrn_dist_nccl_works_on_host_memory() {}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclGetVersion(version: *mut c_int) -> ncclResult_t {
    if version.is_null() {
        return refuse("the version has nowhere to go");
    }
    let claimed = std::env::var(VERSION_VARIABLE).ok().and_then(|code| code.parse().ok());
    // SAFETY: not null; the caller's place.
    unsafe { *version = claimed.unwrap_or(VERSION) };
    ncclSuccess
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclGetUniqueId(id: *mut ncclUniqueId) -> ncclResult_t {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    if id.is_null() {
        return refuse("the unique id has nowhere to go");
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let (process, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let name = format!("nccl-double-{process}-{since}-{count}");
    let mut internal = [0; NCCL_UNIQUE_ID_BYTES];
    for (place, byte) in internal.iter_mut().zip(name.bytes()) {
        *place = byte as c_char;
    }
    // SAFETY: not null; the caller's place.
    unsafe { *id = ncclUniqueId { internal } };
    ncclSuccess
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclGetErrorString(result: ncclResult_t) -> *const c_char {
    let text = match result {
        ncclSuccess => c"no error",
        ncclUnhandledCudaError => c"unhandled cuda error",
        ncclSystemError => c"unhandled system error",
        ncclInternalError => c"internal error",
        ncclInvalidArgument => c"invalid argument",
        ncclInvalidUsage => c"invalid usage",
        ncclRemoteError => c"remote process exited or there was a network error",
        ncclInProgress => c"NCCL operation in progress",
        _ => c"unknown result code",
    };
    text.as_ptr()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclGetLastError(_comm: ncclComm_t) -> *const c_char {
    latest()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclCommInitRankConfig(
    comm: *mut ncclComm_t,
    nranks: c_int,
    id: ncclUniqueId,
    rank: c_int,
    config: *mut ncclConfig_t,
) -> ncclResult_t {
    if comm.is_null() || nranks < 1 || rank < 0 || rank >= nranks {
        return refuse(format!("rank {rank} of {nranks} is no rank, or the communicator has nowhere to go"));
    }
    if GROUPS.with_borrow(|groups| groups.depth > 0) {
        return refuse("the double makes no communicators within a group");
    }
    let undefined = (NCCL_CONFIG_UNDEF_INT, NCCL_CONFIG_UNDEF_INT);
    let (blocking, ctas) = match config.is_null() {
        true => (true, undefined),
        // SAFETY: not null; the fields of 2.19 are there in every later version.
        false => match unsafe { &*config } {
            config if config.magic != NCCL_API_MAGIC || config.size < size_of::<ncclConfig_t>() => {
                return refuse("the configuration was not initialised");
            }
            config => (config.blocking != 0, (config.minCTAs, config.maxCTAs)),
        },
    };
    let count = |ctas: c_int| if ctas == NCCL_CONFIG_UNDEF_INT { "any".into() } else { ctas.to_string() };
    let name: Vec<u8> = id.internal.iter().map(|&byte| byte as u8).collect();
    let name = CStr::from_bytes_until_nul(&name).map(|name| name.to_string_lossy().into_owned());
    let Ok(name) = name else { return refuse("the unique id is not one of the double") };
    let (rank, size) = (rank as usize, nranks as usize);
    let fault = match Fault::of_rank(rank) {
        Ok(fault) => fault,
        Err(sentence) => return refuse(sentence),
    };
    note(rank, format_args!("made with {} to {} CTAs", count(ctas.0), count(ctas.1)));
    match Communicator::new(name, Place { rank, size }, blocking, fault) {
        Ok(made) => {
            let made = Box::leak(Box::new(made));
            // SAFETY: not null; the caller's place.
            unsafe { *comm = ptr::from_mut(made).cast() };
            settled(made)
        }
        Err(error) => fail(ncclSystemError, format!("rank {rank} cannot listen: {error}")),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclCommFinalize(comm: ncclComm_t) -> ncclResult_t {
    // SAFETY: NCCL's caller promises so.
    let Some(this) = (unsafe { communicator(comm) }) else { return refuse("the communicator is null") };
    match registrations::left(comm as usize) {
        0 => settled(this),
        left => still_registered(left),
    }
}

/// NVIDIA's guide wants every buffer deregistered before its communicator ends.
fn still_registered(left: usize) -> ncclResult_t {
    fail(ncclInvalidUsage, format!("{left} buffer(s) are still registered"))
}

/// Ends the communicator; data that is on its way to others still arrives.
///
/// # Safety
/// As [`communicator`]; the handle is used no more.
unsafe fn free(comm: ncclComm_t, how: &str) -> ncclResult_t {
    if comm.is_null() {
        return ncclSuccess;
    }
    let left = registrations::left(comm as usize);
    registrations::forget(comm as usize);
    // SAFETY: leaked by `ncclCommInitRankConfig`; the caller's promise.
    let communicator = unsafe { Box::from_raw(comm.cast::<Communicator>()) };
    note(communicator.place.rank, format_args!("{how} with {left} registered"));
    match (how, left) {
        (DESTROYED, 1..) => still_registered(left),
        _ => ncclSuccess,
    }
}

const DESTROYED: &str = "destroyed";

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclCommDestroy(comm: ncclComm_t) -> ncclResult_t {
    // SAFETY: NCCL's caller promises so.
    unsafe { free(comm, DESTROYED) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclCommAbort(comm: ncclComm_t) -> ncclResult_t {
    // SAFETY: NCCL's caller promises so.
    unsafe { free(comm, "aborted") }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclCommGetAsyncError(comm: ncclComm_t, state: *mut ncclResult_t) -> ncclResult_t {
    // SAFETY: NCCL's caller promises so.
    match unsafe { communicator(comm) } {
        Some(comm) if !state.is_null() => {
            // SAFETY: not null; the caller's place.
            unsafe { *state = comm.progress() };
            ncclSuccess
        }
        _ => refuse("the communicator is null, or the state has nowhere to go"),
    }
}

/// # Safety
/// As [`communicator`]; `into` is null or the caller's place.
unsafe fn tell(comm: ncclComm_t, into: *mut c_int, value: impl FnOnce(Place) -> usize) -> ncclResult_t {
    // SAFETY: the caller's promise.
    match unsafe { communicator(comm) } {
        Some(comm) if !into.is_null() => {
            // SAFETY: not null; the caller's place.
            unsafe { *into = value(comm.place) as c_int };
            ncclSuccess
        }
        _ => refuse("the communicator is null, or the value has nowhere to go"),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclCommCount(comm: ncclComm_t, count: *mut c_int) -> ncclResult_t {
    // SAFETY: NCCL's caller promises so.
    unsafe { tell(comm, count, |place| place.size) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclCommCuDevice(comm: ncclComm_t, device: *mut c_int) -> ncclResult_t {
    // SAFETY: NCCL's caller promises so.
    unsafe { tell(comm, device, |_| 0) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclCommUserRank(comm: ncclComm_t, rank: *mut c_int) -> ncclResult_t {
    // SAFETY: NCCL's caller promises so.
    unsafe { tell(comm, rank, |place| place.rank) }
}

/// With room for the size in front.
fn layout(bytes: usize) -> Option<Layout> {
    Layout::from_size_align(bytes.checked_add(ALIGNMENT)?, ALIGNMENT).ok()
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclMemAlloc(memory: *mut *mut c_void, bytes: usize) -> ncclResult_t {
    let (false, Some(layout)) = (memory.is_null(), layout(bytes)) else {
        return refuse("the memory is too large or has nowhere to go");
    };
    // SAFETY: the layout is not empty.
    let start = unsafe { std::alloc::alloc_zeroed(layout) };
    if start.is_null() {
        return fail(ncclSystemError, format!("there is no memory for {bytes} bytes"));
    }
    // SAFETY: the block begins with room for a number; not null; the caller's place.
    unsafe {
        start.cast::<usize>().write(bytes);
        *memory = start.add(ALIGNMENT).cast();
        registrations::allocated(*memory as usize);
    }
    ncclSuccess
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclMemFree(memory: *mut c_void) -> ncclResult_t {
    if memory.is_null() {
        return ncclSuccess;
    }
    if !registrations::may_be_freed(memory as usize) {
        return fail(ncclInvalidUsage, "the memory is still registered".into());
    }
    // SAFETY: `ncclMemAlloc` has put the size in front.
    unsafe {
        let start = memory.cast::<u8>().sub(ALIGNMENT);
        match layout(start.cast::<usize>().read()) {
            Some(layout) => std::alloc::dealloc(start, layout),
            None => return refuse("the memory is not of ncclMemAlloc"),
        }
    }
    ncclSuccess
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclCommRegister(
    comm: ncclComm_t,
    buffer: *mut c_void,
    bytes: usize,
    handle: *mut *mut c_void,
) -> ncclResult_t {
    // SAFETY: NCCL's caller promises so.
    let Some(this) = (unsafe { communicator(comm) }) else { return refuse("the communicator is null") };
    if buffer.is_null() || handle.is_null() {
        return refuse("buffer and handle must not be null");
    }
    if this.registers_no_more() {
        return fail(ncclSystemError, "the double was asked to register nothing".into());
    }
    let whose = if registrations::is_allocated(buffer as usize) { "ncclMemAlloc's" } else { "the caller's" };
    note(this.place.rank, format_args!("registered {bytes} bytes, {whose}"));
    let made = ptr::without_provenance_mut(registrations::add(comm as usize, buffer as usize, bytes));
    // SAFETY: not null; the caller's place.
    unsafe { *handle = made };
    ncclSuccess
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclCommDeregister(comm: ncclComm_t, handle: *mut c_void) -> ncclResult_t {
    // SAFETY: NCCL's caller promises so.
    let Some(this) = (unsafe { communicator(comm) }) else { return refuse("the communicator is null") };
    match registrations::remove(comm as usize, handle as usize) {
        Some(bytes) => {
            note(this.place.rank, format_args!("deregistered {bytes} bytes"));
            ncclSuccess
        }
        None => fail(ncclInvalidUsage, "no buffer of this communicator has such a handle".into()),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclAllReduce(
    send: *const c_void,
    receive: *mut c_void,
    count: usize,
    data_type: ncclDataType_t,
    operation: ncclRedOp_t,
    comm: ncclComm_t,
    _stream: cudaStream_t,
) -> ncclResult_t {
    // SAFETY: NCCL's caller promises so.
    unsafe { run(comm, Operation::AllReduce(operation), send, receive, count, data_type) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclBroadcast(
    send: *const c_void,
    receive: *mut c_void,
    count: usize,
    data_type: ncclDataType_t,
    root: c_int,
    comm: ncclComm_t,
    _stream: cudaStream_t,
) -> ncclResult_t {
    let operation = Operation::Broadcast { root: root as usize };
    // SAFETY: NCCL's caller promises so.
    unsafe { run(comm, operation, send, receive, count, data_type) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclReduceScatter(
    send: *const c_void,
    receive: *mut c_void,
    receive_count: usize,
    data_type: ncclDataType_t,
    operation: ncclRedOp_t,
    comm: ncclComm_t,
    _stream: cudaStream_t,
) -> ncclResult_t {
    let operation = Operation::ReduceScatter(operation);
    // SAFETY: NCCL's caller promises so.
    unsafe { run(comm, operation, send, receive, receive_count, data_type) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclAllGather(
    send: *const c_void,
    receive: *mut c_void,
    send_count: usize,
    data_type: ncclDataType_t,
    comm: ncclComm_t,
    _stream: cudaStream_t,
) -> ncclResult_t {
    // SAFETY: NCCL's caller promises so.
    unsafe { run(comm, Operation::AllGather, send, receive, send_count, data_type) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclSend(
    send: *const c_void,
    count: usize,
    data_type: ncclDataType_t,
    peer: c_int,
    comm: ncclComm_t,
    _stream: cudaStream_t,
) -> ncclResult_t {
    let operation = Operation::Send { peer: peer as usize };
    // SAFETY: NCCL's caller promises so.
    unsafe { run(comm, operation, send, ptr::null_mut(), count, data_type) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclRecv(
    receive: *mut c_void,
    count: usize,
    data_type: ncclDataType_t,
    peer: c_int,
    comm: ncclComm_t,
    _stream: cudaStream_t,
) -> ncclResult_t {
    let operation = Operation::Receive { peer: peer as usize };
    // SAFETY: NCCL's caller promises so.
    unsafe { run(comm, operation, ptr::null(), receive, count, data_type) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclGroupStart() -> ncclResult_t {
    GROUPS.with_borrow_mut(|groups| groups.depth += 1);
    ncclSuccess
}

#[unsafe(no_mangle)]
unsafe extern "C" fn ncclGroupEnd() -> ncclResult_t {
    let calls = GROUPS.with_borrow_mut(|groups| match groups.depth {
        0 => None,
        depth => {
            groups.depth = depth - 1;
            Some(if depth == 1 { std::mem::take(&mut groups.calls) } else { Vec::new() })
        }
    });
    let Some(calls) = calls else {
        return fail(ncclInvalidUsage, "ncclGroupEnd: no group was started".into());
    };
    let mut result = ncclSuccess;
    for (comm, calls) in calls {
        // SAFETY: alive between a call and the end of its group, as NCCL's caller promises.
        let state = start(unsafe { &mut *comm }, calls);
        if result == ncclSuccess || (result == ncclInProgress && state != ncclSuccess) {
            result = state;
        }
    }
    result
}

//! NCCL's C interface as `nccl.h` declares it: the part that this project calls, under NVIDIA's names. A test
//! compares every line of it with a real `nccl.h`.
#![allow(unsafe_code)]
#![allow(
    missing_docs,
    reason = "NVIDIA's user guide describes them: https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/api.html"
)]
#![allow(non_camel_case_types, non_upper_case_globals, non_snake_case, reason = "NVIDIA's names")]

use std::ffi::{c_char, c_int, c_uint, c_void};

pub type ncclResult_t = c_int;
pub const ncclSuccess: ncclResult_t = 0;
pub const ncclUnhandledCudaError: ncclResult_t = 1;
pub const ncclSystemError: ncclResult_t = 2;
pub const ncclInternalError: ncclResult_t = 3;
pub const ncclInvalidArgument: ncclResult_t = 4;
pub const ncclInvalidUsage: ncclResult_t = 5;
pub const ncclRemoteError: ncclResult_t = 6;
pub const ncclInProgress: ncclResult_t = 7;

pub type ncclDataType_t = c_int;
pub const ncclUint8: ncclDataType_t = 1;
pub const ncclFloat16: ncclDataType_t = 6;
pub const ncclFloat32: ncclDataType_t = 7;
pub const ncclBfloat16: ncclDataType_t = 9;

pub type ncclRedOp_t = c_int;
pub const ncclSum: ncclRedOp_t = 0;
pub const ncclProd: ncclRedOp_t = 1;
pub const ncclMax: ncclRedOp_t = 2;
pub const ncclMin: ncclRedOp_t = 3;
pub const ncclAvg: ncclRedOp_t = 4;

pub const NCCL_UNIQUE_ID_BYTES: usize = 128;
pub const NCCL_API_MAGIC: c_uint = 0xcafe_beef;
pub const NCCL_CONFIG_UNDEF_INT: c_int = c_int::MIN;

/// Opaque.
#[repr(C)]
pub struct ncclComm {
    _opaque: [u8; 0],
}
pub type ncclComm_t = *mut ncclComm;
/// Opaque.
pub type cudaStream_t = *mut c_void;

#[derive(Clone, Copy)]
#[repr(C)]
pub struct ncclUniqueId {
    pub internal: [c_char; NCCL_UNIQUE_ID_BYTES],
}

/// `ncclConfig_t` as it was in NCCL 2.19. Later versions add fields at its end, and take from `version` which of them
/// a caller knows.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ncclConfig_t {
    pub size: usize,
    pub magic: c_uint,
    pub version: c_uint,
    pub blocking: c_int,
    pub cgaClusterSize: c_int,
    pub minCTAs: c_int,
    pub maxCTAs: c_int,
    pub netName: *const c_char,
    pub splitShare: c_int,
    /// In 2.19 padding, where a later version has a field.
    pub after_2_19: c_int,
}

macro_rules! functions {
    ($(fn $name:ident($($argument:ident: $type:ty),* $(,)?) -> $result:ty;)*) => {
        /// The functions of a loaded library.
        #[derive(Clone, Copy, Debug)]
        pub struct Functions {
            $(pub $name: unsafe extern "C" fn($($argument: $type),*) -> $result,)*
        }

        impl Functions {
            /// Looks up every function.
            ///
            /// # Errors
            /// The name of the first one that is missing.
            ///
            /// # Safety
            /// The library is a NCCL and stays loaded.
            pub(crate) unsafe fn find(library: &libloading::os::unix::Library) -> Result<Self, &'static str> {
                $(
                    // SAFETY: the type is that of `nccl.h`.
                    let $name = unsafe {
                        library.get::<unsafe extern "C" fn($($type),*) -> $result>(
                            concat!(stringify!($name), "\0").as_bytes(),
                        )
                    };
                )*
                Ok(Functions { $($name: *$name.map_err(|_| stringify!($name))?,)* })
            }
        }
    };
}

// Arguments are named as in `nccl.h`.
functions! {
    fn ncclGetVersion(version: *mut c_int) -> ncclResult_t;
    fn ncclGetUniqueId(uniqueId: *mut ncclUniqueId) -> ncclResult_t;
    fn ncclGetErrorString(result: ncclResult_t) -> *const c_char;
    fn ncclGetLastError(comm: ncclComm_t) -> *const c_char;

    fn ncclCommInitRankConfig(
        comm: *mut ncclComm_t, nranks: c_int, commId: ncclUniqueId, rank: c_int, config: *mut ncclConfig_t,
    ) -> ncclResult_t;
    fn ncclCommFinalize(comm: ncclComm_t) -> ncclResult_t;
    fn ncclCommDestroy(comm: ncclComm_t) -> ncclResult_t;
    fn ncclCommAbort(comm: ncclComm_t) -> ncclResult_t;
    fn ncclCommGetAsyncError(comm: ncclComm_t, asyncError: *mut ncclResult_t) -> ncclResult_t;
    fn ncclCommCount(comm: ncclComm_t, count: *mut c_int) -> ncclResult_t;
    fn ncclCommCuDevice(comm: ncclComm_t, device: *mut c_int) -> ncclResult_t;
    fn ncclCommUserRank(comm: ncclComm_t, rank: *mut c_int) -> ncclResult_t;

    fn ncclMemAlloc(ptr: *mut *mut c_void, size: usize) -> ncclResult_t;
    fn ncclMemFree(ptr: *mut c_void) -> ncclResult_t;
    fn ncclCommRegister(
        comm: ncclComm_t, buff: *mut c_void, size: usize, handle: *mut *mut c_void,
    ) -> ncclResult_t;
    fn ncclCommDeregister(comm: ncclComm_t, handle: *mut c_void) -> ncclResult_t;

    fn ncclAllReduce(
        sendbuff: *const c_void, recvbuff: *mut c_void, count: usize, datatype: ncclDataType_t,
        op: ncclRedOp_t, comm: ncclComm_t, stream: cudaStream_t,
    ) -> ncclResult_t;
    fn ncclBroadcast(
        sendbuff: *const c_void, recvbuff: *mut c_void, count: usize, datatype: ncclDataType_t,
        root: c_int, comm: ncclComm_t, stream: cudaStream_t,
    ) -> ncclResult_t;
    fn ncclReduceScatter(
        sendbuff: *const c_void, recvbuff: *mut c_void, recvcount: usize, datatype: ncclDataType_t,
        op: ncclRedOp_t, comm: ncclComm_t, stream: cudaStream_t,
    ) -> ncclResult_t;
    fn ncclAllGather(
        sendbuff: *const c_void, recvbuff: *mut c_void, sendcount: usize, datatype: ncclDataType_t,
        comm: ncclComm_t, stream: cudaStream_t,
    ) -> ncclResult_t;
    fn ncclSend(
        sendbuff: *const c_void, count: usize, datatype: ncclDataType_t, peer: c_int,
        comm: ncclComm_t, stream: cudaStream_t,
    ) -> ncclResult_t;
    fn ncclRecv(
        recvbuff: *mut c_void, count: usize, datatype: ncclDataType_t, peer: c_int,
        comm: ncclComm_t, stream: cudaStream_t,
    ) -> ncclResult_t;
    fn ncclGroupStart() -> ncclResult_t;
    fn ncclGroupEnd() -> ncclResult_t;
}

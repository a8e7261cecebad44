//! The MPI library under a safe layer: its start and end, and non-blocking messages with checked return
//! codes.
//!
//! `mpi`'s own safe layer discards return codes and ends MPI when a value is dropped, which hangs if a rank
//! has died. So only its bindings are used here. What the messages mean is the communicator's business.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_void};
use std::marker::PhantomData;
use std::ptr;
use std::time::Instant;

use mpi::ffi;

use crate::CommError;
use crate::backoff::{Backoff, Patience};
use crate::communicator::AbortSignal;
use crate::transport::{Element, Transport};

/// Lengths are `int`s in MPI, so longer messages are sent in parts.
const LONGEST_MESSAGE_BYTES: usize = 1 << 30;
/// One is enough: messages from rank to rank keep their order, and all ranks run the same operations.
const TAG: c_int = 0;

/// The started library and this process's own communicator in it. Bound to the thread that started it.
pub(super) struct Library {
    comm: ffi::MPI_Comm,
    rank: usize,
    world_size: usize,
    thread_level: &'static str,
    signal: AbortSignal,
    patience: Patience,
    /// Operations under way, receives first.
    requests: Vec<ffi::MPI_Request>,
    statuses: Vec<ffi::MPI_Status>,
    /// Sender and length in bytes of each receive under way.
    receives: Vec<(usize, usize)>,
    /// The first error; operations may be under way since, so no MPI function but `MPI_Abort` is called after
    /// it.
    failure: Option<CommError>,
    _bound_to_thread: PhantomData<*const ()>,
}

impl Library {
    /// Starts MPI, which makes this thread its main thread.
    pub(super) fn start() -> Result<Self, CommError> {
        let mut started = 0;
        // SAFETY: may be called at any time; the pointer is to a live integer.
        check("MPI_Initialized", unsafe { ffi::MPI_Initialized(&mut started) })?;
        if started != 0 {
            return Err(CommError::AlreadyStarted);
        }
        let mut granted = 0;
        // SAFETY: first start in this process; arguments may be null; `granted` is live. The statics are
        // constants.
        check("MPI_Init_thread", unsafe {
            ffi::MPI_Init_thread(ptr::null_mut(), ptr::null_mut(), ffi::RSMPI_THREAD_FUNNELED, &mut granted)
        })?;
        // SAFETY: constants of the library.
        let levels = unsafe {
            [
                (ffi::RSMPI_THREAD_SINGLE, "SINGLE"),
                (ffi::RSMPI_THREAD_FUNNELED, "FUNNELED"),
                (ffi::RSMPI_THREAD_SERIALIZED, "SERIALIZED"),
                (ffi::RSMPI_THREAD_MULTIPLE, "MULTIPLE"),
            ]
        };
        let thread_level =
            levels.into_iter().find(|&(level, _)| level == granted).map_or("unknown", |(_, name)| name);
        if matches!(thread_level, "SINGLE" | "unknown") {
            return Err(CommError::ThreadLevel { granted: thread_level });
        }

        // A communicator of our own keeps our messages apart; it inherits the error handler.
        // SAFETY: MPI runs, on this thread; handles are the library's constants, pointers are to live values.
        let (comm, rank, world_size) = unsafe {
            let world = ffi::RSMPI_COMM_WORLD;
            check("MPI_Comm_set_errhandler", ffi::MPI_Comm_set_errhandler(world, ffi::RSMPI_ERRORS_RETURN))?;
            let mut comm = ffi::RSMPI_COMM_NULL;
            check("MPI_Comm_dup", ffi::MPI_Comm_dup(world, &mut comm))?;
            let (rank, world_size) = place_in(comm)?;
            (comm, rank, world_size)
        };
        Ok(Library {
            comm,
            rank,
            world_size,
            thread_level,
            signal: AbortSignal::new(),
            patience: Patience::WITHIN_HOST,
            requests: Vec::new(),
            statuses: Vec::new(),
            receives: Vec::new(),
            failure: None,
            _bound_to_thread: PhantomData,
        })
    }

    pub(super) fn thread_level(&self) -> &'static str {
        self.thread_level
    }

    pub(super) fn interrupt_by(&mut self, signal: AbortSignal) {
        self.signal = signal;
    }

    pub(super) fn wait_with(&mut self, patience: Patience) {
        self.patience = patience;
    }

    /// Rank and number of ranks among those that share this one's memory, its host. Collective.
    pub(super) fn local_place(&self) -> Result<(usize, usize), CommError> {
        // SAFETY: MPI runs, on this thread; handles are valid or the library's constants, pointers are to
        // live values.
        unsafe {
            let mut local = ffi::RSMPI_COMM_NULL;
            check(
                "MPI_Comm_split_type",
                ffi::MPI_Comm_split_type(
                    self.comm,
                    ffi::RSMPI_COMM_TYPE_SHARED,
                    self.rank as c_int,
                    ffi::RSMPI_INFO_NULL,
                    &mut local,
                ),
            )?;
            let place = place_in(local)?;
            check("MPI_Comm_free", ffi::MPI_Comm_free(&mut local))?;
            Ok(place)
        }
    }

    /// The host's name.
    pub(super) fn host(&self) -> Result<String, CommError> {
        // SAFETY: MPI runs; the buffer is at least as long as the library's constant says, see `text`.
        text("MPI_Get_processor_name", |buffer, len| unsafe { ffi::MPI_Get_processor_name(buffer, len) })
    }

    /// What the library says of itself.
    pub(super) fn version(&self) -> Result<String, CommError> {
        // SAFETY: as in `host`.
        text("MPI_Get_library_version", |buffer, len| unsafe { ffi::MPI_Get_library_version(buffer, len) })
    }

    /// Writes the sum of `values` over all ranks to `sums`, of the same length, in the library's own order.
    pub(super) fn all_reduce(&mut self, values: &[f32], sums: &mut [f32]) -> Result<(), CommError> {
        let part_len = LONGEST_MESSAGE_BYTES / size_of::<f32>();
        self.run(|library| {
            for (values, sums) in values.chunks(part_len).zip(sums.chunks_mut(part_len)) {
                // SAFETY: MPI runs, on this thread; both buffers hold as many floats as said and stay
                // borrowed until `run` has seen the operation complete, or forever out of MPI's reach after a
                // failure.
                let code = unsafe {
                    ffi::MPI_Iallreduce(
                        values.as_ptr().cast::<c_void>(),
                        sums.as_mut_ptr().cast::<c_void>(),
                        values.len() as c_int,
                        ffi::RSMPI_FLOAT,
                        ffi::RSMPI_SUM,
                        library.comm,
                        library.next_request(),
                    )
                };
                check("MPI_Iallreduce", code)?;
            }
            Ok(())
        })
    }

    /// Ends all ranks of the job, this one included.
    pub(super) fn abort(&mut self, exit_code: i32) -> ! {
        // SAFETY: MPI runs, on this thread, until `finalize`, which takes the library.
        let _ = unsafe { ffi::MPI_Abort(self.comm, exit_code) };
        std::process::exit(exit_code)
    }

    /// Ends MPI; all ranks come here. Not called when a failure has left operations under way.
    pub(super) fn finalize(&mut self) -> Result<(), CommError> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        self.failure = Some(CommError::Ended);
        // SAFETY: MPI runs, on this thread; no operation is under way; `failure` keeps later calls out.
        unsafe {
            check("MPI_Comm_free", ffi::MPI_Comm_free(&mut self.comm))?;
            check("MPI_Finalize", ffi::MPI_Finalize())
        }
    }

    /// Starts operations by `start` and waits until they are complete. Keeps the first failure, after which
    /// MPI makes no more progress in this process and so leaves the buffers of unfinished operations alone.
    fn run(&mut self, start: impl FnOnce(&mut Self) -> Result<(), CommError>) -> Result<(), CommError> {
        if let Some(failure) = &self.failure {
            return Err(failure.clone());
        }
        self.requests.clear();
        self.receives.clear();
        let result = start(self).and_then(|()| self.wait_for_requests());
        self.failure = result.clone().err();
        result
    }

    fn next_request(&mut self) -> &mut ffi::MPI_Request {
        // SAFETY: a constant of the library.
        let null = unsafe { ffi::RSMPI_REQUEST_NULL };
        self.requests.push(null);
        let last = self.requests.len() - 1;
        &mut self.requests[last]
    }

    fn wait_for_requests(&mut self) -> Result<(), CommError> {
        if self.requests.is_empty() {
            return Ok(());
        }
        let mut backoff = Backoff::new(self.patience);
        loop {
            let look = Instant::now();
            if self.test_requests()? {
                return self.check_lengths();
            }
            if self.signal.raised().is_some() {
                return Err(CommError::Aborted);
            }
            backoff.pause(look);
        }
    }

    /// Lets MPI make progress; whether all requests are complete.
    fn test_requests(&mut self) -> Result<bool, CommError> {
        // SAFETY: a status is a plain structure of integers, for which zeros are valid.
        self.statuses.resize(self.requests.len(), unsafe { std::mem::zeroed() });
        let mut complete = 0;
        // SAFETY: MPI runs, on this thread; both arrays are as long as said.
        let code = unsafe {
            ffi::MPI_Testall(
                self.requests.len() as c_int,
                self.requests.as_mut_ptr(),
                &mut complete,
                self.statuses.as_mut_ptr(),
            )
        };
        // The reason may stand in the status of the operation that failed.
        let code = match code == ffi::MPI_ERR_IN_STATUS as c_int {
            true => {
                let harmless = [ffi::MPI_SUCCESS as c_int, ffi::MPI_ERR_PENDING as c_int];
                let failed = self.statuses.iter().find(|status| !harmless.contains(&status.MPI_ERROR));
                failed.map_or(code, |status| status.MPI_ERROR)
            }
            false => code,
        };
        check("MPI_Testall", code)?;
        Ok(complete != 0)
    }

    /// A message shorter than its receive is no error to MPI, but shows that the ranks run different
    /// operations.
    fn check_lengths(&self) -> Result<(), CommError> {
        for (status, &(peer, expected)) in self.statuses.iter().zip(&self.receives) {
            let mut received = 0;
            // SAFETY: MPI runs, on this thread; the status is that of a complete receive.
            let code = unsafe { ffi::MPI_Get_count(status, ffi::RSMPI_UINT8_T, &mut received) };
            check("MPI_Get_count", code)?;
            if received as usize != expected {
                return Err(CommError::OutOfStep { peer, expected, received: received as usize });
            }
        }
        Ok(())
    }
}

impl Transport for Library {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn exchange<'a, E: Element>(
        &mut self,
        outgoing: impl Iterator<Item = (usize, &'a [E])>,
        incoming: impl Iterator<Item = (usize, &'a mut [E])>,
    ) -> Result<(), CommError> {
        let part_len = LONGEST_MESSAGE_BYTES / size_of::<E>();
        self.run(|library| {
            for (from, slice) in incoming {
                for part in slice.chunks_mut(part_len) {
                    library.receives.push((from, size_of_val(part)));
                    // SAFETY: MPI runs, on this thread. The buffer holds as many bytes as said, any bytes are
                    // elements, and it stays borrowed until `run` has seen the operation complete, or forever
                    // out of MPI's reach after a failure.
                    let code = unsafe {
                        ffi::MPI_Irecv(
                            part.as_mut_ptr().cast::<c_void>(),
                            size_of_val(part) as c_int,
                            ffi::RSMPI_UINT8_T,
                            from as c_int,
                            TAG,
                            library.comm,
                            library.next_request(),
                        )
                    };
                    check("MPI_Irecv", code)?;
                }
            }
            for (to, slice) in outgoing {
                for part in slice.chunks(part_len) {
                    // SAFETY: as for the receives; MPI only reads the buffer.
                    let code = unsafe {
                        ffi::MPI_Isend(
                            part.as_ptr().cast::<c_void>(),
                            size_of_val(part) as c_int,
                            ffi::RSMPI_UINT8_T,
                            to as c_int,
                            TAG,
                            library.comm,
                            library.next_request(),
                        )
                    };
                    check("MPI_Isend", code)?;
                }
            }
            Ok(())
        })
    }
}

/// Rank and size within a communicator.
///
/// # Safety
/// MPI runs, on this thread, and the handle is valid.
unsafe fn place_in(comm: ffi::MPI_Comm) -> Result<(usize, usize), CommError> {
    let (mut rank, mut size) = (0, 0);
    // SAFETY: the caller's promise; pointers are to live integers.
    unsafe {
        check("MPI_Comm_rank", ffi::MPI_Comm_rank(comm, &mut rank))?;
        check("MPI_Comm_size", ffi::MPI_Comm_size(comm, &mut size))?;
    }
    Ok((rank as usize, size as usize))
}

/// The text that `fill` writes to a buffer long enough for every text of the library.
fn text(
    call: &'static str,
    fill: impl FnOnce(*mut c_char, *mut c_int) -> c_int,
) -> Result<String, CommError> {
    const LEN: usize = 8192;
    const _: () = assert!(
        ffi::MPI_MAX_LIBRARY_VERSION_STRING as usize <= LEN
            && ffi::MPI_MAX_ERROR_STRING as usize <= LEN
            && ffi::MPI_MAX_PROCESSOR_NAME as usize <= LEN
    );
    let mut buffer = [0u8; LEN];
    let mut len = 0;
    let code = fill(buffer.as_mut_ptr().cast::<c_char>(), &mut len);
    if code != ffi::MPI_SUCCESS as c_int {
        // Not through `check`, which asks for a text itself.
        return Err(CommError::Mpi { call, message: "the library has no text for it".into(), code });
    }
    let bytes = &buffer[..(len.max(0) as usize).min(LEN)];
    Ok(String::from_utf8_lossy(bytes).trim_end_matches('\0').trim().to_owned())
}

/// Turns a return code into a sentence.
fn check(call: &'static str, code: c_int) -> Result<(), CommError> {
    if code == ffi::MPI_SUCCESS as c_int {
        return Ok(());
    }
    // SAFETY: may be called with any code an MPI function returned; the buffer is long enough, see `text`.
    let message = text("MPI_Error_string", |buffer, len| unsafe { ffi::MPI_Error_string(code, buffer, len) });
    Err(CommError::Mpi { call, message: message.unwrap_or_else(|_| "no explanation".into()), code })
}

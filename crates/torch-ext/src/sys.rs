//! The shim's functions as declared in `shim/shim.h`. No meaning of its own.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_void};

pub(crate) use torch_sys::C_tensor;

pub(crate) type Text = *mut c_char;

/// The shim's `TorchExtRecomputed`.
#[repr(C)]
pub(crate) struct Recomputed {
    _opaque: [u8; 0],
}

unsafe extern "C" {
    pub(crate) fn torch_ext_free(error: Text);
    pub(crate) fn torch_ext_copy_text(text: *const c_char) -> Text;

    pub(crate) fn torch_ext_bind_gradient(parameter: *const C_tensor, gradient: *const C_tensor) -> Text;
    pub(crate) fn torch_ext_on_gradient_ready(
        parameter: *const C_tensor,
        call: extern "C" fn(*mut c_void),
        drop: extern "C" fn(*mut c_void),
        context: *mut c_void,
    ) -> Text;

    pub(crate) fn torch_ext_norm_relu(
        input: *const C_tensor,
        gain: *const C_tensor,
        bias: *const C_tensor,
        mean: *const C_tensor,
        variance: *const C_tensor,
        by_batch: bool,
        momentum: f64,
        epsilon: f64,
        probability: f64,
        key: u64,
        output: *mut *mut C_tensor,
        recomputed: *mut *mut Recomputed,
    ) -> Text;
    pub(crate) fn torch_ext_recomputed_feeds(
        recomputed: *const Recomputed,
        convolved: *const C_tensor,
    ) -> Text;
    pub(crate) fn torch_ext_recomputed_free(recomputed: *mut Recomputed);

    pub(crate) fn torch_ext_grad_enabled() -> bool;
    pub(crate) fn torch_ext_without_autocast_cache(cached: *mut bool) -> Text;
    pub(crate) fn torch_ext_set_autocast_cache(cached: bool);
    pub(crate) fn torch_ext_checkpoint(
        input: *const C_tensor,
        output: *const C_tensor,
        call: extern "C" fn(*mut c_void, *const C_tensor, *mut *mut C_tensor) -> Text,
        drop: extern "C" fn(*mut c_void),
        context: *mut c_void,
    ) -> Text;

    pub(crate) fn torch_ext_sync_norm(
        input: *const C_tensor,
        gain: *const C_tensor,
        bias: *const C_tensor,
        mean: *const C_tensor,
        variance: *const C_tensor,
        epsilon: f64,
        ranks: f64,
        average: extern "C" fn(*mut c_void, *mut f32, usize) -> Text,
        drop: extern "C" fn(*mut c_void),
        context: *mut c_void,
        output: *mut *mut C_tensor,
    ) -> Text;

    pub(crate) fn torch_ext_autocast_enter(
        device: c_int,
        dtype: c_int,
        previous_enabled: *mut c_int,
        previous_dtype: *mut c_int,
    ) -> Text;
    pub(crate) fn torch_ext_autocast_leave(
        device: c_int,
        previous_enabled: c_int,
        previous_dtype: c_int,
    ) -> Text;

    pub(crate) fn torch_ext_fused_sgd(
        parameters: *const *const C_tensor,
        gradients: *const *const C_tensor,
        momentum: *const *const C_tensor,
        count: usize,
        learning_rate: f64,
        momentum_factor: f64,
        dampening: f64,
        weight_decay: f64,
        nesterov: bool,
        first_step: bool,
        skip: *const C_tensor,
    ) -> Text;
    pub(crate) fn torch_ext_fused_adamw(
        parameters: *const *const C_tensor,
        gradients: *const *const C_tensor,
        first_moments: *const *const C_tensor,
        second_moments: *const *const C_tensor,
        count: usize,
        learning_rate: f64,
        beta1: f64,
        beta2: f64,
        epsilon: f64,
        weight_decay: f64,
        step: *const C_tensor,
        skip: *const C_tensor,
    ) -> Text;
    pub(crate) fn torch_ext_dropout(
        input: *const C_tensor,
        probability: f64,
        key: u64,
        output: *mut *mut C_tensor,
    ) -> Text;

    pub(crate) fn torch_ext_count_host_memory() -> Text;
    pub(crate) fn torch_ext_host_bytes() -> i64;
    pub(crate) fn torch_ext_take_host_peak_bytes() -> i64;

    pub(crate) fn torch_ext_pinned_bytes(bytes: i64, memory: *mut *mut C_tensor) -> Text;
    pub(crate) fn torch_ext_queue_copy(from: *const C_tensor, to: *const C_tensor) -> Text;
    pub(crate) fn torch_ext_to_gpu(from: *const C_tensor, device: c_int, to: *mut *mut C_tensor) -> Text;

    pub(crate) fn torch_ext_set_threads(intra_op: c_int, inter_op: c_int) -> Text;
    pub(crate) fn torch_ext_keep_freed_memory() -> bool;
    pub(crate) fn torch_ext_threads() -> c_int;
    pub(crate) fn torch_ext_use_one_thread_here() -> Text;
    pub(crate) fn torch_ext_set_deterministic(on: bool) -> Text;
    pub(crate) fn torch_ext_set_cudnn_benchmark(on: bool) -> Text;
    pub(crate) fn torch_ext_set_tf32(on: bool) -> Text;
    pub(crate) fn torch_ext_free_cached_device_memory() -> Text;
    pub(crate) fn torch_ext_torch_version() -> *const c_char;
    pub(crate) fn torch_ext_cuda_version() -> c_int;
    pub(crate) fn torch_ext_cuda_linked() -> bool;

    pub(crate) fn torch_ext_set_device(device: c_int) -> Text;
    pub(crate) fn torch_ext_pci_bus_id(device: c_int, text: *mut c_char, bytes: c_int) -> Text;
    pub(crate) fn torch_ext_stream_from_pool(device: c_int, high_priority: bool, stream_id: *mut i64)
    -> Text;
    pub(crate) fn torch_ext_current_stream(device: c_int, stream_id: *mut i64) -> Text;
    pub(crate) fn torch_ext_set_current_stream(device: c_int, stream_id: i64) -> Text;
    pub(crate) fn torch_ext_stream_synchronize(device: c_int, stream_id: i64) -> Text;
    pub(crate) fn torch_ext_stream_handle(device: c_int, stream_id: i64, handle: *mut *mut c_void) -> Text;
    pub(crate) fn torch_ext_event_new(timed: bool, event: *mut *mut c_void) -> Text;
    pub(crate) fn torch_ext_event_free(event: *mut c_void);
    pub(crate) fn torch_ext_event_record(event: *mut c_void, device: c_int, stream_id: i64) -> Text;
    pub(crate) fn torch_ext_event_block(event: *mut c_void, device: c_int, stream_id: i64) -> Text;
    pub(crate) fn torch_ext_event_query(event: *mut c_void, done: *mut bool) -> Text;
    pub(crate) fn torch_ext_event_synchronize(event: *mut c_void) -> Text;
    pub(crate) fn torch_ext_event_elapsed(from: *mut c_void, to: *mut c_void, milliseconds: *mut f32)
    -> Text;
}

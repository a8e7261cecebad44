//! The shim's functions as declared in `shim/shim.h`. No meaning of its own.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_void};

pub(crate) use torch_sys::C_tensor;

pub(crate) type Text = *mut c_char;

unsafe extern "C" {
    pub(crate) fn torch_ext_free(error: Text);

    pub(crate) fn torch_ext_bind_gradient(parameter: *const C_tensor, gradient: *const C_tensor) -> Text;
    pub(crate) fn torch_ext_on_gradient_ready(
        parameter: *const C_tensor,
        call: extern "C" fn(*mut c_void),
        drop: extern "C" fn(*mut c_void),
        context: *mut c_void,
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
    ) -> Text;
    pub(crate) fn torch_ext_dropout(
        input: *const C_tensor,
        probability: f64,
        key: u64,
        output: *mut *mut C_tensor,
    ) -> Text;

    pub(crate) fn torch_ext_set_threads(intra_op: c_int, inter_op: c_int) -> Text;
    pub(crate) fn torch_ext_keep_freed_memory() -> bool;
    pub(crate) fn torch_ext_threads() -> c_int;
    pub(crate) fn torch_ext_set_deterministic(on: bool) -> Text;
    pub(crate) fn torch_ext_set_cudnn_benchmark(on: bool) -> Text;
    pub(crate) fn torch_ext_set_tf32(on: bool) -> Text;
    pub(crate) fn torch_ext_torch_version() -> *const c_char;
    pub(crate) fn torch_ext_cuda_version() -> c_int;
    pub(crate) fn torch_ext_cuda_linked() -> bool;

    pub(crate) fn torch_ext_stream_from_pool(device: c_int, high_priority: bool, stream_id: *mut i64)
    -> Text;
    pub(crate) fn torch_ext_current_stream(device: c_int, stream_id: *mut i64) -> Text;
    pub(crate) fn torch_ext_set_current_stream(device: c_int, stream_id: i64) -> Text;
    pub(crate) fn torch_ext_stream_synchronize(device: c_int, stream_id: i64) -> Text;
    pub(crate) fn torch_ext_stream_handle(device: c_int, stream_id: i64, handle: *mut *mut c_void) -> Text;
    pub(crate) fn torch_ext_event_new(event: *mut *mut c_void) -> Text;
    pub(crate) fn torch_ext_event_free(event: *mut c_void);
    pub(crate) fn torch_ext_event_record(event: *mut c_void, device: c_int, stream_id: i64) -> Text;
    pub(crate) fn torch_ext_event_block(event: *mut c_void, device: c_int, stream_id: i64) -> Text;
    pub(crate) fn torch_ext_event_query(event: *mut c_void, done: *mut bool) -> Text;
    pub(crate) fn torch_ext_event_synchronize(event: *mut c_void) -> Text;
}

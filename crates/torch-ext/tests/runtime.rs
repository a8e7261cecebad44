//! Process-wide switches.
//!
//! The tests of one file share a process, so each switch is thrown by one test only.

#![allow(clippy::unwrap_used)] // All of it is test code.

mod common;

use common::waves;
use tch::{Device, Kind, Tensor};
use torch_ext::runtime;

#[test]
fn threads_are_set_and_what_cannot_be_is_refused() {
    runtime::set_threads(2, 1).unwrap();
    assert_eq!(runtime::threads(), 2);
    let limited = std::thread::spawn(|| {
        runtime::use_one_thread_here().unwrap();
        runtime::threads()
    });
    assert_eq!(limited.join().unwrap(), 1);
    assert_eq!((runtime::threads(), std::thread::spawn(runtime::threads).join().unwrap()), (2, 2));
    runtime::set_threads(1, 1).unwrap();
    assert_eq!(runtime::threads(), 1);
    assert_eq!(tch::get_num_threads(), 1);

    assert!(runtime::set_threads(0, 1).is_err());
    let message = runtime::set_threads(usize::MAX, 1).unwrap_err().to_string();
    assert!(message.contains(&usize::MAX.to_string()), "{message}");
    // Threads between operations are started once.
    assert!(runtime::set_threads(1, 3).is_err());
    assert_eq!(runtime::threads(), 1);
}

#[test]
fn deterministic_mode_refuses_what_has_no_deterministic_algorithm() {
    // Which of two values lands on a repeated index is left open.
    let put = || {
        Tensor::zeros([4], (Kind::Float, Device::Cpu)).f_put_(
            &Tensor::from_slice(&[1i64, 1]),
            &Tensor::from_slice(&[1f32, 2.0]),
            false,
        )
    };
    let _ = put().unwrap();
    runtime::set_deterministic(true).unwrap();
    let message = put().unwrap_err().to_string();
    assert!(message.contains("deterministic"), "{message}");
    let images = waves(&[2, 3, 8, 8], 0.0);
    let _ = images.f_conv2d(&waves(&[4, 3, 3, 3], 1.0), None::<&Tensor>, 1, 1, 1, 1).unwrap();
    runtime::set_deterministic(false).unwrap();
    let _ = put().unwrap();
}

#[test]
fn switches_for_gpus_may_be_thrown_without_one() {
    for on in [false, true, false] {
        runtime::set_cudnn_benchmark(on).unwrap();
        runtime::set_tf32(on).unwrap();
    }
}

#[test]
fn versions_say_what_was_linked() {
    let versions = runtime::versions();
    assert!(versions.torch.starts_with("2."), "{versions:?}");
    assert_eq!(versions.cuda.is_some(), versions.cuda_headers, "{versions:?}");
    assert!(versions.cuda_linked || !versions.cuda_headers, "streams without CUDA: {versions:?}");
    assert_eq!(runtime::device_count() > 0, tch::Cuda::is_available());
}

#[test]
fn glibc_knows_how_to_keep_freed_memory() {
    assert_eq!(runtime::keep_freed_memory(), cfg!(target_env = "gnu"));
}

#[test]
fn memory_of_gpus_may_be_given_back_without_one() {
    let freed = runtime::free_cached_device_memory();
    assert_eq!(freed.is_ok(), runtime::versions().cuda_linked, "{freed:?}");
}

// Process-wide switches, and what this libtorch is.
#include <dlfcn.h>
#include <malloc.h>

#include <climits>

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <torch/version.h>

#ifdef TORCH_EXT_CUDA
#include <cuda_runtime_api.h>
#endif

#include "shim.h"

void torch_ext_free(Error error) { free(error); }

Error torch_ext_copy_text(const char *text) { return strdup(text); }

Error torch_ext_set_threads(int intra_op, int inter_op) {
  return guarded([&] {
    at::set_num_threads(intra_op);
    // libtorch allows this once; a repetition of the same value is no mistake.
    if (at::get_num_interop_threads() != inter_op) at::set_num_interop_threads(inter_op);
  });
}

bool torch_ext_keep_freed_memory() {
#ifdef __GLIBC__
  return mallopt(M_TRIM_THRESHOLD, INT_MAX) == 1 && mallopt(M_MMAP_MAX, 0) == 1;
#else
  return false;
#endif
}

Error torch_ext_free_cached_device_memory() {
  return guarded([] { c10::getDeviceAllocator(c10::DeviceType::CUDA)->emptyCache(); });
}

int torch_ext_threads() { return at::get_num_threads(); }

Error torch_ext_use_one_thread_here() {
  return guarded([] {
    // A thread takes over the process's number when libtorch first asks for it, which must not come later.
    (void)at::get_num_threads();
    // OpenMP's number belongs to the thread; at::set_num_threads would set that of threads to come, too. libtorch brings the
    // library along, under a name of its own.
    using Set = void (*)(int);
    if (auto set = reinterpret_cast<Set>(dlsym(RTLD_DEFAULT, "omp_set_num_threads"))) set(1);
    TORCH_CHECK(at::get_num_threads() == 1, "libtorch's threads cannot be limited for one thread of the process");
  });
}

Error torch_ext_set_deterministic(bool on) {
  return guarded([&] {
    at::globalContext().setDeterministicAlgorithms(on, /*warn_only=*/false);
    // Filling every fresh tensor with NaN would be the price otherwise.
    at::globalContext().setDeterministicFillUninitializedMemory(false);
    at::globalContext().setDeterministicCuDNN(on);
  });
}

Error torch_ext_set_cudnn_benchmark(bool on) {
  return guarded([&] { at::globalContext().setBenchmarkCuDNN(on); });
}

Error torch_ext_set_tf32(bool on) {
  return guarded([&] {
    at::globalContext().setAllowTF32CuDNN(on);
    at::globalContext().setAllowTF32CuBLAS(on);
  });
}

const char *torch_ext_torch_version() { return TORCH_VERSION; }

int torch_ext_cuda_version() {
#ifdef TORCH_EXT_CUDA
  return CUDART_VERSION;
#else
  return 0;
#endif
}

bool torch_ext_cuda_linked() {
  void *library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
  if (library == nullptr) return false;
  dlclose(library);
  return true;
}

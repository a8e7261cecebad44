// The C interface between libtorch and Rust. Every function returns null, or an error's text that the
// caller frees with torch_ext_free; none throws. Tensors are pointers to at::Tensor, as in torch-sys.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>

namespace at {
class Tensor;
}

using Error = char *;

template <typename Function>
Error guarded(Function &&function) noexcept {
  try {
    function();
    return nullptr;
  } catch (const std::exception &error) {
    return strdup(error.what());
  } catch (...) {
    return strdup("an exception that is no std::exception");
  }
}

extern "C" {
void torch_ext_free(Error error);

// autograd.cpp
Error torch_ext_bind_gradient(const at::Tensor *parameter, const at::Tensor *gradient);
Error torch_ext_on_gradient_ready(const at::Tensor *parameter, void (*call)(void *), void (*drop)(void *), void *context);

// autocast.cpp; device: 0 CPU, 1 CUDA; dtype: 0 off, 1 bfloat16, 2 float16.
Error torch_ext_autocast_enter(int device, int dtype, int *previous_enabled, int *previous_dtype);
Error torch_ext_autocast_leave(int device, int previous_enabled, int previous_dtype);

// math.cpp
Error torch_ext_fused_sgd(const at::Tensor *const *parameters, const at::Tensor *const *gradients,
                          const at::Tensor *const *momentum, size_t count, double learning_rate,
                          double momentum_factor, double dampening, double weight_decay, bool nesterov, bool first_step);
Error torch_ext_dropout(const at::Tensor *input, double probability, uint64_t key, at::Tensor **output);

// runtime.cpp
Error torch_ext_set_threads(int intra_op, int inter_op);
bool torch_ext_keep_freed_memory();
int torch_ext_threads();
Error torch_ext_set_deterministic(bool on);
Error torch_ext_set_cudnn_benchmark(bool on);
Error torch_ext_set_tf32(bool on);
const char *torch_ext_torch_version();
int torch_ext_cuda_version(); // 13000 for 13.0; 0 when compiled without headers
bool torch_ext_cuda_linked();

// cuda.cpp
Error torch_ext_stream_from_pool(int device, bool high_priority, int64_t *stream_id);
Error torch_ext_current_stream(int device, int64_t *stream_id);
Error torch_ext_set_current_stream(int device, int64_t stream_id);
Error torch_ext_stream_synchronize(int device, int64_t stream_id);
Error torch_ext_stream_handle(int device, int64_t stream_id, void **handle);
Error torch_ext_event_new(void **event);
void torch_ext_event_free(void *event);
Error torch_ext_event_record(void *event, int device, int64_t stream_id);
Error torch_ext_event_block(void *event, int device, int64_t stream_id);
Error torch_ext_event_query(void *event, bool *done);
Error torch_ext_event_synchronize(void *event);
}

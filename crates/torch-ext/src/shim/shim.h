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

// The mask of dropout: 0, or 1 / (1 - probability). A function of the key, and of the shape, order and device of `like`.
at::Tensor dropout_mask(const at::Tensor &like, double probability, uint64_t key);

extern "C" {
void torch_ext_free(Error error);
Error torch_ext_copy_text(const char *text);

// autograd.cpp
Error torch_ext_bind_gradient(const at::Tensor *parameter, const at::Tensor *gradient);
Error torch_ext_on_gradient_ready(const at::Tensor *parameter, void (*call)(void *), void (*drop)(void *), void *context);

// recompute.cpp; mean and variance may be null, a probability of 0 is no dropout, and `recomputed` is null where nothing is to be computed again.
struct TorchExtRecomputed;
Error torch_ext_norm_relu(const at::Tensor *input, const at::Tensor *gain, const at::Tensor *bias, const at::Tensor *mean,
                          const at::Tensor *variance, bool by_batch, double momentum, double epsilon, double probability,
                          uint64_t key, at::Tensor **output, TorchExtRecomputed **recomputed);
Error torch_ext_recomputed_feeds(const TorchExtRecomputed *recomputed, const at::Tensor *convolved);
void torch_ext_recomputed_free(TorchExtRecomputed *recomputed);

// checkpoint.cpp; `call` returns null and a new tensor, or a text of torch_ext_copy_text.
bool torch_ext_grad_enabled();
Error torch_ext_without_autocast_cache(bool *cached);
void torch_ext_set_autocast_cache(bool cached);
Error torch_ext_checkpoint(const at::Tensor *input, const at::Tensor *output,
                           Error (*call)(void *, const at::Tensor *, at::Tensor **), void (*drop)(void *), void *context);

// sync_norm.cpp; `average` replaces numbers by their averages over the ranks, and returns null or a text of torch_ext_copy_text.
Error torch_ext_sync_norm(const at::Tensor *input, const at::Tensor *gain, const at::Tensor *bias, const at::Tensor *mean,
                          const at::Tensor *variance, double epsilon, double ranks, Error (*average)(void *, float *, size_t),
                          void (*drop)(void *), void *context, at::Tensor **output);

// autocast.cpp; device: 0 CPU, 1 CUDA; dtype: 0 off, 1 bfloat16, 2 float16.
Error torch_ext_autocast_enter(int device, int dtype, int *previous_enabled, int *previous_dtype);
Error torch_ext_autocast_leave(int device, int previous_enabled, int previous_dtype);

// math.cpp
Error torch_ext_fused_sgd(const at::Tensor *const *parameters, const at::Tensor *const *gradients,
                          const at::Tensor *const *momentum, size_t count, double learning_rate,
                          double momentum_factor, double dampening, double weight_decay, bool nesterov, bool first_step,
                          const at::Tensor *skip);
Error torch_ext_fused_adamw(const at::Tensor *const *parameters, const at::Tensor *const *gradients,
                            const at::Tensor *const *first_moments, const at::Tensor *const *second_moments,
                            size_t count, double learning_rate, double beta1, double beta2, double epsilon,
                            double weight_decay, const at::Tensor *step, const at::Tensor *skip);
Error torch_ext_dropout(const at::Tensor *input, double probability, uint64_t key, at::Tensor **output);

// memory.cpp
Error torch_ext_count_host_memory();
int64_t torch_ext_host_bytes();
int64_t torch_ext_take_host_peak_bytes();

// copy.cpp
Error torch_ext_pinned_bytes(int64_t bytes, at::Tensor **memory);
Error torch_ext_queue_copy(const at::Tensor *from, const at::Tensor *to);
Error torch_ext_to_gpu(const at::Tensor *from, int device, at::Tensor **to);

// runtime.cpp
Error torch_ext_set_threads(int intra_op, int inter_op);
bool torch_ext_keep_freed_memory();
int torch_ext_threads();
Error torch_ext_use_one_thread_here();
Error torch_ext_set_deterministic(bool on);
Error torch_ext_set_cudnn_benchmark(bool on);
Error torch_ext_set_tf32(bool on);
Error torch_ext_free_cached_device_memory();
const char *torch_ext_torch_version();
int torch_ext_cuda_version(); // 13000 for 13.0; 0 when compiled without headers
bool torch_ext_cuda_linked();

// cuda.cpp
Error torch_ext_set_device(int device);
Error torch_ext_pci_bus_id(int device, char *text, int bytes);
Error torch_ext_stream_from_pool(int device, bool high_priority, int64_t *stream_id);
Error torch_ext_current_stream(int device, int64_t *stream_id);
Error torch_ext_set_current_stream(int device, int64_t stream_id);
Error torch_ext_stream_synchronize(int device, int64_t stream_id);
Error torch_ext_stream_handle(int device, int64_t stream_id, void **handle);
Error torch_ext_event_new(bool timed, void **event);
void torch_ext_event_free(void *event);
Error torch_ext_event_record(void *event, int device, int64_t stream_id);
Error torch_ext_event_block(void *event, int device, int64_t stream_id);
Error torch_ext_event_query(void *event, bool *done);
Error torch_ext_event_synchronize(void *event);
Error torch_ext_event_elapsed(void *from, void *to, float *milliseconds);
}

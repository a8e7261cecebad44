// Copies between the host and a device that nobody waits for, and host memory from which they are possible.
#include <ATen/ATen.h>

#include "shim.h"

Error torch_ext_pinned_bytes(int64_t bytes, at::Tensor **memory) {
  return guarded([&] {
    *memory = new at::Tensor(at::zeros({bytes}, at::TensorOptions(at::kByte).pinned_memory(true)));
  });
}

Error torch_ext_queue_copy(const at::Tensor *from, const at::Tensor *to) {
  return guarded([&] { (void)to->copy_(*from, /*non_blocking=*/true); });
}

Error torch_ext_to_gpu(const at::Tensor *from, int device, at::Tensor **to) {
  return guarded([&] {
    const at::Device gpu(at::kCUDA, static_cast<c10::DeviceIndex>(device));
    // The pinned copy is libtorch's own, which keeps it until the stream has read it.
    *to = new at::Tensor(from->pin_memory().to(from->options().device(gpu), /*non_blocking=*/true));
  });
}

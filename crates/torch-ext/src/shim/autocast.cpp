// Autocast with a dtype; tch's own sets only a flag.
#include <ATen/autocast_mode.h>
#include <torch/torch.h>

#include "shim.h"

namespace {

at::DeviceType device_type(int device) { return device == 0 ? at::kCPU : at::kCUDA; }

} // namespace

Error torch_ext_autocast_enter(int device, int dtype, int *previous_enabled, int *previous_dtype) {
  return guarded([&] {
    auto type = device_type(device);
    *previous_enabled = at::autocast::is_autocast_enabled(type);
    *previous_dtype = static_cast<int>(at::autocast::get_autocast_dtype(type));
    at::autocast::set_autocast_enabled(type, dtype != 0);
    if (dtype != 0) {
      at::autocast::set_autocast_dtype(type, dtype == 1 ? at::kBFloat16 : at::kHalf);
    }
    at::autocast::increment_nesting();
  });
}

Error torch_ext_autocast_leave(int device, int previous_enabled, int previous_dtype) {
  return guarded([&] {
    auto type = device_type(device);
    // Cached casts of weights must not outlive the outermost region: the optimizer changes the weights.
    if (at::autocast::decrement_nesting() == 0) {
      at::autocast::clear_cache();
    }
    at::autocast::set_autocast_enabled(type, previous_enabled != 0);
    at::autocast::set_autocast_dtype(type, static_cast<at::ScalarType>(previous_dtype));
  });
}

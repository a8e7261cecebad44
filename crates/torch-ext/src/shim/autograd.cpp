// Gradients as views of a flat buffer, and a call when a gradient is complete.
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/torch.h>

#include "shim.h"

namespace {

// Owns the Rust closure behind `context`.
class ReadyHook final : public torch::autograd::PostAccumulateGradHook {
 public:
  ReadyHook(void (*call)(void *), void (*drop)(void *), void *context) : call_(call), drop_(drop), context_(context) {}
  ~ReadyHook() override { drop_(context_); }
  void operator()(const at::Tensor &) override { call_(context_); }

 private:
  void (*call_)(void *);
  void (*drop_)(void *);
  void *context_;
};

} // namespace

Error torch_ext_bind_gradient(const at::Tensor *parameter, const at::Tensor *gradient) {
  return guarded([&] { const_cast<at::Tensor *>(parameter)->mutable_grad() = *gradient; });
}

Error torch_ext_on_gradient_ready(const at::Tensor *parameter, void (*call)(void *), void (*drop)(void *), void *context) {
  // Owned before anything can throw, so that the closure is dropped on every path.
  auto hook = std::make_unique<ReadyHook>(call, drop, context);
  return guarded([&] {
    TORCH_CHECK(parameter->is_leaf() && parameter->requires_grad(), "a gradient-ready hook needs a leaf that requires a gradient");
    torch::autograd::impl::set_post_acc_grad_hooks(*parameter, std::move(hook));
  });
}

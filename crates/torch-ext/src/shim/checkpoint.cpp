// A part of the network as one node of the graph, whose inside backward computes again.
//
// The node's backward runs the part with a graph and then backward through it, down to the parameters themselves: their gradients
// are accumulated there, once and in the order of an ordinary backward, and only the input's gradient goes on through the outer
// graph.
#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include "shim.h"

namespace {

// Autocast as it was, without its cache: casts without a graph would otherwise be found by later operations that need one.
class Autocast {
 public:
  explicit Autocast(at::DeviceType type)
      : type_(type), enabled_(at::autocast::is_autocast_enabled(type)), dtype_(at::autocast::get_autocast_dtype(type)) {}

  template <typename Function>
  at::Tensor within(Function &&function) const {
    Autocast before(type_);
    bool cached = at::autocast::is_autocast_cache_enabled();
    at::autocast::set_autocast_cache_enabled(false);
    set();
    struct Restore {
      const Autocast &before;
      bool cached;
      ~Restore() {
        before.set();
        at::autocast::set_autocast_cache_enabled(cached);
      }
    } restore{before, cached};
    return function();
  }

 private:
  void set() const {
    at::autocast::set_autocast_enabled(type_, enabled_);
    at::autocast::set_autocast_dtype(type_, dtype_);
  }

  at::DeviceType type_;
  bool enabled_;
  at::ScalarType dtype_;
};

// Owns the Rust closure behind `context`.
class Closure {
 public:
  Closure(Error (*call)(void *, const at::Tensor *, at::Tensor **), void (*drop)(void *), void *context)
      : call_(call), drop_(drop), context_(context) {}
  Closure(const Closure &) = delete;
  ~Closure() { drop_(context_); }

  at::Tensor operator()(const at::Tensor &input) const {
    at::Tensor *output = nullptr;
    if (Error error = call_(context_, &input, &output)) {
      std::string text(error);
      free(error);
      TORCH_CHECK(false, text);
    }
    std::unique_ptr<at::Tensor> owned(output);
    return *owned;
  }

 private:
  Error (*call_)(void *, const at::Tensor *, at::Tensor **);
  void (*drop_)(void *);
  void *context_;
};

class CheckpointBackward final : public torch::autograd::Node {
 public:
  CheckpointBackward(const at::Tensor &input, std::unique_ptr<Closure> closure)
      : Node(torch::autograd::collect_next_edges(input)),
        input_(input, /*is_output=*/false),
        closure_(std::move(closure)),
        autocast_(input.device().type()) {}

  torch::autograd::variable_list apply(torch::autograd::variable_list &&gradients) override {
    TORCH_CHECK(closure_ != nullptr, "backward went through a checkpointed block twice");
    if (!gradients[0].defined()) return {at::Tensor()};
    at::Tensor saved = input_.unpack();
    at::Tensor input = saved.detach().requires_grad_(task_should_compute_output(0));
    auto version = input._version();
    at::Tensor output;
    {
      at::AutoGradMode graph(true);
      output = autocast_.within([&] { return (*closure_)(input); });
    }
    TORCH_CHECK(input._version() == version, "a checkpointed block changes its input in place");
    if (output.requires_grad()) torch::autograd::backward({output}, {std::move(gradients[0])});
    return {input.grad()};
  }

  void release_variables() override {
    input_.reset_data();
    closure_.reset();
  }

  std::string name() const override { return "CheckpointBackward"; }

 private:
  torch::autograd::SavedVariable input_;
  std::unique_ptr<Closure> closure_;
  Autocast autocast_;
};

} // namespace

bool torch_ext_grad_enabled() { return at::GradMode::is_enabled(); }

Error torch_ext_without_autocast_cache(bool *cached) {
  return guarded([&] {
    *cached = at::autocast::is_autocast_cache_enabled();
    at::autocast::set_autocast_cache_enabled(false);
  });
}

void torch_ext_set_autocast_cache(bool cached) { at::autocast::set_autocast_cache_enabled(cached); }

Error torch_ext_checkpoint(const at::Tensor *input, const at::Tensor *output,
                           Error (*call)(void *, const at::Tensor *, at::Tensor **), void (*drop)(void *), void *context) {
  // Owned before anything can throw, so that the closure is dropped on every path.
  auto closure = std::make_unique<Closure>(call, drop, context);
  return guarded([&] {
    TORCH_CHECK(!output->requires_grad(), "the output of a checkpointed block has a graph of its own");
    auto node = c10::make_intrusive<CheckpointBackward>(*input, std::move(closure));
    torch::autograd::set_history(*output, node);
  });
}

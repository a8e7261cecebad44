// Batch norm, ReLU and dropout whose outputs backward computes again instead of keeping them.
//
// The graph is the ordinary one: same nodes, same kernels, same order. Only what the nodes behind the batch norm had saved (the
// ReLU's result, the dropout's mask, a convolution's input) is given up, by way of libtorch's saved-tensor hooks, for a recipe
// that holds the batch norm's input, which its own backward keeps anyway.
#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/generated/Functions.h>
#include <torch/csrc/autograd/saved_variable.h>

#include "shim.h"

namespace {

using torch::autograd::Node;
using torch::autograd::SavedVariable;

// What can be computed again.
enum Part { kActivated, kMask, kDropped, kParts };

template <typename Backward>
Backward *node_of(const at::Tensor &output) {
  return dynamic_cast<Backward *>(output.grad_fn().get());
}

struct Arguments {
  at::Tensor input, gain, bias, mean, variance;
  bool by_batch;
  double epsilon, probability;
  uint64_t key;
};

at::Tensor batch_norm(const Arguments &a, double momentum) {
  return at::batch_norm(a.input, a.gain, a.bias, a.mean, a.variance, a.by_batch, momentum, a.epsilon, /*cudnn_enabled=*/true);
}

class Recipe {
 public:
  Recipe(Arguments arguments, const at::Tensor &output)
      : arguments_(std::move(arguments)), shape_of_output_(output.sizes().vec()), strides_of_output_(output.strides().vec()) {
    for (at::Tensor *tensor : {&arguments_.input, &arguments_.gain, &arguments_.bias}) {
      *tensor = tensor->detach();
      versions_.push_back(tensor->_version());
    }
    if (arguments_.by_batch) arguments_.mean = arguments_.variance = at::Tensor();
  }

  bool is_output(const at::Tensor &tensor, const at::Tensor &output) const {
    return tensor.is_alias_of(output) && tensor.sizes() == shape_of_output_ && tensor.strides() == strides_of_output_ &&
           tensor.scalar_type() == output.scalar_type();
  }

  Part output() const { return arguments_.probability > 0.0 ? kDropped : kActivated; }

  void add_consumer(Part part) { ++waiting_[part]; }

  // The part, computed when its first consumer asks and held until its last one has it.
  at::Tensor take(Part part) {
    if (!cached_[part].defined()) compute(part);
    at::Tensor taken = cached_[part];
    if (--waiting_[part] <= 0) cached_[part].reset();
    return taken;
  }

 private:
  void compute(Part asked) {
    at::NoGradGuard no_grad;
    c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const at::Tensor *tensors[] = {&arguments_.input, &arguments_.gain, &arguments_.bias};
    for (size_t i = 0; i < versions_.size(); ++i) {
      TORCH_CHECK(tensors[i]->_version() == versions_[i],
                  "the input or a parameter of a batch norm was changed between forward and backward");
    }
    // The operation of the forward pass itself, for the same bits. With the batch's mean and variance in hand it could be
    // spared their sums, but libtorch does not let others call the rest of it on a CPU.
    at::Tensor activated = batch_norm(arguments_, /*momentum=*/0.0).relu_();
    store(kActivated, asked, activated);
    if (arguments_.probability > 0.0 && (asked != kActivated || waiting_[kMask] > 0 || waiting_[kDropped] > 0)) {
      at::Tensor mask = dropout_mask(activated, arguments_.probability, arguments_.key);
      store(kMask, asked, mask);
      if (asked == kDropped || waiting_[kDropped] > 0) store(kDropped, asked, activated.mul(mask));
    }
  }

  void store(Part part, Part asked, const at::Tensor &tensor) {
    if (part == asked || waiting_[part] > 0) cached_[part] = tensor;
  }

  Arguments arguments_;
  std::vector<int64_t> shape_of_output_, strides_of_output_;
  std::vector<int64_t> versions_;
  at::Tensor cached_[kParts];
  int waiting_[kParts] = {};
};

class RecomputeHook final : public torch::autograd::SavedVariableHooks {
 public:
  RecomputeHook(std::shared_ptr<Recipe> recipe, Part part) : recipe_(std::move(recipe)), part_(part) {
    recipe_->add_consumer(part_);
  }
  void call_pack_hook(const at::Tensor &) override {}
  at::Tensor call_unpack_hook() override { return recipe_->take(part_); }

 private:
  std::shared_ptr<Recipe> recipe_;
  Part part_;
};

void give_up(SavedVariable &saved, const std::shared_ptr<Recipe> &recipe, Part part) {
  saved.register_hooks(std::make_unique<RecomputeHook>(recipe, part));
}

} // namespace

struct TorchExtRecomputed {
  std::shared_ptr<Recipe> recipe;
  at::Tensor output;
};

Error torch_ext_norm_relu(const at::Tensor *input, const at::Tensor *gain, const at::Tensor *bias, const at::Tensor *mean,
                          const at::Tensor *variance, bool by_batch, double momentum, double epsilon, double probability,
                          uint64_t key, at::Tensor **output, TorchExtRecomputed **recomputed) {
  using namespace torch::autograd::generated;
  return guarded([&] {
    Arguments arguments{*input, *gain, *bias, mean != nullptr ? *mean : at::Tensor(),
                        variance != nullptr ? *variance : at::Tensor(), by_batch, epsilon, probability, key};
    at::Tensor activated = batch_norm(arguments, momentum).relu_();
    at::Tensor result = activated;
    if (probability > 0.0) {
      at::Tensor mask = [&] {
        at::NoGradGuard no_grad;
        return dropout_mask(activated, probability, key);
      }();
      result = activated.mul(mask);
    }
    *recomputed = nullptr;
    if (auto *relu = node_of<ReluBackward0>(activated)) {
      auto recipe = std::make_shared<Recipe>(std::move(arguments), result);
      give_up(relu->result_, recipe, kActivated);
      auto *dropout = node_of<MulBackward0>(result);
      if (dropout != nullptr) give_up(dropout->other_, recipe, kMask);
      *recomputed = new TorchExtRecomputed{std::move(recipe), result};
    }
    *output = new at::Tensor(std::move(result));
  });
}

Error torch_ext_recomputed_feeds(const TorchExtRecomputed *recomputed, const at::Tensor *convolved) {
  return guarded([&] {
    auto *node = node_of<torch::autograd::generated::ConvolutionBackward0>(*convolved);
    if (node == nullptr) return;
    auto saved = node->input_.get_raw_data();
    if (saved && saved->defined() && recomputed->recipe->is_output(*saved, recomputed->output)) {
      give_up(node->input_, recomputed->recipe, recomputed->recipe->output());
    }
  });
}

void torch_ext_recomputed_free(TorchExtRecomputed *recomputed) { delete recomputed; }

// Batch norm over the images of several ranks at once: libtorch's kernels on this rank's images, and averages over the ranks of
// what they sum up, forward and backward.
//
// With M ranks of n values a channel each, mean and variance of all M n values are averages over the ranks:
//   mean = avg(mean_r)        variance = avg(variance_r + (mean_r - mean)^2)
// and so are the two means in the gradient of the input, as in Ioffe & Szegedy 2015 (arXiv 1502.03167, section 3):
//   dx = gain / sigma * (dy - mean(dy) - xhat * mean(dy * xhat))
// The gradients of gain and bias stay this rank's own; they are averaged with all others.
#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include "shim.h"

namespace {

// Owns the Rust closure that averages over the ranks.
class Ranks {
 public:
  Ranks(double count, Error (*average)(void *, float *, size_t), void (*drop)(void *), void *context)
      : count_(count), average_(average), drop_(drop), context_(context) {}
  Ranks(const Ranks &) = delete;
  ~Ranks() { drop_(context_); }

  double count() const { return count_; }

  at::Tensor average(const at::Tensor &values) const {
    at::Tensor host = at::empty(values.sizes(), at::kFloat);
    host.copy_(values);
    if (Error error = average_(context_, host.data_ptr<float>(), static_cast<size_t>(host.numel()))) {
      std::string text(error);
      free(error);
      TORCH_CHECK(false, text);
    }
    return host.to(values.device());
  }

 private:
  double count_;
  Error (*average_)(void *, float *, size_t);
  void (*drop_)(void *);
  void *context_;
};

// [C] in a form that meets [N, C, H, W].
at::Tensor by_channel(const at::Tensor &values) { return values.view({1, -1, 1, 1}); }

class SyncNormBackward final : public torch::autograd::Node {
 public:
  SyncNormBackward(torch::autograd::edge_list &&edges, const at::Tensor &input, const at::Tensor &gain, at::Tensor mean,
                   at::Tensor variance, double epsilon, std::shared_ptr<Ranks> ranks)
      : Node(std::move(edges)),
        input_(input, /*is_output=*/false),
        gain_(gain, /*is_output=*/false),
        mean_(std::move(mean)),
        variance_(std::move(variance)),
        epsilon_(epsilon),
        ranks_(std::move(ranks)) {}

  torch::autograd::variable_list apply(torch::autograd::variable_list &&gradients) override {
    TORCH_CHECK(ranks_ != nullptr, "backward went through a batch norm over several ranks twice");
    // Whatever this rank needs of it: the others wait for its part.
    TORCH_CHECK(gradients[0].defined(), "a batch norm over several ranks has no gradient on this one");
    at::NoGradGuard no_grad;
    c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    at::Tensor input = input_.unpack(), gain = gain_.unpack();
    const at::Tensor &gradient = gradients[0];
    // Sums of dy * xhat and of dy over this rank's images.
    auto [unused, of_gain, of_bias] = at::native_batch_norm_backward(
        gradient, input, gain, mean_, variance_, /*save_mean=*/{}, /*save_invstd=*/{}, /*train=*/false, epsilon_, {false, true, true});
    double values = static_cast<double>(input.numel()) / static_cast<double>(input.size(1));
    at::Tensor means = ranks_->average(at::stack({of_bias, of_gain}).div_(values));
    at::Tensor of_input;
    if (task_should_compute_output(0)) {
      at::Tensor inverse_sigma = (variance_ + epsilon_).rsqrt_();
      at::Tensor normalized = (input.to(at::kFloat) - by_channel(mean_)).mul_(by_channel(inverse_sigma * means[1]));
      of_input = (gradient.to(at::kFloat) - by_channel(means[0])).sub_(normalized).mul_(by_channel(gain * inverse_sigma));
      of_input = of_input.to(input.scalar_type());
    }
    return {of_input, of_gain, of_bias};
  }

  void release_variables() override {
    input_.reset_data();
    gain_.reset_data();
    ranks_.reset();
  }

  std::string name() const override { return "SyncNormBackward"; }

 private:
  torch::autograd::SavedVariable input_, gain_;
  at::Tensor mean_, variance_;
  double epsilon_;
  std::shared_ptr<Ranks> ranks_;
};

} // namespace

Error torch_ext_sync_norm(const at::Tensor *input, const at::Tensor *gain, const at::Tensor *bias, const at::Tensor *mean,
                          const at::Tensor *variance, double epsilon, double ranks, Error (*average)(void *, float *, size_t),
                          void (*drop)(void *), void *context, at::Tensor **output) {
  // Owned before anything can throw, so that the closure is dropped on every path.
  auto all = std::make_shared<Ranks>(ranks, average, drop, context);
  return guarded([&] {
    TORCH_CHECK(input->dim() == 4 && input->numel() > 0, "batch norm needs images [N, C, H, W], not ", input->sizes());
    bool graph = at::GradMode::is_enabled() && (input->requires_grad() || gain->requires_grad() || bias->requires_grad());
    at::Tensor mean_of_all, variance_of_all, result;
    {
      at::NoGradGuard no_grad;
      c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
      // Statistics are fp32 whatever the images are; libtorch takes their format from tensors that it also writes to.
      auto options = input->options().dtype(at::kFloat).memory_format(at::MemoryFormat::Contiguous);
      at::Tensor ignored_mean = at::zeros({input->size(1)}, options), ignored_variance = at::zeros({input->size(1)}, options);
      auto [own_mean, own_variance] = at::batch_norm_update_stats(*input, ignored_mean, ignored_variance, /*momentum=*/1.0);
      mean_of_all = all->average(own_mean);
      variance_of_all = all->average((own_mean - mean_of_all).square_().add_(own_variance));
      result = std::get<0>(at::native_batch_norm(*input, *gain, *bias, mean_of_all, variance_of_all, /*training=*/false,
                                                 /*momentum=*/0.0, epsilon));
      double values = all->count() * static_cast<double>(input->numel()) / static_cast<double>(input->size(1));
      mean->copy_(mean_of_all);
      variance->copy_(variance_of_all * (values / std::max(values - 1.0, 1.0)));
    }
    if (graph) {
      auto node = c10::make_intrusive<SyncNormBackward>(torch::autograd::collect_next_edges(*input, *gain, *bias), *input, *gain,
                                                        mean_of_all, variance_of_all, epsilon, std::move(all));
      torch::autograd::set_history(result, node);
    }
    *output = new at::Tensor(std::move(result));
  });
}

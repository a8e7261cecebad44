// Operations that tch's generated bindings lack.
#include <ATen/Context.h>
#include <torch/torch.h>

#include "shim.h"

Error torch_ext_fused_sgd(const at::Tensor *const *parameters, const at::Tensor *const *gradients,
                          const at::Tensor *const *momentum, size_t count, double learning_rate,
                          double momentum_factor, double dampening, double weight_decay, bool nesterov, bool first_step) {
  return guarded([&] {
    torch::NoGradGuard no_grad;
    auto list = [count](const at::Tensor *const *tensors) {
      std::vector<at::Tensor> out;
      out.reserve(count);
      for (size_t i = 0; i < count; ++i) out.push_back(*tensors[i]);
      return out;
    };
    // The CPU kernel takes this for granted: it would read and write beyond the end of a shorter tensor.
    for (size_t i = 0; i < count; ++i) {
      const at::Tensor &parameter = *parameters[i];
      for (const at::Tensor *other : {gradients[i], momentum[i]}) {
        TORCH_CHECK(parameter.is_non_overlapping_and_dense() && other->sizes() == parameter.sizes() &&
                        other->strides() == parameter.strides() && other->scalar_type() == parameter.scalar_type() &&
                        other->device() == parameter.device(),
                    "parameter ", i, " of shape ", parameter.sizes(), " and its gradient or momentum of shape ",
                    other->sizes(), " must be dense and equal in shape, strides, kind and device");
      }
    }
    // Without momentum libtorch insists on having no buffers for it.
    auto buffers = momentum_factor == 0.0 ? std::vector<at::Tensor>{} : list(momentum);
    at::_fused_sgd_(list(parameters), list(gradients), buffers, weight_decay, momentum_factor, learning_rate,
                    dampening, nesterov, /*maximize=*/false, first_step);
  });
}

at::Tensor dropout_mask(const at::Tensor &like, double probability, uint64_t key) {
  // A generator of its own: the global one stays as it is, and the mask depends on nothing but the key.
  auto generator = at::globalContext().defaultGenerator(like.device()).clone();
  generator.set_current_seed(key);
  torch::NoGradGuard no_grad;
  return at::empty_like(like).bernoulli_(1.0 - probability, generator).div_(1.0 - probability);
}

Error torch_ext_dropout(const at::Tensor *input, double probability, uint64_t key, at::Tensor **output) {
  return guarded([&] { *output = new at::Tensor(input->mul(dropout_mask(*input, probability, key))); });
}

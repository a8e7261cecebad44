// Operations that tch's generated bindings lack.
#include <ATen/Context.h>
#include <torch/torch.h>

#include "shim.h"

namespace {

using Tensors = const at::Tensor *const *;

std::vector<at::Tensor> list(Tensors tensors, size_t count) {
  std::vector<at::Tensor> out;
  out.reserve(count);
  for (size_t i = 0; i < count; ++i) out.push_back(*tensors[i]);
  return out;
}

// The CPU kernels take this for granted: they would read and write beyond the end of a shorter tensor.
void require_alike(Tensors parameters, std::initializer_list<Tensors> others, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    const at::Tensor &parameter = *parameters[i];
    for (Tensors tensors : others) {
      const at::Tensor &other = *tensors[i];
      TORCH_CHECK(parameter.is_non_overlapping_and_dense() && other.sizes() == parameter.sizes() &&
                      other.strides() == parameter.strides() && other.scalar_type() == parameter.scalar_type() &&
                      other.device() == parameter.device(),
                  "parameter ", i, " of shape ", parameter.sizes(), " and its gradient or momentum of shape ",
                  other.sizes(), " must be dense and equal in shape, strides, kind and device");
    }
  }
}

} // namespace

Error torch_ext_fused_sgd(const at::Tensor *const *parameters, const at::Tensor *const *gradients,
                          const at::Tensor *const *momentum, size_t count, double learning_rate,
                          double momentum_factor, double dampening, double weight_decay, bool nesterov, bool first_step,
                          const at::Tensor *skip) {
  return guarded([&] {
    torch::NoGradGuard no_grad;
    require_alike(parameters, {gradients, momentum}, count);
    // Without momentum libtorch insists on having no buffers for it.
    auto buffers = momentum_factor == 0.0 ? std::vector<at::Tensor>{} : list(momentum, count);
    at::_fused_sgd_(list(parameters, count), list(gradients, count), buffers, weight_decay, momentum_factor,
                    learning_rate, dampening, nesterov, /*maximize=*/false, first_step, /*grad_scale=*/{},
                    skip == nullptr ? std::optional<at::Tensor>{} : *skip);
  });
}

Error torch_ext_fused_adamw(const at::Tensor *const *parameters, const at::Tensor *const *gradients,
                            const at::Tensor *const *first_moments, const at::Tensor *const *second_moments,
                            size_t count, double learning_rate, double beta1, double beta2, double epsilon,
                            double weight_decay, const at::Tensor *step, const at::Tensor *skip) {
  return guarded([&] {
    torch::NoGradGuard no_grad;
    TORCH_CHECK(count > 0, "no parameters");
    require_alike(parameters, {gradients, first_moments, second_moments}, count);
    std::vector<at::Tensor> steps(count, *step);
    at::_fused_adamw_(list(parameters, count), list(gradients, count), list(first_moments, count),
                      list(second_moments, count), /*max_exp_avg_sqs=*/{}, steps, learning_rate, beta1, beta2,
                      weight_decay, epsilon, /*amsgrad=*/false, /*maximize=*/false, /*grad_scale=*/{},
                      skip == nullptr ? std::optional<at::Tensor>{} : *skip);
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

#include "mdn/train/optimizer.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>

#include "mdn/core/error.h"

namespace mdn::train {
namespace {

std::vector<at::Tensor> gradients_of(const std::vector<at::Tensor>& parameters) {
  std::vector<at::Tensor> gradients;
  gradients.reserve(parameters.size());
  for (const at::Tensor& p : parameters) {
    gradients.push_back(p.grad());
  }
  return gradients;
}

std::vector<at::Tensor> gradients_of(const model::Parameters& parameters) {
  std::vector<at::Tensor> gradients;
  for (const model::Parameter& p : parameters.entries()) {
    MDN_CHECK(p.value.grad().defined(), "'{}' received no gradient", p.spec.name);
    gradients.push_back(p.value.grad());
  }
  return gradients;
}

}  // namespace

AdamW::AdamW(const model::Parameters& parameters, const AdamWOptions& options) : options_(options) {
  groups_.resize(2);
  groups_[0].weight_decay = options.weight_decay;
  for (const model::Parameter& p : parameters.entries()) {
    names_.push_back(p.spec.name);
    exp_avg_.push_back(at::zeros_like(p.value, p.value.options().requires_grad(false)));
    exp_avg_sq_.push_back(at::zeros_like(exp_avg_.back()));
    Group& group = groups_[p.spec.decay ? 0 : 1];
    group.parameters.push_back(p.value);
    group.exp_avg.push_back(exp_avg_.back());
    group.exp_avg_sq.push_back(exp_avg_sq_.back());
  }
}

void AdamW::step(double learning_rate) {
  const at::NoGradGuard no_grad;
  ++updates_;
  for (Group& group : groups_) {
    if (group.parameters.empty()) {
      continue;
    }
    // The kernel reads the number of the update from a float32 tensor a parameter: one serves all.
    const at::Tensor count = at::full({}, static_cast<double>(updates_),
                                      group.parameters[0].options().dtype(at::kFloat));
    const std::vector<at::Tensor> counts(group.parameters.size(), count);
    at::_fused_adamw_(group.parameters, gradients_of(group.parameters), group.exp_avg,
                      group.exp_avg_sq, {}, counts, learning_rate, options_.beta1, options_.beta2,
                      group.weight_decay, options_.eps, /*amsgrad=*/false, /*maximize=*/false);
  }
}

std::vector<std::pair<std::string, at::Tensor>> AdamW::state() const {
  std::vector<std::pair<std::string, at::Tensor>> out;
  for (size_t i = 0; i < names_.size(); ++i) {
    out.emplace_back("exp_avg." + names_[i], exp_avg_[i]);
  }
  for (size_t i = 0; i < names_.size(); ++i) {
    out.emplace_back("exp_avg_sq." + names_[i], exp_avg_sq_[i]);
  }
  return out;
}

void AdamW::load(const SafetensorsFile& file, int64_t updates,
                 const std::vector<std::string>& ignored) {
  const auto wanted = state();
  for (const auto& [name, tensor] : wanted) {
    const at::Tensor stored = model::to_tensor(file.at(name));
    MDN_CHECK(stored.sizes() == tensor.sizes() && stored.scalar_type() == tensor.scalar_type(),
              "{}: '{}' is [{}] {}; this run needs [{}] {}", file.path().string(), name,
              fmt::join(stored.sizes(), ", "), c10::toString(stored.scalar_type()),
              fmt::join(tensor.sizes(), ", "), c10::toString(tensor.scalar_type()));
    at::Tensor target = tensor;
    target.copy_(stored);
  }
  for (const TensorView& view : file.tensors()) {
    const auto is_it = [&](const auto& entry) { return entry.first == view.name; };
    MDN_CHECK(std::any_of(wanted.begin(), wanted.end(), is_it) ||
                  std::find(ignored.begin(), ignored.end(), view.name) != ignored.end(),
              "{}: '{}' belongs to no parameter of this model", file.path().string(), view.name);
  }
  updates_ = updates;
}

double gradient_norm(const model::Parameters& parameters) {
  const at::NoGradGuard no_grad;
  return at::stack(at::_foreach_norm(gradients_of(parameters))).norm().item<double>();
}

void scale_gradients(const model::Parameters& parameters, double factor) {
  const at::NoGradGuard no_grad;
  at::_foreach_mul_(gradients_of(parameters), factor);
}

std::string first_bad_gradient(const model::Parameters& parameters) {
  const at::NoGradGuard no_grad;
  for (const model::Parameter& p : parameters.entries()) {
    if (!std::isfinite(p.value.grad().norm().item<double>())) {
      return p.spec.name;
    }
  }
  return "";
}

}  // namespace mdn::train

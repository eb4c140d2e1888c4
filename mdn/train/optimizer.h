// AdamW over a model's parameters, in two groups: with weight decay and without, as the weight
// table marks them.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "mdn/model/parameters.h"

namespace mdn::train {

struct AdamWOptions {
  double beta1 = 0.9, beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.1;
};

/// theta <- theta - lr weight_decay theta;  m <- beta1 m + (1 - beta1) g;
/// v <- beta2 v + (1 - beta2) g^2;  theta <- theta - lr m^ / (sqrt(v^) + eps), with the bias of m
/// and v divided out: ATen's fused kernel, one call a group. m and v have the parameters' dtype.
class AdamW {
 public:
  /// Shares the tensors, which must be leaves that require gradients; m and v start at 0.
  AdamW(const model::Parameters& parameters, const AdamWOptions& options);

  /// One update from the gradients of all parameters.
  void step(double learning_rate);

  int64_t updates() const { return updates_; }

  /// (name, tensor) of m and v: exp_avg.NAME, exp_avg_sq.NAME, in table order.
  std::vector<std::pair<std::string, at::Tensor>> state() const;
  /// Copies from a file that has exactly what state() has, and perhaps `ignored`; anything else
  /// missing, left over or of another shape or dtype is an error that names it.
  void load(const SafetensorsFile& file, int64_t updates, const std::vector<std::string>& ignored);

 private:
  struct Group {
    double weight_decay = 0;
    std::vector<at::Tensor> parameters, exp_avg, exp_avg_sq;
  };

  AdamWOptions options_;
  std::vector<std::string> names_;
  std::vector<at::Tensor> exp_avg_, exp_avg_sq_;  // in table order
  std::vector<Group> groups_;
  int64_t updates_ = 0;
};

/// sqrt(sum of squares) over the gradients of all parameters, in the gradients' dtype.
double gradient_norm(const model::Parameters& parameters);

/// Multiplies all gradients by `factor`.
void scale_gradients(const model::Parameters& parameters, double factor);

/// The first parameter, in table order, whose gradient's norm is not finite: some element is not,
/// or the squares overflow. Empty: none.
std::string first_bad_gradient(const model::Parameters& parameters);

}  // namespace mdn::train

// Small helpers that layers share.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/linear.h>

#include <optional>
#include <utility>
#include <vector>

#include "mdn/core/error.h"

namespace mdn::layers {

/// The type gates, norms and states are computed in: float64 for float64 models, else float32.
inline at::ScalarType gate_type(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

/// x weightᵀ (+ bias): x [..., in], weight [out, in]; an undefined bias is none. Weights kept in
/// another type (float32 masters of a bfloat16 model) are converted to x's.
inline at::Tensor project(const at::Tensor& x, const at::Tensor& weight,
                          const at::Tensor& bias = {}) {
  const auto type = x.scalar_type();
  return at::linear(x, weight.to(type),
                    bias.defined() ? std::optional(bias.to(type)) : std::nullopt);
}

/// A layer's input x as its projections see it: the product with a weight is made when asked for,
/// or was made beforehand, together with the others.
class Projected {
 public:
  Projected(const at::Tensor& x) : x_(x) {}  // NOLINT: an input is its projections
  Projected(std::vector<at::Tensor> weights, std::vector<at::Tensor> products)
      : weights_(std::move(weights)), products_(std::move(products)) {}

  at::Tensor operator()(const at::Tensor& weight, const at::Tensor& bias = {}) const {
    if (x_.defined()) {
      return project(x_, weight, bias);
    }
    for (size_t i = 0; i < weights_.size(); ++i) {
      if (weights_[i].is_same(weight)) {
        return products_[i];
      }
    }
    MDN_THROW("a layer asks for a projection that is not among its parts");
  }

  /// The projection by the layer's only such weight, as columns of these sizes.
  std::vector<at::Tensor> split(const at::Tensor& weight, at::IntArrayRef sizes,
                                const at::Tensor& bias = {}) const {
    return x_.defined() ? project(x_, weight, bias).split_with_sizes(sizes, -1) : products_;
  }

 private:
  at::Tensor x_;
  std::vector<at::Tensor> weights_, products_;
};

/// The weights of a layer by where they act: on its input, between, on what leaves it. Undefined
/// tensors are parts it does not have.
struct LayerParts {
  std::vector<at::Tensor> in;         // [rows, D] each
  std::vector<int64_t> columns = {};  // of the projections by `in`, where not those of each weight
  std::vector<at::Tensor> between;    // of any shape
  at::Tensor out;                     // [D, E]
};

/// Those of the tensors that are defined.
inline std::vector<at::Tensor> present(std::vector<at::Tensor> tensors) {
  std::erase_if(tensors, [](const at::Tensor& t) { return !t.defined(); });
  return tensors;
}

}  // namespace mdn::layers

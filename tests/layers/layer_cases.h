// What the layer tests share: random weights, and a layer's promises about its state.
#pragma once

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include "mdn/layers/sequences.h"

namespace mdn::layers {

/// Normal float64 numbers from one generator.
class Normal {
 public:
  explicit Normal(uint64_t seed) : generator_(at::detail::createCPUGenerator(seed)) {}
  at::Tensor operator()(std::vector<int64_t> shape, double scale = 1) {
    return at::randn(shape, generator_, at::TensorOptions().dtype(at::kDouble)) * scale;
  }

 private:
  at::Generator generator_;
};

inline double relative(const at::Tensor& got, const at::Tensor& want) {
  return ((got - want).norm() / want.norm()).item<double>();
}

// float64: rounding of 1e-16 times some hundred operations.
inline constexpr double kLayerTolerance = 1e-12;

/// Tokens one by one, cut in two, and packed, against x [B, T, D] as a whole.
template <class Layer>
void expect_states_carry(const Layer& layer, const at::Tensor& x) {
  const int64_t T = x.size(1);
  const at::Tensor whole = layer(x, {}, nullptr);
  typename Layer::State state;
  std::vector<at::Tensor> steps;
  for (int64_t t = 0; t < T; ++t) {
    steps.push_back(layer(x.narrow(1, t, 1), {}, &state));
  }
  EXPECT_LT(relative(at::cat(steps, 1), whole), kLayerTolerance);
  for (int64_t split : {int64_t{1}, int64_t{3}, T - 1}) {
    typename Layer::State carried;
    const at::Tensor head = layer(x.narrow(1, 0, split), {}, &carried);
    const at::Tensor tail = layer(x.narrow(1, split, T - split), {}, &carried);
    EXPECT_LT(relative(at::cat({head, tail}, 1), whole), kLayerTolerance) << split;
  }
  for (const auto& [name, tensor] : state.fields()) {
    if (tensor->defined()) {
      EXPECT_EQ(tensor->sizes().vec(), layer.state_shape(name, x.size(0))) << name;
    } else {
      EXPECT_TRUE(layer.state_shape(name, x.size(0)).empty()) << name;
    }
  }
  const at::Tensor row = x.narrow(0, 0, 1);
  const std::vector<int64_t> cuts = {0, 2, 2, 5, T};
  const at::Tensor packed = layer(row, Sequences(at::tensor(cuts, at::kLong)), nullptr);
  for (size_t n = 0; n + 1 < cuts.size(); ++n) {
    const int64_t length = cuts[n + 1] - cuts[n];
    if (length > 0) {
      EXPECT_LT(relative(packed.narrow(1, cuts[n], length),
                         layer(row.narrow(1, cuts[n], length), {}, nullptr)),
                kLayerTolerance)
          << n;
    }
  }
}

}  // namespace mdn::layers

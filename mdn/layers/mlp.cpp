#include "mdn/layers/mlp.h"

#include <ATen/ATen.h>

#include "mdn/layers/linear.h"

namespace mdn::layers {

at::Tensor mlp(const MlpWeights& weights, const at::Tensor& x) {
  const at::Tensor gate = at::silu(linear(x, weights.gate_proj));
  return linear(gate * linear(x, weights.up_proj), weights.down_proj);
}

}  // namespace mdn::layers

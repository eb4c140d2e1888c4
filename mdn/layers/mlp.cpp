#include "mdn/layers/mlp.h"

#include <ATen/ATen.h>

#include "mdn/layers/project.h"

namespace mdn::layers {

at::Tensor mlp(const MlpWeights& weights, const at::Tensor& x) {
  const at::Tensor gate = at::silu(project(x, weights.gate_proj));
  return project(gate * project(x, weights.up_proj), weights.down_proj);
}

}  // namespace mdn::layers

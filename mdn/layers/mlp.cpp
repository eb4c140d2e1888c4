#include "mdn/layers/mlp.h"

#include "mdn/layers/project.h"
#include "mdn/ops/swiglu.h"

namespace mdn::layers {

at::Tensor mlp(const MlpWeights& weights, const at::Tensor& x) {
  const at::Tensor inner = ops::swiglu(project(x, weights.gate_proj), project(x, weights.up_proj));
  return project(inner, weights.down_proj);
}

}  // namespace mdn::layers

#include "mdn/layers/gated_output.h"

namespace mdn::layers {

at::Tensor gated_norm(const OutputWeights& w, ops::RmsNormGating gating, double eps,
                      const at::Tensor& o, const Projected& x) {
  std::optional<at::Tensor> gate;
  if (w.g_proj.defined()) {
    gate = x(w.g_proj).view(o.sizes());
  } else if (w.g_proj_0.defined()) {
    gate = project(x(w.g_proj_0), w.g_proj_1, w.g_proj_1_bias).view(o.sizes());
  }
  return ops::rms_norm(o, w.o_norm, eps, gate, gating).flatten(2);
}

}  // namespace mdn::layers

#include "mdn/layers/gated_output.h"

#include <ATen/ATen.h>

#include "mdn/layers/project.h"
#include "mdn/ops/rms_norm.h"

namespace mdn::layers {

at::Tensor gated_output(const OutputWeights& w, GateActivation activation, double eps,
                        const at::Tensor& o, const at::Tensor& x) {
  at::Tensor y;
  if (w.g_proj.defined() || w.g_proj_0.defined()) {
    const at::Tensor g =
        (w.g_proj.defined() ? project(x, w.g_proj)
                            : project(project(x, w.g_proj_0), w.g_proj_1, w.g_proj_1_bias))
            .view(o.sizes());
    if (activation == GateActivation::kSilu) {
      // silu(g) = sigmoid(g) g, rounded once to the layer's type
      const auto type = gate_type(o);
      const at::Tensor wide = g.to(type);
      y = (ops::rms_norm(o.to(type), w.o_norm, eps, wide) * wide).to(o.scalar_type());
    } else {
      y = ops::rms_norm(o, w.o_norm, eps, g);
    }
  } else {
    y = ops::rms_norm(o, w.o_norm, eps);
  }
  return project(y.flatten(2), w.o_proj);
}

}  // namespace mdn::layers

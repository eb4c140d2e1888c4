#include "mdn/layers/norm.h"

#include <ATen/ATen.h>

#include "mdn/layers/project.h"

namespace mdn::layers {
namespace {

at::Tensor normalised(const at::Tensor& x, const at::Tensor& weight, double eps) {
  const at::Tensor wide = x.to(gate_type(x));
  return wide * (wide.square().mean(-1, true) + eps).rsqrt() * weight.to(wide.scalar_type());
}

}  // namespace

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  return normalised(x, weight, eps).to(x.scalar_type());
}

at::Tensor gated_rms_norm(const at::Tensor& x, const at::Tensor& gate, const at::Tensor& weight,
                          double eps) {
  return (normalised(x, weight, eps) * gate.to(gate_type(x)).sigmoid()).to(x.scalar_type());
}

}  // namespace mdn::layers

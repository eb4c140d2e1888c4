#include "mdn/ops/rotary.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "mdn/kernels/rotary.h"
#include "mdn/ops/tensor.h"

namespace mdn::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::Tensor rotate_heads(const at::Tensor& x, const at::Tensor& positions, double theta,
                        bool backward) {
  at::Tensor y = at::empty_like(x);
  const DeviceScope device(x);
  kernels::cuda::rotary({.rows = x.size(0),
                         .T = x.size(1),
                         .heads = x.size(2),
                         .d = x.size(3),
                         .dtype = dtype_of("rotary", x.scalar_type()),
                         .theta = theta,
                         .backward = backward,
                         .positions = positions.const_data_ptr<int64_t>(),
                         .x = data(x),
                         .y = y.data_ptr()},
                        device.stream());
  return y;
}

class FusedRotary : public torch::autograd::Function<FusedRotary> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& positions,
                            double theta) {
    ctx->save_for_backward({positions});
    ctx->saved_data["theta"] = theta;
    return rotate_heads(x.contiguous(), positions, theta, false);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    check_first_order("rotary");
    return {rotate_heads(grads[0].contiguous(), ctx->get_saved_variables()[0],
                         ctx->saved_data["theta"].toDouble(), true),
            {},
            {}};
  }
};

// Tables in float32 (float64 for float64 x), rounded to x's type.
at::Tensor rotary_of_tables(const at::Tensor& x, const at::Tensor& positions, double theta) {
  const int64_t d = x.size(-1);
  const auto type = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor i = at::arange(0, d, 2, x.options().dtype(type).requires_grad(false));
  const at::Tensor frequency = at::pow(theta, i / -static_cast<double>(d));
  const at::Tensor angle = positions.to(type).unsqueeze(1) * frequency;  // [T, d/2]
  const at::Tensor cos = angle.cos().to(x.scalar_type()).unsqueeze(1),
                   sin = angle.sin().to(x.scalar_type()).unsqueeze(1);
  const auto halves = x.chunk(2, -1);
  return at::cat({halves[0] * cos - halves[1] * sin, halves[0] * sin + halves[1] * cos}, -1);
}

}  // namespace

at::Tensor rotary(const at::Tensor& x, const at::Tensor& positions, double theta) {
  constexpr const char* kOp = "rotary";
  MDN_CHECK(x.dim() == 4 && x.size(3) % 2 == 0,
            "{}: x must be [B, T, heads, d] with an even d, got {}", kOp, shape_text(x));
  TensorCheck{kOp, x.device()}(positions, "positions", {x.size(1)}, at::kLong);
  if (use_cuda_kernel(x) && x.size(3) <= kernels::cuda::kRotaryMaxHeadDim) {
    return FusedRotary::apply(x, positions.contiguous(), theta);
  }
  return rotary_of_tables(x, positions, theta);
}

}  // namespace mdn::ops

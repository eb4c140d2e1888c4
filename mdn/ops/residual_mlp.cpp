#include "mdn/ops/residual_mlp.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "mdn/kernels/rms_norm.h"
#include "mdn/kernels/swiglu.h"
#include "mdn/ops/gemm.h"
#include "mdn/ops/residual.h"
#include "mdn/ops/tensor.h"

namespace mdn::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kOp = "residual_mlp";

// What the backward pass reads; from kWeights on norm, gate_proj, up_proj, down_proj as given.
enum Saved { kX, kNorm, kInner, kPack, kDown, kWeights };

class FusedResidualMlp : public torch::autograd::Function<FusedResidualMlp> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x_in, at::TensorList weights,
                            double eps) {
    const at::Tensor x = x_in.contiguous();
    const at::ScalarType type = x.scalar_type();
    const int64_t D = x.size(-1), I = weights[1].size(0), rows = x.numel() / D;
    const at::Tensor norm = weights[0].to(at::kFloat).contiguous();
    const DeviceScope device(x);
    const at::Tensor pack = pack_rows({weights[1], weights[2]}, type);
    const at::Tensor down = pack_rows({weights[3]}, type);
    // [rows, 2 I]: gate(n), up(n)
    const at::Tensor inner = at::mm(rms_norm_rows(x, norm, eps, type), pack.t());
    at::Tensor y = at::empty({rows, I}, x.options());
    kernels::cuda::swiglu_forward({.rows = rows,
                                   .columns = I,
                                   .dtype = dtype_of(kOp, type),
                                   .a = data(inner),
                                   .b = data(inner.narrow(1, I, I)),
                                   .stride = 2 * I,
                                   .y = y.data_ptr()},
                                  device.stream());
    at::Tensor out = at::mm(y, down.t()).view(x.sizes());
    out.add_(x);
    ctx->save_for_backward(
        {x, norm, inner, pack, down, weights[0], weights[1], weights[2], weights[3]});
    ctx->saved_data["eps"] = eps;
    return out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    check_first_order(kOp);
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &x = saved[kX], &inner = saved[kInner];
    const at::Tensor* weights = &saved[kWeights];
    const int64_t D = x.size(-1), I = inner.size(1) / 2, rows = x.numel() / D;
    const at::Tensor d_out = grads[0].contiguous().view({rows, D});
    const DeviceScope device(x);

    at::Tensor d_inner = at::empty_like(inner), y, d_down;
    {
      const at::Tensor d_y = at::mm(d_out, saved[kDown]);
      y = at::empty_like(d_y);
      kernels::cuda::swiglu_backward({.rows = rows,
                                      .columns = I,
                                      .dtype = dtype_of(kOp, x.scalar_type()),
                                      .a = data(inner),
                                      .b = data(inner.narrow(1, I, I)),
                                      .stride = 2 * I,
                                      .d_y = data(d_y),
                                      .d_a = d_inner.data_ptr(),
                                      .d_b = d_inner.narrow(1, I, I).data_ptr(),
                                      .d_stride = 2 * I,
                                      .y = y.data_ptr()},
                                     device.stream());
    }
    d_down = product(d_out.t(), y, weights[3].scalar_type());
    y.reset();
    const at::Tensor d_n = at::mm(d_inner, saved[kPack]);
    const NormGradient d =
        rms_norm_rows_backward(x, saved[kNorm], ctx->saved_data["eps"].toDouble(), d_n, d_out);
    const auto d_pack =
        unpack_rows(product(d_inner.t(), d.n, weights[1].scalar_type()), {weights[1], weights[2]});
    return {d.d_x.view(x.sizes()),
            d.d_weight.to(weights[0].scalar_type()),
            d_pack[0],
            d_pack[1],
            d_down,
            at::Tensor()};
  }
};

}  // namespace

bool residual_mlp_supports(const at::Tensor& x, const ResidualMlp& weights) {
  return use_cuda_kernel(x) && weights.gate_proj.size(0) % 8 == 0 &&
         kernels::cuda::rms_norm_unsupported(dtype_of(kOp, x.scalar_type()), x.size(-1)).empty();
}

at::Tensor residual_mlp(const at::Tensor& x, const ResidualMlp& w, double eps) {
  MDN_CHECK(x.dim() >= 1 && x.numel() > 0, "{}: x is {}; it must have elements", kOp,
            shape_text(x));
  const int64_t D = x.size(-1), I = w.gate_proj.size(0);
  const TensorCheck check{kOp, x.device()};
  check(w.norm, "norm", {D}, w.norm.scalar_type());
  check(w.gate_proj, "gate_proj", {I, D}, w.gate_proj.scalar_type());
  check(w.up_proj, "up_proj", {I, D}, w.gate_proj.scalar_type());
  check(w.down_proj, "down_proj", {D, I}, w.down_proj.scalar_type());
  const variable_list weights = {w.norm, w.gate_proj, w.up_proj, w.down_proj};
  return FusedResidualMlp::apply(x, at::TensorList(weights), eps);
}

}  // namespace mdn::ops

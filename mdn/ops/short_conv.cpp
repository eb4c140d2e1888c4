#include "mdn/ops/short_conv.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "mdn/kernels/short_conv.h"
#include "mdn/ops/tensor.h"

namespace mdn::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

kernels::ShortConvProblem problem_of(const at::Tensor& x, const at::Tensor& weight,
                                     const std::optional<at::Tensor>& cu_seqlens) {
  kernels::ShortConvProblem p{.B = x.size(0), .T = x.size(1), .C = x.size(2), .W = weight.size(-1)};
  p.N = cu_seqlens ? cu_seqlens->numel() - 1 : p.B;
  p.cu_seqlens = static_cast<const int64_t*>(data(cu_seqlens));
  return p;
}

at::Tensor workspace_of(const kernels::ShortConvProblem& p) {
  return at::empty({static_cast<int64_t>(kernels::cpu::short_conv_workspace(p))}, at::kByte);
}

class Fused : public torch::autograd::Function<Fused> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x_in,
                            const at::Tensor& weight_in,
                            const std::optional<at::Tensor>& cu_seqlens) {
    const at::Tensor x = x_in.contiguous(), weight = weight_in.contiguous();
    ctx->save_for_backward({x, weight, cu_seqlens.value_or(at::Tensor())});
    const auto p = problem_of(x, weight, cu_seqlens);
    at::Tensor y = at::empty_like(x);
    const at::Tensor workspace = workspace_of(p);
    kernels::cpu::short_conv_forward(p, x.const_data_ptr<float>(), weight.const_data_ptr<float>(),
                                     y.mutable_data_ptr<float>(), workspace.data_ptr());
    return y;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    check_first_order("short_conv");
    const auto saved = ctx->get_saved_variables();
    const auto cu_seqlens = saved[2].defined() ? std::optional(saved[2]) : std::nullopt;
    const auto p = problem_of(saved[0], saved[1], cu_seqlens);
    const at::Tensor d_y = grads[0].contiguous();
    at::Tensor d_x = at::empty_like(saved[0]), d_weight = at::empty_like(saved[1]);
    const at::Tensor workspace = workspace_of(p);
    kernels::cpu::short_conv_backward(p, saved[0].const_data_ptr<float>(),
                                      saved[1].const_data_ptr<float>(), d_y.const_data_ptr<float>(),
                                      d_x.mutable_data_ptr<float>(),
                                      d_weight.mutable_data_ptr<float>(), workspace.data_ptr());
    return {d_x, d_weight, at::Tensor()};
  }
};

at::Tensor composite(const at::Tensor& x, const at::Tensor& weight,
                     const std::optional<at::Tensor>& cu_seqlens,
                     const std::optional<at::Tensor>& bias) {
  const int64_t T = x.size(1), W = weight.size(-1);
  const at::Tensor padded = at::constant_pad_nd(x, {0, 0, W - 1, 0});  // [B, W-1 + T, C]
  const at::Tensor taps = weight.squeeze(1).t();                       // [W, C]
  at::Tensor position;  // of each token in its sequence, [1, T, 1]
  if (cu_seqlens) {
    const at::Tensor starts = cu_seqlens->narrow(0, 0, cu_seqlens->numel() - 1);
    const at::Tensor lengths = cu_seqlens->diff();
    position = (at::arange(T, at::kLong) - starts.repeat_interleave(lengths, 0, T))
                   .view({1, T, 1})
                   .to(x.device());
  }
  at::Tensor a = bias.value_or(at::Tensor());
  for (int64_t w = 0; w < W; ++w) {
    const int64_t back = W - 1 - w;
    at::Tensor term = padded.narrow(1, w, T) * taps[w];
    if (cu_seqlens && back > 0) {
      term = term * (position >= back).to(x.scalar_type());
    }
    a = a.defined() ? a + term : term;
  }
  return at::silu(a);
}

}  // namespace

at::Tensor short_conv(const at::Tensor& x, const at::Tensor& weight,
                      const std::optional<at::Tensor>& cu_seqlens,
                      const std::optional<at::Tensor>& bias) {
  constexpr const char* kOp = "short_conv";
  MDN_CHECK(x.dim() == 3 && x.numel() > 0, "{}: x must be [B, T, C], got {}", kOp, shape_text(x));
  MDN_CHECK(weight.dim() == 3, "{}: weight must be [C, 1, W], got {}", kOp, shape_text(weight));
  const TensorCheck check{kOp, x.device()};
  check(weight, "weight", {x.size(2), 1, weight.size(2)}, x.scalar_type());
  check(bias, "bias", {x.size(2)}, x.scalar_type());
  const auto bounds =
      cu_seqlens ? std::optional(check_cu_seqlens(kOp, *cu_seqlens, x.size(0), x.size(1), at::kCPU))
                 : std::nullopt;
  return use_cpu_kernel(x) && !bias ? Fused::apply(x, weight, bounds)
                                    : composite(x, weight, bounds, bias);
}

}  // namespace mdn::ops

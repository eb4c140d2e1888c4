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
                                     const at::Tensor& cu_seqlens) {
  kernels::ShortConvProblem p{.B = x.size(0), .T = x.size(1), .C = x.size(2), .W = weight.size(-1)};
  p.N = cu_seqlens.defined() ? cu_seqlens.numel() - 1 : p.B;
  p.cu_seqlens = cu_seqlens.defined() ? cu_seqlens.const_data_ptr<int64_t>() : nullptr;
  return p;
}

// x as the forward pass kept it: columns of wider rows, or contiguous.
int64_t stride_of(const at::Tensor& x) {
  return row_stride(x, x.size(2)).value_or(x.size(2));
}

at::Tensor forward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                   const at::Tensor& cu_seqlens) {
  const auto p = problem_of(x, weight, cu_seqlens);
  at::Tensor y = at::empty(x.sizes(), x.options());
  if (y.is_cuda()) {
    const DeviceScope device(y);
    kernels::cuda::short_conv_forward({.problem = p,
                                       .dtype = dtype_of("short_conv", y.scalar_type()),
                                       .x = data(x),
                                       .x_stride = stride_of(x),
                                       .weight = floats(weight),
                                       .bias = floats(bias),
                                       .y = y.data_ptr(),
                                       .correction = {}},
                                      device.stream());
  } else {
    const at::Tensor workspace = workspace_like(y, kernels::cpu::short_conv_workspace(p));
    kernels::cpu::short_conv_forward(p, floats(x), floats(weight), floats(bias),
                                     y.mutable_data_ptr<float>(), workspace.data_ptr());
  }
  return y;
}

struct ShortConvGradients {
  at::Tensor d_x, d_weight, d_bias;
};

ShortConvGradients backward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                            const at::Tensor& cu_seqlens, const at::Tensor& d_y) {
  const auto p = problem_of(x, weight, cu_seqlens);
  ShortConvGradients d{gradient_of(x), at::empty_like(weight),
                       bias.defined() ? at::empty_like(bias) : at::Tensor()};
  float* d_bias = bias.defined() ? d.d_bias.mutable_data_ptr<float>() : nullptr;
  if (d_y.is_cuda()) {
    const DeviceScope device(d_y);
    const at::Tensor workspace =
        workspace_like(d_y, kernels::cuda::short_conv_backward_workspace(p));
    kernels::cuda::short_conv_backward({.problem = p,
                                        .dtype = dtype_of("short_conv", d_y.scalar_type()),
                                        .x = data(x),
                                        .x_stride = stride_of(x),
                                        .weight = floats(weight),
                                        .bias = floats(bias),
                                        .d_y = data(d_y),
                                        .d_x = d.d_x.data_ptr(),
                                        .d_x_stride = stride_of(d.d_x),
                                        .d_weight = d.d_weight.mutable_data_ptr<float>(),
                                        .d_bias = d_bias,
                                        .correction = {},
                                        .d_log_scale = nullptr,
                                        .workspace = workspace.data_ptr()},
                                       device.stream());
  } else {
    const at::Tensor workspace = workspace_like(d_y, kernels::cpu::short_conv_workspace(p));
    kernels::cpu::short_conv_backward(
        p, floats(x), floats(weight), floats(bias), floats(d_y), d.d_x.mutable_data_ptr<float>(),
        d.d_weight.mutable_data_ptr<float>(), d_bias, workspace.data_ptr());
  }
  return d;
}

class FusedShortConv : public torch::autograd::Function<FusedShortConv> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x_in,
                            const at::Tensor& weight_in,
                            const std::optional<at::Tensor>& cu_seqlens_in,
                            const std::optional<at::Tensor>& bias_in) {
    const auto wide = [](const at::Tensor& t) { return t.to(at::kFloat).contiguous(); };
    const at::Tensor x = row_stride(x_in, x_in.size(2)) ? x_in : x_in.contiguous();
    const at::Tensor weight = wide(weight_in), bias = bias_in ? wide(*bias_in) : at::Tensor();
    const at::Tensor cu_seqlens =
        cu_seqlens_in ? to_device(*cu_seqlens_in, x_in.device()) : at::Tensor();
    ctx->save_for_backward({x, weight, bias, cu_seqlens});
    ctx->saved_data["type"] = weight_in.scalar_type();
    return ops::forward(x, weight, bias, cu_seqlens);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    check_first_order("short_conv");
    const auto saved = ctx->get_saved_variables();
    const ShortConvGradients d =
        ops::backward(saved[0], saved[1], saved[2], saved[3], grads[0].contiguous());
    const auto type = ctx->saved_data["type"].toScalarType();
    return {d.d_x, d.d_weight.to(type), at::Tensor(),
            d.d_bias.defined() ? d.d_bias.to(type) : at::Tensor()};
  }
};

at::Tensor composite(const at::Tensor& x, const at::Tensor& weight,
                     const std::optional<at::Tensor>& cu_seqlens,
                     const std::optional<at::Tensor>& bias) {
  const int64_t T = x.size(1), W = weight.size(-1);
  const at::Tensor padded = at::constant_pad_nd(x, {0, 0, W - 1, 0});  // [B, W-1 + T, C]
  const at::Tensor taps = weight.to(x.scalar_type()).squeeze(1).t();   // [W, C]
  at::Tensor position;  // of each token in its sequence, [1, T, 1]
  if (cu_seqlens) {
    const at::Tensor starts = cu_seqlens->narrow(0, 0, cu_seqlens->numel() - 1);
    const at::Tensor lengths = cu_seqlens->diff();
    position = (at::arange(T, at::kLong) - starts.repeat_interleave(lengths, 0, T))
                   .view({1, T, 1})
                   .to(x.device());
  }
  at::Tensor a = bias ? bias->to(x.scalar_type()) : at::Tensor();
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
  check(weight, "weight", {x.size(2), 1, weight.size(2)}, weight.scalar_type());
  check(bias, "bias", {x.size(2)}, weight.scalar_type());
  const auto bounds =
      cu_seqlens ? std::optional(check_cu_seqlens(kOp, *cu_seqlens, x.size(0), x.size(1), at::kCPU))
                 : std::nullopt;
  const bool kernel =
      use_cpu_kernel(x) ||
      (use_cuda_kernel(x) &&
       kernels::cuda::short_conv_unsupported({.C = x.size(2), .W = weight.size(2)}).empty());
  return kernel ? FusedShortConv::apply(x, weight, bounds, bias)
                : composite(x, weight, bounds, bias);
}

at::Tensor short_conv_step(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& state,
                           const std::optional<at::Tensor>& bias) {
  constexpr const char* kOp = "short_conv_step";
  MDN_CHECK(x.dim() == 2 && x.numel() > 0, "{}: x must be [B, C], got {}", kOp, shape_text(x));
  MDN_CHECK(weight.dim() == 3, "{}: weight must be [C, 1, W], got {}", kOp, shape_text(weight));
  const int64_t B = x.size(0), C = x.size(1), W = weight.size(2);
  const TensorCheck check{kOp, x.device()};
  check(weight, "weight", {C, 1, W}, weight.scalar_type());
  check(bias, "bias", {C}, weight.scalar_type());
  check(state, "state", {B, W - 1, C}, x.scalar_type());
  const auto stride = row_stride(x, C);
  if (use_cuda_kernel(x) && stride && state.is_contiguous() &&
      kernels::cuda::short_conv_unsupported({.C = C, .W = W}).empty()) {
    const at::Tensor taps = weight.to(at::kFloat).contiguous();
    const at::Tensor offset = bias ? bias->to(at::kFloat).contiguous() : at::Tensor();
    at::Tensor y = at::empty({B, C}, x.options());
    const DeviceScope device(x);
    kernels::cuda::ShortConvStep call{
        .B = B, .W = W, .dtype = dtype_of(kOp, x.scalar_type()), .scale = nullptr};
    call.parts[0] = {.C = C,
                     .x = data(x),
                     .x_stride = *stride,
                     .weight = floats(taps),
                     .bias = floats(offset),
                     .state = state.data_ptr(),
                     .state_stride = C,
                     .y = y.data_ptr()};
    kernels::cuda::short_conv_step(call, device.stream());
    return y;
  }
  const at::Tensor all = at::cat({state, x.unsqueeze(1)}, 1);  // [B, W, C]
  const at::Tensor y = short_conv(all, weight, std::nullopt, bias).select(1, W - 1).contiguous();
  state.copy_(all.narrow(1, 1, W - 1));
  return y;
}

}  // namespace mdn::ops

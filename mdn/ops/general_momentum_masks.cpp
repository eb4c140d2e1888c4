#include "mdn/ops/general_momentum_masks.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "mdn/kernels/general_momentum_masks.h"
#include "mdn/ops/tensor.h"

namespace mdn::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

static_assert(kMaskTokens == kernels::cuda::kMaskTokens);

class FusedGeneralMomentumMasks : public torch::autograd::Function<FusedGeneralMomentumMasks> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& coefficients_in) {
    const at::Tensor x = coefficients_in.contiguous();
    ctx->save_for_backward({x});
    const int64_t m = x.size(1), C = kMaskTokens;
    variable_list y;
    for (const std::vector<int64_t>& shape : std::vector<std::vector<int64_t>>{
             {m, C, C}, {m, C, C}, {m, C, 2}, {m, C, 2}, {m, C, 2}, {m, 3}}) {
      y.push_back(at::empty(shape, x.options()));
    }
    const auto out = [&](size_t i) { return y[i].mutable_data_ptr<float>(); };
    const DeviceScope device(x);
    kernels::cuda::general_momentum_masks_forward({.chunks = m,
                                                   .coefficients = floats(x),
                                                   .G = out(0),
                                                   .H = out(1),
                                                   .from_states = out(2),
                                                   .read = out(3),
                                                   .to_states = out(4),
                                                   .ends = out(5)},
                                                  device.stream());
    return y;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    check_first_order("general_momentum_masks");
    const at::Tensor x = ctx->get_saved_variables()[0];
    variable_list d_y;
    for (const at::Tensor& grad : grads) {
      d_y.push_back(grad.contiguous());
    }
    const at::Tensor d_x = at::empty_like(x);
    const DeviceScope device(x);
    kernels::cuda::general_momentum_masks_backward(
        {.chunks = x.size(1),
         .coefficients = floats(x),
         .d_G = floats(d_y[0]),
         .d_H = floats(d_y[1]),
         .d_from_states = floats(d_y[2]),
         .d_read = floats(d_y[3]),
         .d_to_states = floats(d_y[4]),
         .d_ends = floats(d_y[5]),
         .d_coefficients = d_x.mutable_data_ptr<float>()},
        device.stream());
    return {d_x};
  }
};

/// For a run of tokens: the coefficients with which a write (column j) and the states before the
/// run act on M (Mu, m), on S (G; a, b with -b that of M) and on predictions (H; e, c with -c).
struct RunMasks {
  at::Tensor Mu, G, H;       // [m, runs, L, L], lower triangular (H: strictly)
  at::Tensor m, a, b, e, c;  // [m, runs, L]
};

/// Doubles the run until it is a chunk. With 1 and 2 being neighbouring runs, and g, n, a', b', m'
/// the last rows and entries of the first:
///   Mu21 = m2 nᵀ,   G21 = a2 gᵀ + b2 nᵀ,   H21 = e2 gᵀ + c2 nᵀ
///   m2 m',   a2 a',   a2 b' + b2 m',   e2 a',   e2 b' + c2 m'   in place of m2, a2, b2, e2, c2
GeneralMomentumMasks doubled(const at::Tensor& coefficients) {
  const int64_t count = coefficients.size(1), C = kMaskTokens;
  const auto of = coefficients.unsqueeze(-1).unbind(0);  // [m, C, 1]
  const at::Tensor &alpha = of[0], &mu = of[1], &beta = of[3], &kappa = of[4], &lambda = of[5],
                   &pi = of[6];
  const at::Tensor eta = of[2].transpose(1, 2);  // scales columns
  RunMasks x{.Mu = at::ones({count, C, 1, 1}, alpha.options()),
             .G = beta.unsqueeze(-1),
             .H = at::zeros({count, C, 1, 1}, alpha.options()),
             .m = mu,
             .a = alpha,
             .b = kappa,
             .e = pi,
             .c = lambda};
  for (int64_t length = 1; length < C; length *= 2) {
    const auto first = [](const at::Tensor& t) { return t.slice(1, 0, std::nullopt, 2); };
    const auto second = [](const at::Tensor& t) { return t.slice(1, 1, std::nullopt, 2); };
    const auto last = [&](const at::Tensor& t) { return first(t).narrow(2, length - 1, 1); };
    const auto square = [&](const at::Tensor& t, const at::Tensor& below) {
      const at::Tensor upper = at::cat({first(t), at::zeros_like(below)}, 3);
      return at::cat({upper, at::cat({below, second(t)}, 3)}, 2);
    };
    const auto column = [&](const at::Tensor& t) { return second(t).unsqueeze(-1); };
    const auto row = [&](const at::Tensor& t, const at::Tensor& of_second) {
      return at::cat({first(t), of_second}, 2);
    };
    const at::Tensor g = last(x.G), n = last(x.Mu), a = last(x.a), b = last(x.b), m = last(x.m);
    x = {.Mu = square(x.Mu, column(x.m) * n),
         .G = square(x.G, column(x.a) * g + column(x.b) * n),
         .H = square(x.H, column(x.e) * g + column(x.c) * n),
         .m = row(x.m, second(x.m) * m),
         .a = row(x.a, second(x.a) * a),
         .b = row(x.b, second(x.a) * b + second(x.b) * m),
         .e = row(x.e, second(x.e) * a),
         .c = row(x.c, second(x.e) * b + second(x.c) * m)};
  }
  const auto end = [&](const at::Tensor& t) { return t.squeeze(1).select(1, C - 1); };
  const at::Tensor G = x.G.squeeze(1) * eta, Mu_end = end(x.Mu) * eta.squeeze(1);
  return {.G = G,
          .H = x.H.squeeze(1) * eta,
          .from_states = at::stack({-x.e.squeeze(1), x.c.squeeze(1)}, -1),
          .read = at::stack({x.a.squeeze(1), -x.b.squeeze(1)}, -1),
          .to_states = at::stack({G.select(1, C - 1), -Mu_end}, -1),
          .ends = at::stack({end(x.a), -end(x.b), end(x.m)}, -1)};
}

}  // namespace

GeneralMomentumMasks general_momentum_masks(const at::Tensor& coefficients) {
  constexpr const char* kOp = "general_momentum_masks";
  MDN_CHECK(coefficients.dim() == 3, "{}: coefficients must be [7, chunks, {}], got {}", kOp,
            kMaskTokens, shape_text(coefficients));
  TensorCheck{kOp, coefficients.device()}(
      coefficients, "coefficients",
      {kernels::cuda::kMaskCoefficients, coefficients.size(1), kMaskTokens},
      coefficients.scalar_type());
  if (coefficients.is_cuda() && coefficients.scalar_type() == at::kFloat) {
    const auto y = FusedGeneralMomentumMasks::apply(coefficients);
    return {y[0], y[1], y[2], y[3], y[4], y[5]};
  }
  return doubled(coefficients);
}

}  // namespace mdn::ops

#include "mdn/ops/residual_momentum_deltanet.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>

#include <limits>

#include "mdn/kernels/rms_norm.h"
#include "mdn/kernels/short_conv.h"
#include "mdn/ops/gemm.h"
#include "mdn/ops/momentum_block.h"
#include "mdn/ops/momentum_delta_rule.h"
#include "mdn/ops/residual.h"
#include "mdn/ops/tensor.h"

namespace mdn::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Options = ResidualMomentumDeltaNetOptions;

constexpr const char* kOp = "residual_momentum_deltanet";

using Block = MomentumBlock;

std::optional<at::Tensor> given(const at::Tensor& x) {
  return x.defined() ? std::optional(x) : std::nullopt;
}

at::Tensor one_pi(const Options& o, const MomentumGates& gates) {
  return o.predict_with_alpha ? at::Tensor() : at::ones_like(gates.alpha);
}

// Saved for the backward pass, before the weights.
enum Saved {
  kX,
  kProjected,
  kOutput,
  kOperator,
  kAlpha,
  kMu,
  kEta,
  kBeta,
  kPack,
  kPackO,
  kCu,
  kDeviceCu,
  kSavedWeights
};

void keep_options(AutogradContext* ctx, const Options& o) {
  ctx->saved_data["sizes"] = std::vector<int64_t>{o.H, o.HV, o.K, o.V};
  ctx->saved_data["numbers"] = std::vector<double>{
      o.tau, o.eps, o.min_log_mu.value_or(-std::numeric_limits<double>::infinity())};
  ctx->saved_data["predict_with_alpha"] = o.predict_with_alpha;
}

Options kept_options(AutogradContext* ctx) {
  const auto sizes = ctx->saved_data["sizes"].toIntVector();
  const auto numbers = ctx->saved_data["numbers"].toDoubleVector();
  return {.H = sizes[0],
          .HV = sizes[1],
          .K = sizes[2],
          .V = sizes[3],
          .predict_with_alpha = ctx->saved_data["predict_with_alpha"].toBool(),
          .min_log_mu = numbers[2],
          .tau = numbers[0],
          .eps = numbers[1]};
}

class FusedResidualMomentumDeltanet
    : public torch::autograd::Function<FusedResidualMomentumDeltanet> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x_in, at::TensorList weights,
                            const Options& o, const std::optional<at::Tensor>& cu_seqlens,
                            bool recording) {
    static const auto op =
        c10::Dispatcher::singleton()
            .findSchemaOrThrow("mdn::momentum_delta_rule_forward", "")
            .typed<std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>(
                const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                const std::optional<at::Tensor>&, const at::Tensor&, const at::Tensor&,
                const std::optional<at::Tensor>&, const std::optional<at::Tensor>&,
                const std::optional<at::Tensor>&, const std::optional<at::Tensor>&,
                std::optional<double>, bool, bool)>();
    const at::Tensor x = x_in.contiguous();
    const at::ScalarType type = x.scalar_type();
    const at::Tensor device_cu = cu_seqlens ? to_device(*cu_seqlens, x.device()) : at::Tensor();
    const DeviceScope device(x);
    const Block block(o, x, weights.vec(), device_cu, device.stream());

    const at::Tensor pack =
        pack_rows(weights.slice(Block::kQ, Block::kProjections).vec(), type, kRowMultiple);
    const at::Tensor projected = at::mm(rms_norm_rows(x, block.norm(), o.eps, type), pack.t());
    const MomentumGates gates = block.gates(projected);
    at::Tensor y, S, M, of_operator;
    {
      const Block::Mixed in = block.mix(projected);
      std::tie(y, S, M, of_operator) = op.call(
          in.q, in.k, in.v, gates.alpha, gates.mu, gates.eta, gates.beta, given(one_pi(o, gates)),
          std::nullopt, std::nullopt, cu_seqlens, std::nullopt, true, recording);
    }
    const at::Tensor pack_o = pack_rows({weights[Block::kOProj]}, type);
    at::Tensor out = at::mm(block.gated_norm(projected, y), pack_o.t()).view(x.sizes());
    out.add_(x);
    if (recording) {
      variable_list saved = {x,
                             projected,
                             y,
                             of_operator,
                             gates.alpha,
                             gates.mu,
                             gates.eta,
                             gates.beta,
                             pack,
                             pack_o,
                             cu_seqlens.value_or(at::Tensor()),
                             device_cu};
      saved.insert(saved.end(), weights.begin(), weights.end());
      ctx->save_for_backward(std::move(saved));
      keep_options(ctx, o);
    }
    return out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    check_first_order(kOp);
    using OptionalTensor = std::optional<at::Tensor>;
    using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor,
                                 at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
    static const auto op =
        c10::Dispatcher::singleton()
            .findSchemaOrThrow("mdn::momentum_delta_rule_backward", "")
            .typed<Gradients(const at::Tensor&, const at::Tensor&, const OptionalTensor&,
                             const OptionalTensor&, const at::Tensor&, const at::Tensor&,
                             const at::Tensor&, const at::Tensor&, const OptionalTensor&,
                             const at::Tensor&, const at::Tensor&, const OptionalTensor&,
                             const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
                             std::optional<double>, bool)>();
    const auto saved = ctx->get_saved_variables();
    const Options o = kept_options(ctx);
    const at::Tensor &x = saved[kX], &projected = saved[kProjected];
    const DeviceScope device(x);
    const Block block(o, x, {saved.begin() + kSavedWeights, saved.end()}, saved[kDeviceCu],
                      device.stream());
    const MomentumGates gates{saved[kAlpha], saved[kMu], saved[kEta], saved[kBeta]};
    const Block::Columns& columns = block.columns();
    const at::Tensor d_out = grads[0].contiguous().view({block.rows(), x.size(2)});
    variable_list d(Block::kWeights);

    // The padding columns meet weights of zero in the products, where a NaN would still spread.
    const at::Tensor d_projected = at::empty_like(projected);
    d_projected.narrow(1, columns.used, columns.all - columns.used).zero_();
    at::Tensor d_y;
    {
      const at::Tensor d_z = at::mm(d_out, saved[kPackO]);
      auto of = block.gated_norm_backward(projected, saved[kOutput], d_z, d_projected, d);
      d_y = std::move(of.d_y);
      d[Block::kOProj] = product(d_out.t(), of.z, block.weight(Block::kOProj).scalar_type());
    }
    {
      Block::Mixed d_mixed;
      MomentumGates d_gates;
      {
        const Block::Mixed in = block.mix(projected);
        std::tie(d_mixed.q, d_mixed.k, d_mixed.v, d_gates.alpha, d_gates.mu, d_gates.eta,
                 d_gates.beta, std::ignore, std::ignore, std::ignore) =
            op.call(saved[kOperator], d_y, std::nullopt, std::nullopt, in.q, in.k, in.v,
                    gates.alpha, gates.mu, gates.eta, gates.beta, given(one_pi(o, gates)),
                    std::nullopt, std::nullopt, given(saved[kCu]), std::nullopt, true);
      }
      d_y.reset();
      block.mix_backward(projected, d_mixed, d_projected, d);
      block.gates_backward(projected, d_gates, d_projected, d);
    }
    at::Tensor d_x;
    {
      const at::Tensor d_n = at::mm(d_projected, saved[kPack]);
      const NormGradient of = rms_norm_rows_backward(x, block.norm(), o.eps, d_n, d_out);
      d_x = of.d_x.view(x.sizes());
      d[Block::kNorm] = of.d_weight;
      const auto first = saved.begin() + kSavedWeights + Block::kQ;
      const auto parts = unpack_rows(product(d_projected.t(), of.n, first->scalar_type()),
                                     {first, first + Block::kProjections});
      std::copy(parts.begin(), parts.end(), d.begin() + Block::kQ);
    }
    variable_list result = {d_x};
    for (int i = 0; i < Block::kWeights; ++i) {
      result.push_back(d[i].defined() ? d[i].to(saved[kSavedWeights + i].scalar_type())
                                      : at::Tensor());
    }
    for (int i = 0; i < 3; ++i) {  // options, cu_seqlens, recording
      result.emplace_back();
    }
    return result;
  }
};

}  // namespace

bool residual_momentum_deltanet_supports(const at::Tensor& x, const ResidualMomentumDeltaNet& w,
                                         const Options& o) {
  if (!use_cuda_kernel(x) || !w.q_conv1d.defined() || !w.g_proj.defined()) {
    return false;
  }
  const DType dtype = dtype_of(kOp, x.scalar_type());
  const int64_t W = w.q_conv1d.size(2);
  using namespace kernels::cuda;
  return o.K % 8 == 0 && rms_norm_unsupported(dtype, x.size(-1)).empty() &&
         rms_norm_unsupported(dtype, o.V).empty() &&
         short_conv_unsupported({.C = o.H * o.K, .W = W}).empty() &&
         short_conv_unsupported({.C = o.HV * o.V, .W = W}).empty();
}

at::Tensor residual_momentum_deltanet(const at::Tensor& x, const ResidualMomentumDeltaNet& w,
                                      const Options& o,
                                      const std::optional<at::Tensor>& cu_seqlens) {
  MDN_CHECK(x.dim() == 3 && x.numel() > 0, "{}: x must be [B, T, D], got {}", kOp, shape_text(x));
  const int64_t D = x.size(2), key = o.H * o.K, value = o.HV * o.V;
  const TensorCheck check{kOp, x.device()};
  const auto matrix = w.q_proj.scalar_type();
  const auto weight = [&](const at::Tensor& t, const char* name, at::IntArrayRef shape) {
    check(t, name, shape, matrix);
  };
  weight(w.q_proj, "q_proj", {key, D});
  weight(w.k_proj, "k_proj", {key, D});
  weight(w.v_proj, "v_proj", {value, D});
  weight(w.g_proj, "g_proj", {value, D});
  weight(w.a_proj, "a_proj", {o.HV, D});
  weight(w.b_proj, "b_proj", {o.HV, D});
  weight(w.m_proj, "m_proj", {o.HV, D});
  weight(w.e_proj, "e_proj", {o.HV, D});
  weight(w.o_proj, "o_proj", {D, value});
  const int64_t W = w.q_conv1d.size(-1);
  weight(w.q_conv1d, "q_conv1d", {key, 1, W});
  weight(w.k_conv1d, "k_conv1d", {key, 1, W});
  weight(w.v_conv1d, "v_conv1d", {value, 1, W});
  weight(w.norm, "norm", {D});
  weight(w.o_norm, "o_norm", {o.V});
  weight(w.A_log, "A_log", {o.H});
  weight(w.Mu_log, "Mu_log", {o.H});
  weight(w.log_factor, "log_factor", {o.H});
  weight(w.dt_bias, "dt_bias", {o.HV});
  weight(w.mu_bias, "mu_bias", {o.HV});
  if (w.D_log.defined()) {
    weight(w.D_log, "D_log", {o.H});
  }
  const auto bounds =
      cu_seqlens ? std::optional(check_cu_seqlens(kOp, *cu_seqlens, x.size(0), x.size(1), at::kCPU))
                 : std::nullopt;
  const variable_list weights = Block::list_of(w);
  return FusedResidualMomentumDeltanet::apply(x, at::TensorList(weights), o, bounds,
                                              at::GradMode::is_enabled());
}

}  // namespace mdn::ops

#include "mdn/ops/residual_momentum_deltanet.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>

#include <limits>

#include "mdn/kernels/momentum_gates.h"
#include "mdn/kernels/rms_norm.h"
#include "mdn/kernels/short_conv.h"
#include "mdn/ops/gemm.h"
#include "mdn/ops/momentum_delta_rule.h"
#include "mdn/ops/momentum_gates.h"
#include "mdn/ops/residual.h"
#include "mdn/ops/tensor.h"

namespace mdn::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Options = ResidualMomentumDeltaNetOptions;

constexpr const char* kOp = "residual_momentum_deltanet";

// The weights in the order in which autograd sees them.
enum Weight {
  kNorm,
  kQ,
  kK,
  kV,
  kG,
  kA,
  kB,
  kM,
  kE,
  kQConv,
  kKConv,
  kVConv,
  kALog,
  kMuLog,
  kLogFactor,
  kDtBias,
  kMuBias,
  kDLog,
  kONorm,
  kOProj,
  kWeights
};
constexpr int kProjections = 8;  // kQ to kE: the packed ones, in the order of their columns

// A weight that is not there is of no elements: autograd asks each for its device.
variable_list list_of(const ResidualMomentumDeltaNet& w) {
  const at::Tensor D_log = w.D_log.defined() ? w.D_log : w.A_log.new_empty({0});
  return {w.norm,       w.q_proj,  w.k_proj,   w.v_proj,   w.g_proj,   w.a_proj, w.b_proj,
          w.m_proj,     w.e_proj,  w.q_conv1d, w.k_conv1d, w.v_conv1d, w.A_log,  w.Mu_log,
          w.log_factor, w.dt_bias, w.mu_bias,  D_log,      w.o_norm,   w.o_proj};
}

// Which columns of the packed projections are whose.
struct Columns {
  int64_t q, k, v, g, a, b, m, e, used, all;

  explicit Columns(const Options& o) {
    const int64_t key = o.H * o.K, value = o.HV * o.V;
    q = 0;
    k = q + key;
    v = k + key;
    g = v + value;
    a = g + value;
    b = a + o.HV;
    m = b + o.HV;
    e = m + o.HV;
    used = e + o.HV;
    all = (used + kRowMultiple - 1) / kRowMultiple * kRowMultiple;
  }
};

// What a call computes with: small parameters in float32, addresses within the projections.
struct Block {
  Options options;
  int64_t B, T, D;
  Columns columns;
  DType dtype;
  variable_list w;        // as given
  at::Tensor cu_seqlens;  // on the device, or undefined
  variable_list floats;   // of w: those that kernels read as float32

  Block(const Options& o, const at::Tensor& x, variable_list weights, at::Tensor cu)
      : options(o),
        B(x.size(0)),
        T(x.size(1)),
        D(x.size(2)),
        columns(o),
        dtype(dtype_of(kOp, x.scalar_type())),
        w(std::move(weights)),
        cu_seqlens(std::move(cu)),
        floats(kWeights) {
    for (const int i : {kNorm, kQConv, kKConv, kVConv, kALog, kMuLog, kLogFactor, kDtBias, kMuBias,
                        kDLog, kONorm}) {
      floats[i] = w[i].detach().to(at::kFloat).contiguous();
    }
  }

  int64_t rows() const { return B * T; }
  bool corrects() const { return w[kDLog].numel() > 0; }
  const float* numbers(int i) const { return floats[i].const_data_ptr<float>(); }

  kernels::ShortConvProblem convolution(int64_t channels) const {
    kernels::ShortConvProblem p{.B = B, .T = T, .C = channels, .W = w[kQConv].size(2)};
    p.N = cu_seqlens.defined() ? cu_seqlens.numel() - 1 : B;
    p.cu_seqlens = cu_seqlens.defined() ? cu_seqlens.const_data_ptr<int64_t>() : nullptr;
    return p;
  }
  kernels::MomentumGatesProblem gates() const {
    return {.tokens = rows(),
            .H = options.H,
            .HV = options.HV,
            .dtype = dtype,
            .tau = options.tau,
            .min_log_mu = options.min_log_mu.value_or(-std::numeric_limits<double>::infinity())};
  }
  kernels::MomentumGatesParameters gate_parameters() const {
    return {.A_log = numbers(kALog),
            .Mu_log = numbers(kMuLog),
            .log_factor = numbers(kLogFactor),
            .dt_bias = numbers(kDtBias),
            .mu_bias = numbers(kMuBias)};
  }
  const void* at(const at::Tensor& projected, int64_t column) const {
    return projected.narrow(1, column, 1).const_data_ptr();
  }
  void* at_mutable(const at::Tensor& projected, int64_t column) const {
    return projected.narrow(1, column, 1).data_ptr();
  }
  kernels::MomentumGatesProjections gate_projections(const at::Tensor& projected) const {
    return {.a = at(projected, columns.a),
            .b = at(projected, columns.b),
            .m = at(projected, columns.m),
            .e = at(projected, columns.e),
            .stride = columns.all};
  }
  kernels::cuda::RmsNormGate output_gate(const at::Tensor& projected) const {
    return {.data = at(projected, columns.g), .heads = options.HV, .stride = columns.all};
  }
};

// silu(conv(.)) of `channels` columns of the projections, less exp(log_scale) minus where given.
at::Tensor convolve(const Block& block, const at::Tensor& projected, int64_t column, int conv,
                    int64_t heads, int64_t channels, const at::Tensor& minus, void* stream) {
  at::Tensor y = at::empty({block.B, block.T, heads, channels}, projected.options());
  kernels::cuda::ShortConvForward call{.problem = block.convolution(heads * channels),
                                       .dtype = block.dtype,
                                       .x = block.at(projected, column),
                                       .x_stride = block.columns.all,
                                       .weight = block.numbers(conv),
                                       .y = y.data_ptr(),
                                       .correction = {}};
  if (minus.defined()) {
    call.correction = {
        .minus = data(minus), .log_scale = block.numbers(kDLog), .channels = channels};
  }
  kernels::cuda::short_conv_forward(call, stream);
  return y;
}

struct ConvGradient {
  at::Tensor d_weight, d_log_scale;
};

// Writes the gradient of the same columns into d_projected; `minus` is the gradient of q where k's
// convolution is meant.
ConvGradient convolve_backward(const Block& block, const at::Tensor& projected,
                               const at::Tensor& d_projected, int64_t column, int conv,
                               const at::Tensor& d_y, const at::Tensor& minus, void* stream) {
  const int64_t channels = d_y.size(2) * d_y.size(3);
  const auto problem = block.convolution(channels);
  ConvGradient d{at::empty_like(block.floats[conv]), {}};
  const at::Tensor workspace =
      workspace_like(projected, kernels::cuda::short_conv_backward_workspace(problem));
  kernels::cuda::ShortConvBackward call{.problem = problem,
                                        .dtype = block.dtype,
                                        .x = block.at(projected, column),
                                        .x_stride = block.columns.all,
                                        .weight = block.numbers(conv),
                                        .d_y = data(d_y),
                                        .d_x = block.at_mutable(d_projected, column),
                                        .d_x_stride = block.columns.all,
                                        .d_weight = d.d_weight.mutable_data_ptr<float>(),
                                        .correction = {},
                                        .d_log_scale = nullptr,
                                        .workspace = workspace.data_ptr()};
  if (minus.defined()) {
    d.d_log_scale = at::empty_like(block.floats[kDLog]);
    call.correction = {
        .minus = data(minus), .log_scale = block.numbers(kDLog), .channels = d_y.size(3)};
    call.d_log_scale = d.d_log_scale.mutable_data_ptr<float>();
  }
  kernels::cuda::short_conv_backward(call, stream);
  return d;
}

// The operator's inputs.
struct Mixed {
  at::Tensor q, k, v;
};

Mixed mix(const Block& block, const at::Tensor& projected, void* stream) {
  const Options& o = block.options;
  Mixed y;
  y.k = convolve(block, projected, block.columns.k, kKConv, o.H, o.K, {}, stream);
  y.q = convolve(block, projected, block.columns.q, kQConv, o.H, o.K,
                 block.corrects() ? y.k : at::Tensor(), stream);
  y.v = convolve(block, projected, block.columns.v, kVConv, o.HV, o.V, {}, stream);
  return y;
}

MomentumGates make_gates(const Block& block, const at::Tensor& projected, void* stream) {
  const auto make = [&] {
    return at::empty({block.B, block.T, block.options.HV}, block.floats[kNorm].options());
  };
  MomentumGates y{make(), make(), make(), make()};
  kernels::cuda::momentum_gates_forward({.problem = block.gates(),
                                         .parameters = block.gate_parameters(),
                                         .projections = block.gate_projections(projected),
                                         .alpha = y.alpha.mutable_data_ptr<float>(),
                                         .mu = y.mu.mutable_data_ptr<float>(),
                                         .eta = y.eta.mutable_data_ptr<float>(),
                                         .beta = y.beta.mutable_data_ptr<float>()},
                                        stream);
  return y;
}

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
    const Block block(o, x, weights.vec(), device_cu);
    const DeviceScope device(x);
    void* stream = device.stream();

    const at::Tensor pack = pack_rows(weights.slice(kQ, kProjections).vec(), type, kRowMultiple);
    const at::Tensor projected =
        at::mm(rms_norm_rows(x, block.floats[kNorm], o.eps, type), pack.t());
    const MomentumGates gates = make_gates(block, projected, stream);
    at::Tensor y, S, M, of_operator;
    {
      const Mixed in = mix(block, projected, stream);
      std::tie(y, S, M, of_operator) = op.call(
          in.q, in.k, in.v, gates.alpha, gates.mu, gates.eta, gates.beta, given(one_pi(o, gates)),
          std::nullopt, std::nullopt, cu_seqlens, std::nullopt, true, recording);
    }
    at::Tensor z = at::empty({block.rows(), o.HV * o.V}, x.options());
    kernels::cuda::rms_norm_forward({.rows = block.rows() * o.HV,
                                     .D = o.V,
                                     .eps = o.eps,
                                     .dtype = block.dtype,
                                     .x = data(y),
                                     .gate = block.output_gate(projected),
                                     .weight = block.numbers(kONorm),
                                     .y = z.data_ptr()},
                                    stream);
    const at::Tensor pack_o = pack_rows({weights[kOProj]}, type);
    at::Tensor out = at::mm(z, pack_o.t()).view(x.sizes());
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
    const Block block(o, x, {saved.begin() + kSavedWeights, saved.end()}, saved[kDeviceCu]);
    const MomentumGates gates{saved[kAlpha], saved[kMu], saved[kEta], saved[kBeta]};
    const DeviceScope device(x);
    void* stream = device.stream();
    const Columns& columns = block.columns;
    const auto& w = block.w;
    const at::Tensor d_out = grads[0].contiguous().view({block.rows(), block.D});
    variable_list d(kWeights);

    // The padding columns meet weights of zero in the products, where a NaN would still spread.
    const at::Tensor d_projected = at::empty_like(projected);
    d_projected.narrow(1, columns.used, columns.all - columns.used).zero_();
    at::Tensor d_y = at::empty_like(saved[kOutput]);
    {
      const at::Tensor d_z = at::mm(d_out, saved[kPackO]);
      const at::Tensor z = at::empty_like(d_z);
      const int64_t rows = block.rows() * o.HV;
      d[kONorm] = at::empty_like(block.floats[kONorm]);
      const at::Tensor workspace =
          workspace_like(x, kernels::cuda::rms_norm_backward_workspace(rows, o.V));
      kernels::cuda::rms_norm_backward({.rows = rows,
                                        .D = o.V,
                                        .eps = o.eps,
                                        .dtype = block.dtype,
                                        .x = data(saved[kOutput]),
                                        .gate = block.output_gate(projected),
                                        .weight = block.numbers(kONorm),
                                        .d_y = data(d_z),
                                        .d_x = d_y.data_ptr(),
                                        .d_gate = block.at_mutable(d_projected, columns.g),
                                        .d_gate_stride = columns.all,
                                        .y = z.data_ptr(),
                                        .d_weight = d[kONorm].mutable_data_ptr<float>(),
                                        .workspace = workspace.data_ptr()},
                                       stream);
      d[kOProj] = product(d_out.t(), z, w[kOProj].scalar_type());
    }
    {
      at::Tensor d_q, d_k, d_v, d_alpha, d_mu, d_eta, d_beta;
      {
        const Mixed in = mix(block, projected, stream);
        std::tie(d_q, d_k, d_v, d_alpha, d_mu, d_eta, d_beta, std::ignore, std::ignore,
                 std::ignore) =
            op.call(saved[kOperator], d_y, std::nullopt, std::nullopt, in.q, in.k, in.v,
                    gates.alpha, gates.mu, gates.eta, gates.beta, given(one_pi(o, gates)),
                    std::nullopt, std::nullopt, given(saved[kCu]), std::nullopt, true);
      }
      d_y.reset();
      const auto convolution = [&](int64_t column, int conv, const at::Tensor& d_of,
                                   const at::Tensor& minus) {
        const ConvGradient of =
            convolve_backward(block, projected, d_projected, column, conv, d_of, minus, stream);
        d[conv] = of.d_weight;
        if (minus.defined()) {
          d[kDLog] = of.d_log_scale;
        }
      };
      convolution(columns.q, kQConv, d_q, {});
      convolution(columns.k, kKConv, d_k, block.corrects() ? d_q : at::Tensor());
      convolution(columns.v, kVConv, d_v, {});

      const auto problem = block.gates();
      const at::Tensor d_parameters = at::empty({5, o.HV}, d_alpha.options());
      const at::Tensor workspace =
          workspace_like(x, kernels::cuda::momentum_gates_backward_workspace(problem));
      kernels::cuda::momentum_gates_backward(
          {.problem = problem,
           .parameters = block.gate_parameters(),
           .projections = block.gate_projections(projected),
           .d_alpha = d_alpha.const_data_ptr<float>(),
           .d_mu = d_mu.const_data_ptr<float>(),
           .d_eta = d_eta.const_data_ptr<float>(),
           .d_beta = d_beta.const_data_ptr<float>(),
           .d_a = block.at_mutable(d_projected, columns.a),
           .d_b = block.at_mutable(d_projected, columns.b),
           .d_m = block.at_mutable(d_projected, columns.m),
           .d_e = block.at_mutable(d_projected, columns.e),
           .d_stride = columns.all,
           .d_parameters = d_parameters.mutable_data_ptr<float>(),
           .workspace = workspace.data_ptr()},
          stream);
      const auto of = gate_parameter_gradients(d_parameters, o.H, w[kALog].scalar_type());
      std::copy(of.begin(), of.end(), d.begin() + kALog);
    }
    at::Tensor d_x;
    {
      const at::Tensor d_n = at::mm(d_projected, saved[kPack]);
      const NormGradient of = rms_norm_rows_backward(x, block.floats[kNorm], o.eps, d_n, d_out);
      d_x = of.d_x.view(x.sizes());
      d[kNorm] = of.d_weight;
      const auto parts = unpack_rows(product(d_projected.t(), of.n, w[kQ].scalar_type()),
                                     {w.begin() + kQ, w.begin() + kQ + kProjections});
      std::copy(parts.begin(), parts.end(), d.begin() + kQ);
    }
    variable_list result = {d_x};
    for (int i = 0; i < kWeights; ++i) {
      result.push_back(d[i].defined() ? d[i].to(w[i].scalar_type()) : at::Tensor());
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
  const variable_list weights = list_of(w);
  return FusedResidualMomentumDeltanet::apply(x, at::TensorList(weights), o, bounds,
                                              at::GradMode::is_enabled());
}

}  // namespace mdn::ops

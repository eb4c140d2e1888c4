#include "mdn/generate/device_mixer.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>

#include "mdn/kernels/attention_step.h"
#include "mdn/kernels/comba_prediction.h"
#include "mdn/kernels/decay_gates.h"
#include "mdn/kernels/kimi_delta_rule.h"
#include "mdn/kernels/momentum_delta_rule.h"
#include "mdn/kernels/momentum_gates.h"
#include "mdn/kernels/rms_norm.h"
#include "mdn/kernels/short_conv.h"
#include "mdn/ops/gemm.h"
#include "mdn/ops/tensor.h"

namespace mdn::generate {
namespace {

constexpr int64_t kMaxChannels = 512;  // of the operators' steps
constexpr double kNoLimit = std::numeric_limits<double>::infinity();

bool convolves(int64_t channels, int64_t W) {
  return kernels::cuda::short_conv_unsupported({.C = channels, .W = W}).empty();
}

bool norms(DType dtype, int64_t D) {
  return kernels::cuda::rms_norm_unsupported(dtype, D).empty();
}

bool has_kernels(const layers::HeadOptions& o, DType dtype) {
  return o.use_short_conv && o.head_dim <= kMaxChannels && o.value_dim <= kMaxChannels &&
         convolves(o.keys(), o.conv_size) && convolves(o.values(), o.conv_size) &&
         norms(dtype, o.value_dim);
}

bool has_kernels(const layers::KimiDeltaAttentionOptions& o, DType dtype) {
  return !o.lower_bound && has_kernels(static_cast<const layers::HeadOptions&>(o), dtype);
}

bool has_kernels(const layers::AttentionOptions& o, DType dtype) {
  return kernels::cuda::attention_step_unsupported(dtype, o.head_dim).empty();
}

bool has_kernels(const layers::Mamba2Options& o, DType dtype) {
  return !o.bias && o.norm && !o.norm_before_gate && o.num_groups == 1 &&
         o.state_size <= kMaxChannels && o.head_dim <= kMaxChannels &&
         convolves(o.inner(), o.conv_size) && convolves(o.state_size, o.conv_size) &&
         norms(dtype, o.inner());
}

// What the layers with heads have in common.
template <class Weights>
MixerNumbers numbers_of_heads(const Weights& w) {
  MixerNumbers n;
  n.q_conv = wide(w.qkv.q_conv1d);
  n.k_conv = wide(w.qkv.k_conv1d);
  n.v_conv = wide(w.qkv.v_conv1d);
  n.A_log = wide(w.A_log);
  n.dt_bias = wide(w.dt_bias);
  n.o_norm = wide(w.output.o_norm);
  return n;
}

MixerNumbers numbers_of(const layers::MomentumDeltaNet& mixer) {
  const auto& w = mixer.weights;
  MixerNumbers n = numbers_of_heads(w);
  n.correction = w.D_log.defined() ? wide(w.D_log).exp() : w.D_log;
  n.Mu_log = wide(w.Mu_log);
  n.mu_bias = wide(w.mu_bias);
  n.log_factor = wide(w.log_factor);
  return n;
}

MixerNumbers numbers_of(const layers::GatedDeltaNet& mixer) {
  return numbers_of_heads(mixer.weights);
}

MixerNumbers numbers_of(const layers::Comba& mixer) {
  const auto& w = mixer.weights;
  MixerNumbers n = numbers_of_heads(w);
  n.key_scale = wide(w.decay).sigmoid();
  n.correction = wide(w.D) * n.key_scale;
  return n;
}

MixerNumbers numbers_of(const layers::KimiDeltaAttention& mixer) {
  return numbers_of_heads(mixer.weights);
}

MixerNumbers numbers_of(const layers::Mamba2& mixer) {
  const auto& [o, w] = mixer;
  const std::vector<int64_t> sizes = {o.inner(), o.state_size, o.state_size};  // x, B, C
  const auto conv = wide(w.conv1d).split_with_sizes(sizes);
  MixerNumbers n;
  n.v_conv = conv[0];
  n.k_conv = conv[1];
  n.q_conv = conv[2];
  if (w.conv1d_bias.defined()) {
    const auto bias = wide(w.conv1d_bias).split_with_sizes(sizes);
    n.v_bias = bias[0];
    n.k_bias = bias[1];
    n.q_bias = bias[2];
  }
  n.A_log = wide(w.A_log);
  n.dt_bias = wide(w.dt_bias);
  n.o_norm = wide(w.norm);
  n.skip = wide(w.D).repeat_interleave(o.head_dim);
  return n;
}

MixerNumbers numbers_of(const layers::Attention& mixer) {
  const auto& w = mixer.weights;
  MixerNumbers n;
  n.q_bias = wide(w.q_bias);
  n.k_bias = wide(w.k_bias);
  n.v_bias = wide(w.v_bias);
  n.q_norm = wide(w.q_norm);
  n.k_norm = wide(w.k_norm);
  return n;
}

// What reads the layer's input, in the order in which step() takes the columns.
std::vector<at::Tensor> inputs_of(const layers::QkvWeights& qkv,
                                  const layers::OutputWeights& output,
                                  std::vector<at::Tensor> others) {
  std::vector<at::Tensor> all = {qkv.q_proj, qkv.k_proj, qkv.v_proj, output.g_proj,
                                 output.g_proj_0};
  all.insert(all.end(), others.begin(), others.end());
  return layers::present(std::move(all));
}

std::vector<at::Tensor> inputs_of(const layers::MomentumDeltaNetWeights& w) {
  return inputs_of(w.qkv, w.output, {w.a_proj, w.b_proj, w.m_proj, w.e_proj});
}

std::vector<at::Tensor> inputs_of(const layers::GatedDeltaNetWeights& w) {
  return inputs_of(w.qkv, w.output, {w.a_proj, w.b_proj});
}

std::vector<at::Tensor> inputs_of(const layers::KimiDeltaAttentionWeights& w) {
  return inputs_of(w.qkv, w.output, {w.f_proj_0, w.b_proj});
}

std::vector<at::Tensor> inputs_of(const layers::Mamba2Weights& w) {
  return {w.in_proj};
}

std::vector<at::Tensor> inputs_of(const layers::AttentionWeights& w) {
  return {w.q_proj, w.k_proj, w.v_proj};
}

template <class Weights>
const at::Tensor& output_of(const Weights& w) {
  return w.output.o_proj;
}

const at::Tensor& output_of(const layers::Mamba2Weights& w) {
  return w.out_proj;
}

const at::Tensor& output_of(const layers::AttentionWeights& w) {
  return w.o_proj;
}

// One token of each sequence on its way through a mixer: columns of the packed product, taken from
// the left, and memory for what is made of them.
class Token {
 public:
  Token(const at::Tensor& projected, const MixerNumbers& numbers, StepShared& shared)
      : projected_(projected), numbers_(numbers), shared_(shared), device_(projected) {}

  const MixerNumbers& numbers() const { return numbers_; }
  const int64_t* positions() const { return shared_.positions().const_data_ptr<int64_t>(); }
  int64_t B() const { return projected_.size(0); }
  int64_t stride() const { return projected_.stride(0); }
  DType dtype() const { return ops::dtype_of(kDeviceStep, projected_.scalar_type()); }
  void* stream() const { return device_.stream(); }

  at::Tensor take(int64_t count) {
    next_ += count;
    return projected_.narrow(1, next_ - count, count);
  }
  const void* columns(int64_t count) { return ops::data(take(count)); }
  at::Tensor values(int64_t channels) const {  // of the model's type
    return at::empty({B(), channels}, projected_.options());
  }
  at::Tensor floats(at::IntArrayRef shape) const { return at::empty(shape, float_options()); }
  const float* constant(double number, int64_t count) const {
    return shared_.numbers(number, count, projected_);
  }

  // The place of a state, which starts with zeros.
  void* state(at::Tensor& t, at::IntArrayRef shape) const {
    return started(t, shape, float_options());
  }
  void* past(at::Tensor& t, int64_t W, int64_t channels) const {
    return started(t, {B(), W - 1, channels}, projected_.options());
  }

 private:
  at::TensorOptions float_options() const { return projected_.options().dtype(at::kFloat); }
  static void* started(at::Tensor& t, at::IntArrayRef shape, const at::TensorOptions& options) {
    if (!t.defined()) {
      t = at::zeros(shape, options);
    }
    return t.data_ptr();
  }

  const at::Tensor& projected_;
  const MixerNumbers& numbers_;
  StepShared& shared_;
  ops::DeviceScope device_;
  int64_t next_ = 0;
};

struct Heads {
  at::Tensor q, k, v;  // [B, channels]
};

// silu(conv(.)) of q, k and v, q corrected by k where the layer does that.
Heads convolve(const layers::HeadOptions& o, Token& token, layers::ConvStates& past) {
  const MixerNumbers& n = token.numbers();
  const Heads y{token.values(o.keys()), token.values(o.keys()), token.values(o.values())};
  const auto part = [&](const at::Tensor& weight, at::Tensor& state, const at::Tensor& to) {
    const int64_t C = to.size(1);
    return kernels::cuda::ShortConvStepPart{.C = C,
                                            .x = token.columns(C),
                                            .x_stride = token.stride(),
                                            .weight = ops::floats(weight),
                                            .state = token.past(state, o.conv_size, C),
                                            .state_stride = C,
                                            .y = to.data_ptr()};
  };
  kernels::cuda::ShortConvStep call{.B = token.B(),
                                    .W = o.conv_size,
                                    .dtype = token.dtype(),
                                    .count = 3,
                                    .scale = ops::floats(n.correction),
                                    .channels = o.head_dim};
  call.parts[0] = part(n.q_conv, past.conv_q, y.q);
  call.parts[1] = part(n.k_conv, past.conv_k, y.k);
  call.parts[2] = part(n.v_conv, past.conv_v, y.v);
  kernels::cuda::short_conv_step(call, token.stream());
  return y;
}

// The output's gate before its nonlinearity; undefined without one.
at::Tensor output_gate(const layers::OutputWeights& w, Token& token) {
  if (w.g_proj.defined()) {
    return token.take(w.g_proj.size(0));
  }
  if (!w.g_proj_0.defined()) {
    return {};
  }
  const at::Tensor low = token.take(w.g_proj_0.size(0));
  return w.g_proj_1_bias.defined() ? at::addmm(w.g_proj_1_bias, low, w.g_proj_1.t())
                                   : at::mm(low, w.g_proj_1.t());
}

// RMSNorm of each head of x [B, HV V], gated.
at::Tensor gated_norm(const layers::HeadOptions& o, Token& token, const at::Tensor& x,
                      const at::Tensor& gate, kernels::RmsNormGating gating) {
  const at::Tensor y = token.values(o.values());
  kernels::cuda::RmsNormForward call{.rows = token.B() * o.num_value_heads,
                                     .D = o.value_dim,
                                     .eps = o.norm_eps,
                                     .dtype = token.dtype(),
                                     .x = ops::data(x),
                                     .gate = {},
                                     .weight = ops::floats(token.numbers().o_norm),
                                     .y = y.data_ptr()};
  if (gate.defined()) {
    call.gate = {.data = ops::data(gate),
                 .heads = o.num_value_heads,
                 .stride = gate.stride(0),
                 .gating = gating};
  }
  kernels::cuda::rms_norm_forward(call, token.stream());
  return y;
}

// Numbers of a token: `count` tensors beside each other, [B, numbers] each.
class Gates {
 public:
  Gates(const Token& token, int64_t count, int64_t numbers)
      : memory_(token.floats({count, token.B() * numbers})) {}
  float* operator[](int64_t i) const { return memory_.mutable_data_ptr<float>() + i * size(); }
  int64_t size() const { return memory_.size(1); }

 private:
  at::Tensor memory_;
};

// An operator's step, all but its gates and states.
template <class Step>
Step operator_step(const layers::HeadOptions& o, const Token& token, const Heads& x,
                   const at::Tensor& out) {
  Step call;
  call.B = token.B();
  call.H = o.num_heads;
  call.HV = o.num_value_heads;
  call.K = o.head_dim;
  call.V = o.value_dim;
  call.dtype = token.dtype();
  call.scale = 1.0 / std::sqrt(static_cast<double>(o.head_dim));
  call.l2norm = true;
  call.q = ops::data(x.q);
  call.k = ops::data(x.k);
  call.v = ops::data(x.v);
  call.o = out.data_ptr();
  return call;
}

std::vector<int64_t> state_shape(const layers::HeadOptions& o, const Token& token) {
  return {token.B(), o.num_value_heads, o.value_dim, o.head_dim};
}

at::Tensor step(const layers::MomentumDeltaNet& mixer, Token& token,
                layers::MomentumDeltaNetState& state) {
  const auto& [o, w] = mixer;
  const MixerNumbers& n = token.numbers();
  const int64_t HV = o.num_value_heads;
  const Heads x = convolve(o, token, state);
  const at::Tensor gate = output_gate(w.output, token);
  const void *a = token.columns(HV), *b = token.columns(HV), *m = token.columns(HV),
             *e = token.columns(HV);
  const Gates gates(token, 4, HV);
  kernels::cuda::momentum_gates_forward(
      {.problem = {.tokens = token.B(),
                   .H = o.num_heads,
                   .HV = HV,
                   .dtype = token.dtype(),
                   .tau = o.tau,
                   .min_log_mu = o.min_log_mu.value_or(-kNoLimit)},
       .parameters = {.A_log = ops::floats(n.A_log),
                      .Mu_log = ops::floats(n.Mu_log),
                      .log_factor = ops::floats(n.log_factor),
                      .dt_bias = ops::floats(n.dt_bias),
                      .mu_bias = ops::floats(n.mu_bias)},
       .projections = {.a = a, .b = b, .m = m, .e = e, .stride = token.stride()},
       .alpha = gates[0],
       .mu = gates[1],
       .eta = gates[2],
       .beta = gates[3]},
      token.stream());
  const at::Tensor out = token.values(o.values());
  auto call = operator_step<kernels::MomentumDeltaRuleStep>(o, token, x, out);
  call.alpha = gates[0];
  call.mu = gates[1];
  call.eta = gates[2];
  call.beta = gates[3];
  call.pi = o.predict_with_alpha ? nullptr : token.constant(1, gates.size());
  call.S = token.state(state.S, state_shape(o, token));
  call.M = token.state(state.M, state_shape(o, token));
  kernels::cuda::step(call, token.stream());
  return gated_norm(o, token, out, gate, kernels::RmsNormGating::kSigmoid);
}

// alpha and beta of GDN and Comba, and a place for Comba's pi.
Gates delta_gates(const layers::HeadOptions& o, Token& token, double max_beta) {
  const int64_t HV = o.num_value_heads;
  const Gates gates(token, 3, HV);
  const void *a = token.columns(HV), *b = token.columns(HV);
  kernels::cuda::decay_gates_forward({.problem = {.tokens = token.B(),
                                                  .HV = HV,
                                                  .dtype = token.dtype(),
                                                  .low = 0,
                                                  .high = kNoLimit,
                                                  .max_beta = max_beta,
                                                  .A_log = ops::floats(token.numbers().A_log),
                                                  .dt_bias = ops::floats(token.numbers().dt_bias),
                                                  .a = a,
                                                  .a_stride = token.stride(),
                                                  .b = b,
                                                  .b_stride = token.stride()},
                                      .alpha = gates[0],
                                      .beta = gates[1]},
                                     token.stream());
  return gates;
}

at::Tensor delta_step(const layers::HeadOptions& o, const Token& token, const Heads& x,
                      const Gates& gates, const float* pi, at::Tensor& S) {
  const at::Tensor out = token.values(o.values());
  auto call = operator_step<kernels::MomentumDeltaRuleStep>(o, token, x, out);
  call.alpha = gates[0];
  call.eta = token.constant(1, gates.size());
  call.beta = gates[1];
  call.pi = pi;
  call.S = token.state(S, state_shape(o, token));
  kernels::cuda::step(call, token.stream());
  return out;
}

at::Tensor step(const layers::GatedDeltaNet& mixer, Token& token,
                layers::GatedDeltaNetState& state) {
  const auto& [o, w] = mixer;
  const Heads x = convolve(o, token, state);
  const at::Tensor gate = output_gate(w.output, token);
  const Gates gates = delta_gates(o, token, o.allow_neg_eigval ? 2 : 1);
  const at::Tensor out = delta_step(o, token, x, gates, nullptr, state.S);
  return gated_norm(o, token, out, gate, kernels::RmsNormGating::kSilu);
}

at::Tensor step(const layers::Comba& mixer, Token& token, layers::GatedDeltaNetState& state) {
  const auto& [o, w] = mixer;
  const Heads x = convolve(o, token, state);
  const at::Tensor gate = output_gate(w.output, token);
  const Gates gates = delta_gates(o, token, 1);
  kernels::cuda::comba_prediction({.tokens = token.B(),
                                   .H = o.num_heads,
                                   .HV = o.num_value_heads,
                                   .K = o.head_dim,
                                   .dtype = token.dtype(),
                                   .k = ops::data(x.k),
                                   .key_scale = ops::floats(token.numbers().key_scale),
                                   .alpha = gates[0],
                                   .pi = gates[2]},
                                  token.stream());
  const at::Tensor out = delta_step(o, token, x, gates, gates[2], state.S);
  return gated_norm(o, token, out, gate, kernels::RmsNormGating::kSigmoid);
}

at::Tensor step(const layers::KimiDeltaAttention& mixer, Token& token,
                layers::GatedDeltaNetState& state) {
  const auto& [o, w] = mixer;
  const int64_t HV = o.num_value_heads, B = token.B();
  const Heads x = convolve(o, token, state);
  const at::Tensor gate = output_gate(w.output, token);
  const at::Tensor decay = at::mm(token.take(w.f_proj_0.size(0)), w.f_proj_1.t());
  const Gates alpha(token, 1, HV * o.head_dim), beta(token, 1, HV);
  kernels::cuda::decay_gates_forward({.problem = {.tokens = B,
                                                  .HV = HV,
                                                  .channels = o.head_dim,
                                                  .dtype = token.dtype(),
                                                  .low = 0,
                                                  .high = kNoLimit,
                                                  .max_beta = o.allow_neg_eigval ? 2.0 : 1.0,
                                                  .A_log = ops::floats(token.numbers().A_log),
                                                  .dt_bias = ops::floats(token.numbers().dt_bias),
                                                  .a = ops::data(decay),
                                                  .a_stride = decay.stride(0),
                                                  .b = token.columns(HV),
                                                  .b_stride = token.stride()},
                                      .alpha = alpha[0],
                                      .beta = beta[0]},
                                     token.stream());
  const at::Tensor out = token.values(o.values());
  auto call = operator_step<kernels::KimiDeltaRuleStep>(o, token, x, out);
  call.alpha = alpha[0];
  call.beta = beta[0];
  call.S = token.state(state.S, state_shape(o, token));
  kernels::cuda::step(call, token.stream());
  return gated_norm(o, token, out, gate, kernels::RmsNormGating::kSigmoid);
}

at::Tensor step(const layers::Mamba2& mixer, Token& token, layers::Mamba2State& state) {
  const auto& [o, w] = mixer;
  const MixerNumbers& n = token.numbers();
  const int64_t B = token.B(), H = o.num_heads, E = o.inner(), N = o.state_size;
  const void* const z = token.columns(E);
  // The convolutions' states lie beside each other, as their columns do.
  const Heads x{token.values(N), token.values(N), token.values(E)};
  void* const past = token.past(state.conv, o.conv_size, o.convolved());
  int64_t column = 0;
  const auto part = [&](const at::Tensor& weight, const at::Tensor& bias, const at::Tensor& to) {
    const int64_t C = to.size(1);
    column += C;
    return kernels::cuda::ShortConvStepPart{
        .C = C,
        .x = token.columns(C),
        .x_stride = token.stride(),
        .weight = ops::floats(weight),
        .bias = ops::floats(bias),
        .state = static_cast<std::byte*>(past) + (column - C) * size_of(token.dtype()),
        .state_stride = o.convolved(),
        .y = to.data_ptr()};
  };
  kernels::cuda::ShortConvStep conv{
      .B = B, .W = o.conv_size, .dtype = token.dtype(), .count = 3, .scale = nullptr};
  conv.parts[0] = part(n.v_conv, n.v_bias, x.v);
  conv.parts[1] = part(n.k_conv, n.k_bias, x.k);
  conv.parts[2] = part(n.q_conv, n.q_bias, x.q);
  kernels::cuda::short_conv_step(conv, token.stream());
  const Gates gates(token, 2, H);  // alpha, dt
  kernels::cuda::decay_gates_forward({.problem = {.tokens = B,
                                                  .HV = H,
                                                  .dtype = token.dtype(),
                                                  .low = o.dt_limit_low,
                                                  .high = o.dt_limit_high,
                                                  .A_log = ops::floats(n.A_log),
                                                  .dt_bias = ops::floats(n.dt_bias),
                                                  .a = token.columns(H),
                                                  .a_stride = token.stride()},
                                      .alpha = gates[0],
                                      .dt = gates[1]},
                                     token.stream());
  layers::HeadOptions heads;
  heads.num_heads = o.num_groups;
  heads.num_value_heads = H;
  heads.head_dim = N;
  heads.value_dim = o.head_dim;
  const at::Tensor out = token.values(E);
  auto call = operator_step<kernels::MomentumDeltaRuleStep>(heads, token, x, out);
  call.scale = 1;
  call.l2norm = false;
  call.alpha = gates[0];
  call.eta = token.constant(1, gates.size());
  call.beta = gates[1];
  call.pi = token.constant(0, gates.size());
  call.S = token.state(state.S, state_shape(heads, token));
  kernels::cuda::step(call, token.stream());
  const at::Tensor y = token.values(E);
  kernels::cuda::rms_norm_forward({.rows = B,
                                   .D = E,
                                   .eps = o.norm_eps,
                                   .dtype = token.dtype(),
                                   .x = ops::data(out),
                                   .gate = {.data = z,
                                            .heads = 1,
                                            .stride = token.stride(),
                                            .gating = kernels::RmsNormGating::kSiluFirst},
                                   .skip = {.data = ops::data(x.v), .scale = ops::floats(n.skip)},
                                   .weight = ops::floats(n.o_norm),
                                   .y = y.data_ptr()},
                                  token.stream());
  return y;
}

at::Tensor step(const layers::Attention& mixer, Token& token, layers::AttentionState& state) {
  const auto& o = mixer.options;
  const MixerNumbers& n = token.numbers();
  const int64_t channels = o.num_heads * o.head_dim, kv_channels = o.num_kv_heads * o.head_dim;
  MDN_CHECK(state.k.defined(), "{}: attention without a cache", kDeviceStep);
  const at::Tensor out = token.values(channels);
  kernels::cuda::AttentionStep call;
  call.B = token.B();
  call.heads = o.num_heads;
  call.kv_heads = o.num_kv_heads;
  call.d = o.head_dim;
  call.capacity = state.k.size(2);
  call.window = o.window_size.value_or(0);
  call.theta = o.rope_theta;
  call.eps = layers::kHeadNormEps;
  call.dtype = token.dtype();
  call.q = token.columns(channels);
  call.k = token.columns(kv_channels);
  call.v = token.columns(kv_channels);
  call.stride = token.stride();
  call.q_bias = ops::floats(n.q_bias);
  call.k_bias = ops::floats(n.k_bias);
  call.v_bias = ops::floats(n.v_bias);
  call.q_norm = ops::floats(n.q_norm);
  call.k_norm = ops::floats(n.k_norm);
  call.positions = token.positions();
  call.k_cache = state.k.data_ptr();
  call.v_cache = state.v.data_ptr();
  const at::Tensor workspace =
      ops::workspace_like(out, kernels::cuda::attention_step_workspace(call));
  call.workspace = workspace.data_ptr();
  call.o = out.data_ptr();
  kernels::cuda::attention_step(call, token.stream());
  return out;
}

}  // namespace

at::Tensor wide(const at::Tensor& t) {
  return t.defined() ? t.detach().to(at::kFloat).contiguous() : t;
}

const float* StepShared::numbers(double number, int64_t count, const at::Tensor& like) {
  at::Tensor& made = made_[number];
  if (!made.defined() || made.numel() < count) {
    made = at::full({count}, number, like.options().dtype(at::kFloat));
  }
  return made.const_data_ptr<float>();
}

bool DeviceMixer::supports(const layers::Mixer& mixer, at::ScalarType type) {
  if (type != at::kFloat && type != at::kHalf && type != at::kBFloat16) {
    return false;
  }
  const DType dtype = ops::dtype_of(kDeviceStep, type);
  return std::visit(
      [&]<class M>(const M& m) {
        if constexpr (std::is_same_v<M, layers::MomentumDeltaNet>) {
          return m.options.published_rule() && has_kernels(m.options, dtype);
        } else {
          return has_kernels(m.options, dtype);
        }
      },
      mixer);
}

DeviceMixer::DeviceMixer(const layers::Mixer& mixer, at::ScalarType type) : mixer_(mixer) {
  std::visit(
      [&]<class M>(const M& m) {
        in_ = ops::pack_rows(inputs_of(m.weights), type, ops::kRowMultiple);
        out_ = output_of(m.weights);
        numbers_ = numbers_of(m);
      },
      mixer);
}

at::Tensor DeviceMixer::operator()(const at::Tensor& projected, StepShared& shared,
                                   layers::MixerState& state) const {
  return std::visit(
      [&]<class M>(const M& m) -> at::Tensor {
        Token token(projected, numbers_, shared);
        return step(m, token, std::get<typename M::State>(state));
      },
      mixer_);
}

}  // namespace mdn::generate

#include "mdn/ops/momentum_block.h"

#include <ATen/ATen.h>

#include <limits>

#include "mdn/ops/gemm.h"
#include "mdn/ops/tensor.h"

namespace mdn::ops {
namespace {

const void* at_column(const at::Tensor& projected, int64_t column) {
  return projected.narrow(1, column, 1).const_data_ptr();
}

void* at_column_mutable(const at::Tensor& projected, int64_t column) {
  return projected.narrow(1, column, 1).data_ptr();
}

}  // namespace

std::vector<at::Tensor> MomentumBlock::list_of(const ResidualMomentumDeltaNet& w) {
  const at::Tensor D_log = w.D_log.defined() ? w.D_log : w.A_log.new_empty({0});
  return {w.norm,       w.q_proj,  w.k_proj,   w.v_proj,   w.g_proj,   w.a_proj, w.b_proj,
          w.m_proj,     w.e_proj,  w.q_conv1d, w.k_conv1d, w.v_conv1d, w.A_log,  w.Mu_log,
          w.log_factor, w.dt_bias, w.mu_bias,  D_log,      w.o_norm,   w.o_proj};
}

MomentumBlock::Columns::Columns(const ResidualMomentumDeltaNetOptions& o) {
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

MomentumBlock::MomentumBlock(const ResidualMomentumDeltaNetOptions& options, const at::Tensor& x,
                             std::vector<at::Tensor> weights, at::Tensor cu_seqlens, void* stream)
    : options_(options),
      B_(x.size(0)),
      T_(x.size(1)),
      columns_(options),
      dtype_(dtype_of("residual_momentum_deltanet", x.scalar_type())),
      weights_(std::move(weights)),
      cu_seqlens_(std::move(cu_seqlens)),
      floats_(kWeights),
      stream_(stream) {
  for (const int i : {kNorm, kQConv, kKConv, kVConv, kALog, kMuLog, kLogFactor, kDtBias, kMuBias,
                      kDLog, kONorm}) {
    floats_[i] = weights_[i].detach().to(at::kFloat).contiguous();
  }
}

float* MomentumBlock::new_gradient(Weight i, std::vector<at::Tensor>& d) const {
  d[i] = at::empty_like(floats_[i]);
  return d[i].mutable_data_ptr<float>();
}

kernels::ShortConvProblem MomentumBlock::convolution(int64_t channels) const {
  kernels::ShortConvProblem p{.B = B_, .T = T_, .C = channels, .W = weights_[kQConv].size(2)};
  p.N = cu_seqlens_.defined() ? cu_seqlens_.numel() - 1 : B_;
  p.cu_seqlens = cu_seqlens_.defined() ? cu_seqlens_.const_data_ptr<int64_t>() : nullptr;
  return p;
}

kernels::MomentumGatesProblem MomentumBlock::gates_problem() const {
  return {.tokens = rows(),
          .H = options_.H,
          .HV = options_.HV,
          .dtype = dtype_,
          .tau = options_.tau,
          .min_log_mu = options_.min_log_mu.value_or(-std::numeric_limits<double>::infinity())};
}

kernels::MomentumGatesParameters MomentumBlock::gate_parameters() const {
  return {.A_log = numbers(kALog),
          .Mu_log = numbers(kMuLog),
          .log_factor = numbers(kLogFactor),
          .dt_bias = numbers(kDtBias),
          .mu_bias = numbers(kMuBias)};
}

kernels::MomentumGatesProjections MomentumBlock::gate_projections(
    const at::Tensor& projected) const {
  return {.a = at_column(projected, columns_.a),
          .b = at_column(projected, columns_.b),
          .m = at_column(projected, columns_.m),
          .e = at_column(projected, columns_.e),
          .stride = columns_.all};
}

kernels::cuda::RmsNormGate MomentumBlock::output_gate(const at::Tensor& projected) const {
  return {.data = at_column(projected, columns_.g), .heads = options_.HV, .stride = columns_.all};
}

// silu(conv(.)) of `channels` columns of the projections, less exp(log_scale) minus where given.
at::Tensor MomentumBlock::convolve(const at::Tensor& projected, int64_t column, Weight conv,
                                   int64_t heads, int64_t channels, const at::Tensor& minus) const {
  at::Tensor y = at::empty({B_, T_, heads, channels}, projected.options());
  kernels::cuda::ShortConvForward call{.problem = convolution(heads * channels),
                                       .dtype = dtype_,
                                       .x = at_column(projected, column),
                                       .x_stride = columns_.all,
                                       .weight = numbers(conv),
                                       .y = y.data_ptr(),
                                       .correction = {}};
  if (minus.defined()) {
    call.correction = {.minus = data(minus), .log_scale = numbers(kDLog), .channels = channels};
  }
  kernels::cuda::short_conv_forward(call, stream_);
  return y;
}

// `minus` is the gradient of q where k's convolution is meant.
void MomentumBlock::convolve_backward(const at::Tensor& projected, const at::Tensor& d_projected,
                                      int64_t column, Weight conv, const at::Tensor& d_y,
                                      const at::Tensor& minus, std::vector<at::Tensor>& d) const {
  const auto problem = convolution(d_y.size(2) * d_y.size(3));
  const at::Tensor workspace =
      workspace_like(projected, kernels::cuda::short_conv_backward_workspace(problem));
  kernels::cuda::ShortConvBackward call{.problem = problem,
                                        .dtype = dtype_,
                                        .x = at_column(projected, column),
                                        .x_stride = columns_.all,
                                        .weight = numbers(conv),
                                        .d_y = data(d_y),
                                        .d_x = at_column_mutable(d_projected, column),
                                        .d_x_stride = columns_.all,
                                        .d_weight = new_gradient(conv, d),
                                        .correction = {},
                                        .d_log_scale = nullptr,
                                        .workspace = workspace.data_ptr()};
  if (minus.defined()) {
    call.correction = {.minus = data(minus), .log_scale = numbers(kDLog), .channels = d_y.size(3)};
    call.d_log_scale = new_gradient(kDLog, d);
  }
  kernels::cuda::short_conv_backward(call, stream_);
}

MomentumBlock::Mixed MomentumBlock::mix(const at::Tensor& projected) const {
  const auto& o = options_;
  Mixed y;
  y.k = convolve(projected, columns_.k, kKConv, o.H, o.K, {});
  y.q = convolve(projected, columns_.q, kQConv, o.H, o.K, corrects() ? y.k : at::Tensor());
  y.v = convolve(projected, columns_.v, kVConv, o.HV, o.V, {});
  return y;
}

void MomentumBlock::mix_backward(const at::Tensor& projected, const Mixed& d_mixed,
                                 const at::Tensor& d_projected, std::vector<at::Tensor>& d) const {
  convolve_backward(projected, d_projected, columns_.q, kQConv, d_mixed.q, {}, d);
  convolve_backward(projected, d_projected, columns_.k, kKConv, d_mixed.k,
                    corrects() ? d_mixed.q : at::Tensor(), d);
  convolve_backward(projected, d_projected, columns_.v, kVConv, d_mixed.v, {}, d);
}

MomentumGates MomentumBlock::gates(const at::Tensor& projected) const {
  const auto make = [&] { return at::empty({B_, T_, options_.HV}, norm().options()); };
  MomentumGates y{make(), make(), make(), make()};
  kernels::cuda::momentum_gates_forward({.problem = gates_problem(),
                                         .parameters = gate_parameters(),
                                         .projections = gate_projections(projected),
                                         .alpha = y.alpha.mutable_data_ptr<float>(),
                                         .mu = y.mu.mutable_data_ptr<float>(),
                                         .eta = y.eta.mutable_data_ptr<float>(),
                                         .beta = y.beta.mutable_data_ptr<float>()},
                                        stream_);
  return y;
}

void MomentumBlock::gates_backward(const at::Tensor& projected, const MomentumGates& d_gates,
                                   const at::Tensor& d_projected,
                                   std::vector<at::Tensor>& d) const {
  const auto problem = gates_problem();
  const at::Tensor d_parameters = at::empty({5, options_.HV}, d_gates.alpha.options());
  const at::Tensor workspace =
      workspace_like(projected, kernels::cuda::momentum_gates_backward_workspace(problem));
  kernels::cuda::momentum_gates_backward({.problem = problem,
                                          .parameters = gate_parameters(),
                                          .projections = gate_projections(projected),
                                          .d_alpha = d_gates.alpha.const_data_ptr<float>(),
                                          .d_mu = d_gates.mu.const_data_ptr<float>(),
                                          .d_eta = d_gates.eta.const_data_ptr<float>(),
                                          .d_beta = d_gates.beta.const_data_ptr<float>(),
                                          .d_a = at_column_mutable(d_projected, columns_.a),
                                          .d_b = at_column_mutable(d_projected, columns_.b),
                                          .d_m = at_column_mutable(d_projected, columns_.m),
                                          .d_e = at_column_mutable(d_projected, columns_.e),
                                          .d_stride = columns_.all,
                                          .d_parameters = d_parameters.mutable_data_ptr<float>(),
                                          .workspace = workspace.data_ptr()},
                                         stream_);
  const auto of = gate_parameter_gradients(d_parameters, options_.H, at::kFloat);
  std::copy(of.begin(), of.end(), d.begin() + kALog);
}

at::Tensor MomentumBlock::gated_norm(const at::Tensor& projected, const at::Tensor& y) const {
  at::Tensor z = at::empty({rows(), options_.HV * options_.V}, y.options());
  kernels::cuda::rms_norm_forward({.rows = rows() * options_.HV,
                                   .D = options_.V,
                                   .eps = options_.eps,
                                   .dtype = dtype_,
                                   .x = data(y),
                                   .gate = output_gate(projected),
                                   .weight = numbers(kONorm),
                                   .y = z.data_ptr()},
                                  stream_);
  return z;
}

MomentumBlock::NormAgain MomentumBlock::gated_norm_backward(const at::Tensor& projected,
                                                            const at::Tensor& y,
                                                            const at::Tensor& d_z,
                                                            const at::Tensor& d_projected,
                                                            std::vector<at::Tensor>& d) const {
  const int64_t heads = rows() * options_.HV;
  NormAgain of{at::empty_like(y), at::empty_like(d_z)};
  const at::Tensor workspace =
      workspace_like(y, kernels::cuda::rms_norm_backward_workspace(heads, options_.V));
  kernels::cuda::rms_norm_backward({.rows = heads,
                                    .D = options_.V,
                                    .eps = options_.eps,
                                    .dtype = dtype_,
                                    .x = data(y),
                                    .gate = output_gate(projected),
                                    .weight = numbers(kONorm),
                                    .d_y = data(d_z),
                                    .d_x = of.d_y.data_ptr(),
                                    .d_gate = at_column_mutable(d_projected, columns_.g),
                                    .d_gate_stride = columns_.all,
                                    .y = of.z.data_ptr(),
                                    .d_weight = new_gradient(kONorm, d),
                                    .workspace = workspace.data_ptr()},
                                   stream_);
  return of;
}

}  // namespace mdn::ops

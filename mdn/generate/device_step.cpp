#include "mdn/generate/device_step.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "mdn/kernels/linear.h"
#include "mdn/kernels/momentum_delta_rule.h"
#include "mdn/kernels/momentum_gates.h"
#include "mdn/kernels/rms_norm.h"
#include "mdn/kernels/short_conv.h"
#include "mdn/kernels/swiglu.h"
#include "mdn/ops/gemm.h"
#include "mdn/ops/residual.h"
#include "mdn/ops/tensor.h"

namespace mdn::generate {
namespace {

constexpr const char* kOp = "a step on the device";
constexpr int64_t kMaxChannels = 512;  // of the operator's step

// Whether a block is one of those that mix() and mlp() are written for.
bool fusable(const model::Block& block, const model::Decoder& decoder) {
  const auto* mixer = std::get_if<layers::MomentumDeltaNet>(&block.mixer);
  if (!mixer || !block.mlp_norm.defined()) {
    return false;
  }
  const auto& o = mixer->options;
  const DType dtype = ops::dtype_of(kOp, decoder.compute_type());
  const auto convolves = [&](int64_t channels) {
    return kernels::cuda::short_conv_unsupported({.C = channels, .W = o.conv_size}).empty();
  };
  return o.published_rule() && o.gate == layers::GateKind::kFull && o.use_short_conv &&
         o.head_dim <= kMaxChannels && o.value_dim <= kMaxChannels && convolves(o.keys()) &&
         convolves(o.values()) && block.mlp.gate_proj.size(0) % 8 == 0 &&
         kernels::cuda::rms_norm_unsupported(dtype, decoder.config().hidden_size).empty() &&
         kernels::cuda::rms_norm_unsupported(dtype, o.value_dim).empty();
}

at::Tensor wide(const at::Tensor& t) {
  return t.defined() ? t.detach().to(at::kFloat).contiguous() : t;
}

const float* numbers(const at::Tensor& t) {
  return t.defined() ? t.const_data_ptr<float>() : nullptr;
}

kernels::cuda::Linear linear_call(const at::Tensor& x, const at::Tensor& weight) {
  kernels::cuda::Linear call;
  call.B = x.size(0);
  call.in = x.size(1);
  call.out = weight.size(0);
  call.dtype = ops::dtype_of(kOp, x.scalar_type());
  call.x = ops::data(x);
  call.weight = ops::data(weight);
  return call;
}

// Whether the products with these weights are made by the kernel for few rows.
bool few_rows(const at::Tensor& x, const at::Tensor& weight) {
  return kernels::cuda::linear_unsupported(linear_call(x, weight)).empty();
}

// x += y weightᵀ
void add_product(at::Tensor& x, const at::Tensor& y, const at::Tensor& weight) {
  if (!few_rows(y, weight)) {
    x.addmm_(y, weight.t());
    return;
  }
  kernels::cuda::Linear call = linear_call(y, weight);
  call.add = ops::data(x);
  call.y = x.data_ptr();
  kernels::cuda::linear(call, ops::DeviceScope(x).stream());
}

}  // namespace

bool DeviceStep::supports(const model::Decoder& decoder) {
  const auto& entries = decoder.parameters().entries();
  const auto& blocks = decoder.weights().blocks;
  return std::all_of(entries.begin(), entries.end(),
                     [](const model::Parameter& p) { return p.value.is_cuda(); }) &&
         std::none_of(blocks.begin(), blocks.end(), [](const model::Block& block) {
           return std::holds_alternative<layers::Attention>(block.mixer);
         });
}

DeviceStep::DeviceStep(const model::Decoder& decoder) : decoder_(decoder) {
  const auto& weights = decoder.weights();
  const at::ScalarType type = decoder.compute_type();
  const bool fused =
      (type == at::kFloat || type == at::kHalf || type == at::kBFloat16) &&
      !decoder.config().residual_in_fp32 &&
      std::all_of(decoder.parameters().entries().begin(), decoder.parameters().entries().end(),
                  [&](const model::Parameter& p) {
                    return p.value.scalar_type() == type && p.value.is_contiguous();
                  }) &&
      std::all_of(weights.blocks.begin(), weights.blocks.end(),
                  [&](const model::Block& block) { return fusable(block, decoder); });
  if (!fused) {
    return;
  }
  norm_ = wide(weights.norm);
  for (const model::Block& block : weights.blocks) {
    const auto& w = std::get<layers::MomentumDeltaNet>(block.mixer).weights;
    layers_.push_back(
        {.in = ops::pack_rows({w.qkv.q_proj, w.qkv.k_proj, w.qkv.v_proj, w.output.g_proj, w.a_proj,
                               w.b_proj, w.m_proj, w.e_proj},
                              type, ops::kRowMultiple),
         .gate_up = ops::pack_rows({block.mlp.gate_proj, block.mlp.up_proj}, type),
         .attn_norm = wide(block.attn_norm),
         .mlp_norm = wide(block.mlp_norm),
         .q_conv = wide(w.qkv.q_conv1d),
         .k_conv = wide(w.qkv.k_conv1d),
         .v_conv = wide(w.qkv.v_conv1d),
         .A_log = wide(w.A_log),
         .Mu_log = wide(w.Mu_log),
         .log_factor = wide(w.log_factor),
         .dt_bias = wide(w.dt_bias),
         .mu_bias = wide(w.mu_bias),
         .D_log = wide(w.D_log),
         .o_norm = wide(w.output.o_norm)});
  }
}

// rms_norm(x) weightᵀ
at::Tensor DeviceStep::product_of_norm(const at::Tensor& x, const at::Tensor& norm,
                                       const at::Tensor& weight) const {
  const double eps = decoder_.config().norm_eps;
  if (!few_rows(x, weight)) {
    return at::mm(ops::rms_norm_rows(x, norm, eps, x.scalar_type()), weight.t());
  }
  at::Tensor y = at::empty({x.size(0), weight.size(0)}, x.options());
  kernels::cuda::Linear call = linear_call(x, weight);
  call.norm = numbers(norm);
  call.eps = eps;
  call.y = y.data_ptr();
  kernels::cuda::linear(call, ops::DeviceScope(x).stream());
  return y;
}

// x [B, D] += the mixer of rms_norm(x).
void DeviceStep::mix(size_t index, at::Tensor& x, layers::MomentumDeltaNetState& state) const {
  const Layer& layer = layers_[index];
  const auto& [o, w] = std::get<layers::MomentumDeltaNet>(decoder_.weights().blocks[index].mixer);
  const int64_t B = x.size(0), HV = o.num_value_heads;
  const DType dtype = ops::dtype_of(kOp, x.scalar_type());
  const ops::DeviceScope device(x);
  const at::Tensor projected = product_of_norm(x, layer.attn_norm, layer.in);
  const int64_t stride = projected.size(1);
  // The columns in their order.
  int64_t next = 0;
  const auto columns = [&](int64_t count) {
    const void* const first = ops::data(projected.narrow(1, next, count));
    next += count;
    return first;
  };
  const void *q_in = columns(o.keys()), *k_in = columns(o.keys()), *v_in = columns(o.values());
  const void* const gate = columns(o.values());
  const void *a = columns(HV), *b = columns(HV), *m = columns(HV), *e = columns(HV);

  const auto made = [](at::Tensor& t, at::IntArrayRef shape, const at::TensorOptions& options) {
    if (!t.defined()) {
      t = at::zeros(shape, options);
    }
    return t.data_ptr();
  };
  const at::TensorOptions wide_options = layer.attn_norm.options();
  const at::Tensor q = at::empty({B, o.keys()}, x.options()), k = at::empty_like(q),
                   v = at::empty({B, o.values()}, x.options());
  kernels::cuda::ShortConvStep conv{
      .B = B, .W = o.conv_size, .dtype = dtype, .count = 3, .log_scale = numbers(layer.D_log)};
  conv.channels = o.head_dim;
  const auto part = [&](const void* in, const at::Tensor& weight, at::Tensor& past,
                        const at::Tensor& y) {
    const int64_t C = y.size(1);
    return kernels::cuda::ShortConvStepPart{.C = C,
                                            .x = in,
                                            .x_stride = stride,
                                            .weight = numbers(weight),
                                            .state = made(past, {B, conv.W - 1, C}, x.options()),
                                            .y = y.data_ptr()};
  };
  conv.parts[0] = part(q_in, layer.q_conv, state.conv_q, q);
  conv.parts[1] = part(k_in, layer.k_conv, state.conv_k, k);
  conv.parts[2] = part(v_in, layer.v_conv, state.conv_v, v);
  kernels::cuda::short_conv_step(conv, device.stream());

  const at::Tensor gates = at::empty({4, B * HV}, wide_options);
  float* const alpha = gates.mutable_data_ptr<float>();
  float *const mu = alpha + B * HV, *const eta = mu + B * HV, *const beta = eta + B * HV;
  kernels::cuda::momentum_gates_forward(
      {.problem = {.tokens = B,
                   .H = o.num_heads,
                   .HV = HV,
                   .dtype = dtype,
                   .tau = o.tau,
                   .min_log_mu = o.min_log_mu.value_or(-std::numeric_limits<double>::infinity())},
       .parameters = {.A_log = numbers(layer.A_log),
                      .Mu_log = numbers(layer.Mu_log),
                      .log_factor = numbers(layer.log_factor),
                      .dt_bias = numbers(layer.dt_bias),
                      .mu_bias = numbers(layer.mu_bias)},
       .projections = {.a = a, .b = b, .m = m, .e = e, .stride = stride},
       .alpha = alpha,
       .mu = mu,
       .eta = eta,
       .beta = beta},
      device.stream());

  const at::Tensor pi = o.predict_with_alpha ? at::Tensor() : at::ones({B * HV}, wide_options);
  const at::Tensor out = at::empty_like(v), y = at::empty_like(v);
  const std::vector<int64_t> states = {B, HV, o.value_dim, o.head_dim};
  kernels::cuda::step({.B = B,
                       .H = o.num_heads,
                       .HV = HV,
                       .K = o.head_dim,
                       .V = o.value_dim,
                       .dtype = dtype,
                       .scale = 1.0 / std::sqrt(static_cast<double>(o.head_dim)),
                       .l2norm = true,
                       .q = ops::data(q),
                       .k = ops::data(k),
                       .v = ops::data(v),
                       .alpha = alpha,
                       .mu = mu,
                       .eta = eta,
                       .beta = beta,
                       .pi = numbers(pi),
                       .S = made(state.S, states, wide_options),
                       .M = made(state.M, states, wide_options),
                       .slots = nullptr,
                       .o = out.data_ptr()},
                      device.stream());
  kernels::cuda::rms_norm_forward({.rows = B * HV,
                                   .D = o.value_dim,
                                   .eps = o.norm_eps,
                                   .dtype = dtype,
                                   .x = ops::data(out),
                                   .gate = {.data = gate, .heads = HV, .stride = stride},
                                   .weight = numbers(layer.o_norm),
                                   .y = y.data_ptr()},
                                  device.stream());
  add_product(x, y, w.output.o_proj);
}

// x [B, D] += the MLP of rms_norm(x).
void DeviceStep::mlp(size_t index, at::Tensor& x) const {
  const Layer& layer = layers_[index];
  const int64_t B = x.size(0), I = layer.gate_up.size(0) / 2;
  const at::Tensor y = at::empty({B, I}, x.options());
  const ops::DeviceScope device(x);
  if (few_rows(x, layer.gate_up)) {
    kernels::cuda::Linear call = linear_call(x, layer.gate_up);
    call.out = I;
    call.norm = numbers(layer.mlp_norm);
    call.eps = decoder_.config().norm_eps;
    call.swiglu = true;
    call.y = y.data_ptr();
    kernels::cuda::linear(call, device.stream());
  } else {
    const at::Tensor inner = product_of_norm(x, layer.mlp_norm, layer.gate_up);
    kernels::cuda::swiglu_forward({.rows = B,
                                   .columns = I,
                                   .dtype = ops::dtype_of(kOp, x.scalar_type()),
                                   .a = ops::data(inner),
                                   .b = ops::data(inner.narrow(1, I, I)),
                                   .stride = 2 * I,
                                   .y = y.data_ptr()},
                                  device.stream());
  }
  add_product(x, y, decoder_.weights().blocks[index].mlp.down_proj);
}

// Steps change some states in place and replace others; those that were there get their place back.
at::Tensor DeviceStep::by_decoder(const at::Tensor& ids, model::DecoderState& state) const {
  model::DecoderState after = state;
  const at::Tensor hidden = decoder_.hidden(ids.unsqueeze(1), {}, &after).squeeze(1);
  for (size_t i = 0; i < state.layers.size(); ++i) {
    const auto fields = layers::state_fields(state.layers[i]);
    const auto fields_after = layers::state_fields(after.layers[i]);
    for (size_t f = 0; f < fields.size(); ++f) {
      at::Tensor &place = *fields[f].second, &value = *fields_after[f].second;
      if (!place.defined()) {
        place = value;
      } else if (!place.is_same(value)) {
        place.copy_(value);
      }
    }
  }
  return decoder_.logits(hidden);
}

at::Tensor DeviceStep::operator()(const at::Tensor& ids, model::DecoderState& state) const {
  if (layers_.empty()) {
    return by_decoder(ids, state);
  }
  at::Tensor x = at::embedding(decoder_.weights().embeddings, ids);
  for (size_t i = 0; i < layers_.size(); ++i) {
    mix(i, x, std::get<layers::MomentumDeltaNetState>(state.layers[i]));
    mlp(i, x);
  }
  return product_of_norm(x, norm_, decoder_.weights().head);
}

}  // namespace mdn::generate

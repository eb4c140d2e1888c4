#include "mdn/generate/stepper.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "mdn/core/error.h"
#include "mdn/kernels/momentum_delta_rule.h"
#include "mdn/kernels/rms_norm.h"
#include "mdn/kernels/short_conv.h"
#include "mdn/kernels/swiglu.h"

namespace mdn::generate {
namespace {

using kernels::LinearPart;

// Scratch memory by purpose; each grows to the largest batch seen.
enum Slot : size_t {
  kX,       // [B, D] residual stream
  kNormed,  // [B, D]
  kQ,
  kK,
  kV,
  kConvQ,
  kConvK,
  kConvV,
  kAlpha,
  kMu,
  kEta,
  kBeta,
  kPi,  // [B, HV]; the first four hold the projections a, m, e, b first
  kLowRank,
  kGate,
  kOut,  // [B, HV V]
  kMlpGate,
  kMlpUp,  // [B, I]
  kSlots
};

const float* data(const at::Tensor& t) {
  return t.const_data_ptr<float>();
}

// exp(p), entry j / group of [H] for value head j
std::vector<float> spread_exp(const at::Tensor& p, int64_t group) {
  std::vector<float> out;
  for (int64_t h = 0; h < p.numel(); ++h) {
    out.insert(out.end(), static_cast<size_t>(group), std::exp(data(p)[h]));
  }
  return out;
}

std::vector<float> copy(const at::Tensor& p) {
  return {data(p), data(p) + p.numel()};
}

// As torch has it: linear where the logarithm would round to it.
float softplus(float x) {
  return x > 20 ? x : std::log1p(std::exp(x));
}

float sigmoid(float x) {
  return 1 / (1 + std::exp(-x));
}

// A state tensor of the expected shape, zeros where the sequence is fresh.
float* state_data(at::Tensor& t, at::IntArrayRef shape) {
  if (!t.defined()) {
    t = at::zeros(shape, at::kFloat);
  }
  MDN_CHECK(t.sizes() == shape && t.scalar_type() == at::kFloat,
            "a decoder state of shape [{}] in {}; this batch needs [{}] in Float",
            fmt::join(t.sizes().begin(), t.sizes().end(), ", "), c10::toString(t.scalar_type()),
            fmt::join(shape.begin(), shape.end(), ", "));
  t = t.contiguous();
  return t.mutable_data_ptr<float>();
}

}  // namespace

bool Stepper::supports(const model::Decoder& decoder) {
  const auto& entries = decoder.parameters().entries();
  const auto& blocks = decoder.weights().blocks;
  return decoder.compute_type() == at::kFloat &&
         std::all_of(blocks.begin(), blocks.end(),
                     [](const model::Block& block) {
                       const auto* mixer = std::get_if<layers::MomentumDeltaNet>(&block.mixer);
                       return mixer ? mixer->options.published_rule()
                                    : std::holds_alternative<layers::Attention>(block.mixer);
                     }) &&
         std::all_of(entries.begin(), entries.end(), [](const model::Parameter& p) {
           return p.value.is_cpu() && p.value.scalar_type() == at::kFloat &&
                  p.value.is_contiguous();
         });
}

Stepper::Stepper(const model::Decoder& decoder) : decoder_(decoder), scratch_(kSlots) {
  MDN_CHECK(
      supports(decoder),
      "the stepper needs float32 weights on the CPU and layers of momentum_deltanet, as published, "
      "or attention");
  for (const model::Block& block : decoder.weights().blocks) {
    Layer layer;
    if (const auto* mixer = std::get_if<layers::MomentumDeltaNet>(&block.mixer)) {
      const auto& o = mixer->options;
      const auto* w = &mixer->weights;
      const int64_t group = o.group();
      layer.decay = spread_exp(w->A_log, group);
      layer.momentum = spread_exp(w->Mu_log, group);
      layer.factor = spread_exp(w->log_factor, group);
      layer.dt_bias = copy(w->dt_bias);
      layer.mu_bias = copy(w->mu_bias);
      if (w->D_log.defined()) {
        layer.correction = spread_exp(w->D_log, 1);
      }
      const bool conv = w->qkv.q_conv1d.defined();
      layer.W = conv ? w->qkv.q_conv1d.size(2) : 1;
      const auto taps = [&](const at::Tensor& weight, int64_t channels) {
        std::vector<float> out(static_cast<size_t>(layer.W * channels), 1.0f);
        if (conv) {
          kernels::cpu::short_conv_taps(channels, layer.W, data(weight), out.data());
        }
        return out;
      };
      layer.q_taps = taps(w->qkv.q_conv1d, o.keys());
      layer.k_taps = taps(w->qkv.k_conv1d, o.keys());
      layer.v_taps = taps(w->qkv.v_conv1d, o.values());
    }
    layers_.push_back(std::move(layer));
  }
}

float* Stepper::scratch(size_t slot, int64_t size) {
  auto& memory = scratch_[slot];
  if (memory.size() < static_cast<size_t>(size)) {
    memory.resize(static_cast<size_t>(size));
  }
  return memory.data();
}

// The projections a, m, e, b in place of which the gates come; see layers::momentum_gates.
void Stepper::gates(const Layer& layer, const layers::MomentumDeltaNetOptions& o, int64_t B) {
  float* alpha = scratch(kAlpha, B * o.num_value_heads);
  float* mu = scratch(kMu, B * o.num_value_heads);
  float* eta = scratch(kEta, B * o.num_value_heads);
  float* beta = scratch(kBeta, B * o.num_value_heads);
  const auto tau = static_cast<float>(o.tau);
  for (int64_t i = 0; i < B * o.num_value_heads; ++i) {
    const auto h = static_cast<size_t>(i % o.num_value_heads);
    float log_mu = -layer.momentum[h] * softplus(mu[i] + layer.mu_bias[h]);
    if (o.min_log_mu) {
      log_mu = std::max(log_mu, static_cast<float>(*o.min_log_mu));
    }
    mu[i] = std::exp(log_mu);
    eta[i] = 1 + std::tanh(eta[i] / tau);
    const float root = eta[i] * layer.factor[h];
    const float squared = root * root, cos2 = 1 / (1 + squared);
    beta[i] = squared * cos2 * sigmoid(beta[i]);
    alpha[i] = cos2 * std::exp(-layer.decay[h] * softplus(alpha[i] + layer.dt_bias[h]));
  }
}

// Adds the mixer's output for the normed rows to the residual stream.
void Stepper::mix(size_t index, int64_t B, layers::MomentumDeltaNetState& state) {
  const Layer& layer = layers_[index];
  const auto& [o, w] = std::get<layers::MomentumDeltaNet>(decoder_.weights().blocks[index].mixer);
  const int64_t D = decoder_.config().hidden_size, key = o.keys(), value = o.values();
  const int64_t HV = o.num_value_heads;
  float* x = scratch(kX, B * D);
  float* q = scratch(kQ, B * key);
  float* k = scratch(kK, B * key);
  float* v = scratch(kV, B * value);
  float* gate = scratch(kGate, B * value);
  float* out = scratch(kOut, B * value);
  const auto part = [](const at::Tensor& weight, float* y) {
    return LinearPart{data(weight), nullptr, weight.size(0), y};
  };

  std::vector<LinearPart> parts = {part(w.qkv.q_proj, q),
                                   part(w.qkv.k_proj, k),
                                   part(w.qkv.v_proj, v),
                                   part(w.a_proj, scratch(kAlpha, B * HV)),
                                   part(w.m_proj, scratch(kMu, B * HV)),
                                   part(w.e_proj, scratch(kEta, B * HV)),
                                   part(w.b_proj, scratch(kBeta, B * HV))};
  float* low_rank = nullptr;
  if (w.output.g_proj.defined()) {
    parts.push_back(part(w.output.g_proj, gate));
  } else if (w.output.g_proj_0.defined()) {
    low_rank = scratch(kLowRank, B * w.output.g_proj_0.size(0));
    parts.push_back(part(w.output.g_proj_0, low_rank));
  }
  kernels::cpu::linear(B, D, scratch(kNormed, B * D), parts);
  if (low_rank) {
    const LinearPart second{data(w.output.g_proj_1), data(w.output.g_proj_1_bias), value, gate};
    kernels::cpu::linear(B, w.output.g_proj_0.size(0), low_rank, {&second, 1});
  }

  const auto convolve = [&](const std::vector<float>& taps, int64_t channels, const float* from,
                            at::Tensor& past, float* to) {
    float* memory = layer.W > 1 ? state_data(past, {B, layer.W - 1, channels}) : nullptr;
    kernels::cpu::short_conv_step(B, channels, layer.W, from, taps.data(), memory, to);
  };
  float* conv_q = scratch(kConvQ, B * key);
  float* conv_k = scratch(kConvK, B * key);
  float* conv_v = scratch(kConvV, B * value);
  convolve(layer.q_taps, key, q, state.conv_q, conv_q);
  convolve(layer.k_taps, key, k, state.conv_k, conv_k);
  convolve(layer.v_taps, value, v, state.conv_v, conv_v);
  if (!layer.correction.empty()) {
    // q <- q - exp(D_log) k
    for (int64_t i = 0; i < B * key; ++i) {
      conv_q[i] -= layer.correction[static_cast<size_t>(i / o.head_dim % o.num_heads)] * conv_k[i];
    }
  }
  gates(layer, o, B);
  float* pi = nullptr;
  if (!o.predict_with_alpha) {
    pi = scratch(kPi, B * HV);
    std::fill(pi, pi + B * HV, 1.0f);
  }
  kernels::cpu::step({.B = B,
                      .H = o.num_heads,
                      .HV = HV,
                      .K = o.head_dim,
                      .V = o.value_dim,
                      .dtype = DType::kFloat32,
                      .scale = 1.0 / std::sqrt(static_cast<double>(o.head_dim)),
                      .l2norm = true,
                      .q = conv_q,
                      .k = conv_k,
                      .v = conv_v,
                      .alpha = scratch(kAlpha, 0),
                      .mu = scratch(kMu, 0),
                      .eta = scratch(kEta, 0),
                      .beta = scratch(kBeta, 0),
                      .pi = pi,
                      .S = state_data(state.S, {B, HV, o.value_dim, o.head_dim}),
                      .M = state_data(state.M, {B, HV, o.value_dim, o.head_dim}),
                      .slots = nullptr,
                      .o = out});
  const bool gated = w.output.g_proj.defined() || w.output.g_proj_0.defined();
  // v has been read: its memory takes the normed output
  kernels::cpu::rms_norm_forward(B * HV, o.value_dim, o.norm_eps, out, gated ? gate : nullptr,
                                 data(w.output.o_norm), v);
  const LinearPart last{data(w.output.o_proj), nullptr, D, x};
  kernels::cpu::linear(B, value, v, {&last, 1}, true);
}

at::Tensor Stepper::step(const std::vector<int64_t>& ids, model::DecoderState& state) {
  const auto B = static_cast<int64_t>(ids.size());
  const model::Config& config = decoder_.config();
  const int64_t D = config.hidden_size, I = config.intermediate_size;
  float* x = scratch(kX, B * D);
  float* normed = scratch(kNormed, B * D);
  for (int64_t b = 0; b < B; ++b) {
    const int64_t id = ids[static_cast<size_t>(b)];
    MDN_CHECK(id >= 0 && id < config.vocab_size, "token id {} is not in the vocabulary of {}", id,
              config.vocab_size);
    std::memcpy(x + b * D, data(decoder_.weights().embeddings) + id * D,
                static_cast<size_t>(D) * sizeof(float));
  }
  for (size_t i = 0; i < layers_.size(); ++i) {
    const model::Block& block = decoder_.weights().blocks[i];
    kernels::cpu::rms_norm_forward(B, D, config.norm_eps, x, nullptr, data(block.attn_norm),
                                   normed);
    if (std::holds_alternative<layers::MomentumDeltaNet>(block.mixer)) {
      mix(i, B, std::get<layers::MomentumDeltaNetState>(state.layers[i]));
    } else {
      const at::Tensor rows = at::from_blob(normed, {B, 1, D}, at::kFloat);
      const at::Tensor y = layers::mix(block.mixer, rows, {}, &state.layers[i]).contiguous();
      std::transform(x, x + B * D, data(y), x, std::plus<>());
    }
    kernels::cpu::rms_norm_forward(B, D, config.norm_eps, x, nullptr, data(block.mlp_norm), normed);
    float* gate = scratch(kMlpGate, B * I);
    float* up = scratch(kMlpUp, B * I);
    const LinearPart wide[] = {{data(block.mlp.gate_proj), nullptr, I, gate},
                               {data(block.mlp.up_proj), nullptr, I, up}};
    kernels::cpu::linear(B, D, normed, wide);
    kernels::cpu::swiglu_forward(B * I, gate, up, gate);
    const LinearPart down{data(block.mlp.down_proj), nullptr, D, x};
    kernels::cpu::linear(B, I, gate, {&down, 1}, true);
  }
  state.position += 1;
  kernels::cpu::rms_norm_forward(B, D, config.norm_eps, x, nullptr, data(decoder_.weights().norm),
                                 normed);
  if (!logits_.defined() || logits_.size(0) != B) {
    logits_ = at::empty({B, config.vocab_size}, at::kFloat);
  }
  const LinearPart head{data(decoder_.weights().head), nullptr, config.vocab_size,
                        logits_.mutable_data_ptr<float>()};
  kernels::cpu::linear(B, D, normed, {&head, 1});
  return logits_;
}

}  // namespace mdn::generate

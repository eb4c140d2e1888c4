#include "mdn/inspect/gates.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "mdn/core/error.h"
#include "mdn/ops/rms_norm.h"

namespace mdn::inspect {
namespace {

// [1, T, HV] -> the values of each head; an undefined tensor -> nothing.
void take(std::vector<HeadGates>& heads, std::vector<double> HeadGates::*field,
          const at::Tensor& gate) {
  if (!gate.defined()) {
    return;
  }
  const at::Tensor rows = gate.squeeze(0).t().to(at::kCPU, at::kDouble).contiguous();
  heads.resize(static_cast<size_t>(rows.size(0)));
  for (size_t h = 0; h < heads.size(); ++h) {
    const double* row = rows.const_data_ptr<double>() + static_cast<int64_t>(h) * rows.size(1);
    (heads[h].*field).assign(row, row + rows.size(1));
  }
}

// Where the layer has no such coupling: pi = alpha, kappa = lambda = 0.
void couple(std::vector<HeadGates>& heads, const at::Tensor& alpha, const at::Tensor& pi,
            const at::Tensor& kappa, const at::Tensor& lambda) {
  const at::Tensor zero = at::zeros_like(alpha);
  take(heads, &HeadGates::pi, pi.defined() ? pi : alpha);
  take(heads, &HeadGates::kappa, kappa.defined() ? kappa : zero);
  take(heads, &HeadGates::lambda, lambda.defined() ? lambda : zero);
}

const char* rule_of(layers::MomentumKind kind) {
  switch (kind) {
    case layers::MomentumKind::kNone:
      return "no momentum";
    case layers::MomentumKind::kHeavyBall:
      return "heavy ball";
    case layers::MomentumKind::kNesterov:
      return "Nesterov momentum";
    case layers::MomentumKind::kQuasiHyperbolic:
      return "quasi-hyperbolic momentum";
  }
  return "?";
}

void gates_of(const layers::MomentumDeltaNet& mixer, const at::Tensor& x, LayerGates& out) {
  const auto& [o, w] = mixer;
  const ops::MomentumGates gates = layers::momentum_gates(o, w, x);
  const layers::MomentumCoupling coupling = layers::momentum_coupling(o, w, x, gates);
  out.rule = rule_of(o.momentum);
  take(out.heads, &HeadGates::alpha, gates.alpha);
  take(out.heads, &HeadGates::beta, gates.beta);
  take(out.heads, &HeadGates::eta, gates.eta);
  take(out.heads, &HeadGates::mu, gates.mu);
  take(out.heads, &HeadGates::nu, coupling.nu);
  at::Tensor kappa = coupling.kappa;
  if (!kappa.defined() && gates.mu.defined()) {
    kappa = gates.beta * gates.mu;
  }
  couple(out.heads, gates.alpha, coupling.pi, kappa, coupling.lambda);
}

void delta_gates_of(const layers::DeltaGates& gates, LayerGates& out) {
  out.rule = "delta rule without momentum";
  take(out.heads, &HeadGates::alpha, gates.alpha);
  take(out.heads, &HeadGates::beta, gates.beta);
  couple(out.heads, gates.alpha, {}, {}, {});
}

void gates_of(const layers::GatedDeltaNet& mixer, const at::Tensor& x, LayerGates& out) {
  const auto& [o, w] = mixer;
  delta_gates_of(layers::delta_gates(w, o.allow_neg_eigval, x), out);
}

// Comba's pi is alpha but for the epsilon of its normalisation.
void gates_of(const layers::Comba& mixer, const at::Tensor& x, LayerGates& out) {
  delta_gates_of(layers::delta_gates(mixer.weights, false, x), out);
}

template <typename Other>
void gates_of(const Other&, const at::Tensor&, LayerGates& out) {
  out.rule = "without gates of this form";
}

// Mean over the tokens that have a next one; logits a piece at a time, for large vocabularies.
double mean_loss(const model::Decoder& decoder, const at::Tensor& hidden, const at::Tensor& ids) {
  constexpr int64_t kPiece = 256;
  const int64_t count = ids.size(1) - 1;
  double sum = 0;
  for (int64_t from = 0; from < count; from += kPiece) {
    const int64_t rows = std::min(kPiece, count - from);
    const at::Tensor logits = decoder.logits(hidden[0].narrow(0, from, rows)).to(at::kDouble);
    sum += at::cross_entropy_loss(logits, ids[0].narrow(0, from + 1, rows), std::nullopt,
                                  at::Reduction::Sum)
               .item<double>();
  }
  return sum / double(count);
}

}  // namespace

Reading read_gates(const model::Decoder& decoder, std::span<const int32_t> ids) {
  const model::Config& config = decoder.config();
  MDN_CHECK(ids.size() >= 2, "the text has {} tokens; at least 2 are needed", ids.size());
  at::Tensor tokens = at::empty({1, static_cast<int64_t>(ids.size())}, at::kLong);
  int64_t* token = tokens.mutable_data_ptr<int64_t>();
  for (size_t t = 0; t < ids.size(); ++t) {
    MDN_CHECK(
        ids[t] >= 0 && ids[t] < config.vocab_size,
        "token {} has id {}, but the model's vocabulary is {}: the tokenizer of another model", t,
        ids[t], config.vocab_size);
    token[t] = ids[t];
  }
  tokens = tokens.to(decoder.weights().embeddings.device());
  const at::NoGradGuard no_grad;
  Reading reading;
  const at::Tensor hidden =
      decoder.hidden(tokens, {}, nullptr, [&](size_t layer, const at::Tensor& x) {
        const model::Block& block = decoder.weights().blocks[layer];
        LayerGates& out = reading.layers.emplace_back();
        out.layer = static_cast<int64_t>(layer);
        out.kind = model::name_of(config.layers[layer]);
        const at::Tensor normed =
            ops::rms_norm(x, block.attn_norm, config.norm_eps).to(decoder.compute_type());
        std::visit([&](const auto& mixer) { gates_of(mixer, normed, out); }, block.mixer);
      });
  reading.loss = mean_loss(decoder, hidden, tokens);
  return reading;
}

}  // namespace mdn::inspect

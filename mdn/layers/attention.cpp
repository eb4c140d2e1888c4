#include "mdn/layers/attention.h"

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/SDPBackend.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <vector>

#include "mdn/core/error.h"
#include "mdn/layers/project.h"
#include "mdn/ops/rms_norm.h"

namespace mdn::layers {
namespace {

constexpr double kHeadNormEps = 1e-5;  // of q_norm and k_norm, whatever the model's own is

// Rotates halves: (x1 cos - x2 sin, x1 sin + x2 cos), angle = position theta^(-2i/d), tables in
// float32. x [B, heads, T, d], positions [T].
at::Tensor rotate(const at::Tensor& x, const at::Tensor& positions, double theta) {
  const int64_t d = x.size(-1);
  const auto type = gate_type(x);
  const at::Tensor i = at::arange(0, d, 2, x.options().dtype(type));
  const at::Tensor frequency = at::pow(theta, i / -static_cast<double>(d));
  const at::Tensor angle = positions.to(type).unsqueeze(1) * frequency;  // [T, d/2]
  const at::Tensor cos = angle.cos().to(x.scalar_type()), sin = angle.sin().to(x.scalar_type());
  const auto halves = x.chunk(2, -1);
  return at::cat({halves[0] * cos - halves[1] * sin, halves[0] * sin + halves[1] * cos}, -1);
}

std::atomic<bool> deterministic = false;

// The order in which libtorch tries its kernels on a GPU. In a hybrid's training step on an H100
// cuDNN's take 12 ms where flash takes 22 (docs/design/training_step_cuda.md); but they are planned
// anew for each length, which a growing cache would pay at every token and packed documents at
// every document (a Transformer of 22M parameters trained at a third of its speed), and have no
// order of their own for sums. What cuDNN does not support takes the next.
void order_backends(bool cudnn) {
  using B = at::SDPBackend;
  const auto list = [](std::initializer_list<B> order) {
    std::vector<int64_t> numbers;
    for (const B backend : order) {
      numbers.push_back(static_cast<int64_t>(backend));
    }
    return numbers;
  };
  static const std::vector<int64_t> cudnn_first = list(
      {B::cudnn_attention, B::flash_attention, B::efficient_attention, B::math, B::overrideable});
  static const std::vector<int64_t> flash_first = list(
      {B::flash_attention, B::efficient_attention, B::math, B::cudnn_attention, B::overrideable});
  at::globalContext().setSDPPriorityOrder(cudnn ? cudnn_first : flash_first);
}

// While it lives, libtorch chooses deterministic algorithms.
class DeterministicScope {
 public:
  DeterministicScope() {
    context_.setDeterministicAlgorithms(true, false);
    context_.setDeterministicFillUninitializedMemory(false);
  }
  ~DeterministicScope() {
    context_.setDeterministicFillUninitializedMemory(fills_);
    context_.setDeterministicAlgorithms(on_, warns_);
  }
  DeterministicScope(const DeterministicScope&) = delete;
  DeterministicScope& operator=(const DeterministicScope&) = delete;

 private:
  at::Context& context_ = at::globalContext();
  const bool on_ = context_.deterministicAlgorithms();
  const bool warns_ = context_.deterministicAlgorithmsWarnOnly();
  const bool fills_ = context_.deterministicFillUninitializedMemory();
};

using Attend =
    std::function<at::Tensor(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v)>;

// attend as one node of the graph around its own graph, whose backward pass runs in the scope
// above: flash attention reads the choice there.
class InOneOrder : public torch::autograd::Function<InOneOrder> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& q,
                            const at::Tensor& k, const at::Tensor& v, const Attend& attend) {
    const at::AutoGradMode recording(true);
    std::vector<at::Tensor> kept;
    for (const at::Tensor& x : {q, k, v}) {
      kept.push_back(x.detach().requires_grad_());
    }
    kept.push_back(attend(kept[0], kept[1], kept[2]));
    ctx->save_for_backward(kept);
    return kept[3].detach();
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    const auto kept = ctx->get_saved_variables();
    const DeterministicScope scope;
    auto d = torch::autograd::grad({kept[3]}, {kept[0], kept[1], kept[2]}, {grads[0]});
    d.emplace_back();  // attend
    return d;
  }
};

// Queries are the last q.size(2) of k.size(2) tokens.
at::Tensor attend(const AttentionOptions& o, const at::Tensor& q, const at::Tensor& k,
                  const at::Tensor& v) {
  const int64_t queries = q.size(2), keys = k.size(2);
  const bool grouped = o.num_heads != o.num_kv_heads;
  const bool windowed = o.window_size && *o.window_size < keys;
  if (!windowed && (queries == keys || queries == 1)) {
    return at::scaled_dot_product_attention(q, k, v, std::nullopt, 0.0, queries > 1, std::nullopt,
                                            grouped);
  }
  // back[i, j]: how many tokens key j lies before query i
  const auto integers = q.options().dtype(at::kLong);
  const at::Tensor back = (at::arange(queries, integers) + (keys - queries)).unsqueeze(1) -
                          at::arange(keys, integers).unsqueeze(0);
  at::Tensor visible = back >= 0;
  if (windowed) {
    visible = visible.logical_and(back < *o.window_size);
  }
  return at::scaled_dot_product_attention(q, k, v, visible, 0.0, false, std::nullopt, grouped);
}

// The same with libtorch's kernels chosen. `one_length`: calls of a training run have one shape.
at::Tensor attend_with_chosen(const AttentionOptions& o, const at::Tensor& q, const at::Tensor& k,
                              const at::Tensor& v, bool one_length) {
  if (!q.is_cuda()) {
    return attend(o, q, k, v);
  }
  const bool training = at::GradMode::is_enabled() && q.requires_grad();
  order_backends(training && one_length && !deterministic);
  if (training && deterministic) {
    return InOneOrder::apply(
        q, k, v, Attend([&o](const at::Tensor& a, const at::Tensor& b, const at::Tensor& c) {
          return attend(o, a, b, c);
        }));
  }
  return attend(o, q, k, v);
}

}  // namespace

void set_deterministic_attention(bool on) {
  deterministic = on;
}

at::Tensor Attention::operator()(const at::Tensor& x, const Sequences& sequences,
                                 State* state) const {
  const auto& [o, w] = *this;
  MDN_CHECK(!state || !sequences.packed(),
            "attention: a carried state with packed sequences is not supported");
  const int64_t B = x.size(0), T = x.size(1), d = o.head_dim;
  const auto heads = [&](const at::Tensor& y, int64_t n, const at::Tensor& norm) {
    const at::Tensor split = y.view({B, T, n, d});
    const at::Tensor normed = norm.defined() ? ops::rms_norm(split, norm, kHeadNormEps) : split;
    return normed.transpose(1, 2);  // [B, heads, T, d]
  };
  at::Tensor q = heads(project(x, w.q_proj, w.q_bias), o.num_heads, w.q_norm);
  at::Tensor k = heads(project(x, w.k_proj, w.k_bias), o.num_kv_heads, w.k_norm);
  at::Tensor v = heads(project(x, w.v_proj, w.v_bias), o.num_kv_heads, {});
  const at::Tensor positions =
      sequences.positions(T, x.device()) + (state ? state->position : int64_t{0});
  q = rotate(q, positions, o.rope_theta);
  k = rotate(k, positions, o.rope_theta);

  at::Tensor out;  // [B, heads, T, d]
  if (sequences.packed()) {
    std::vector<at::Tensor> parts;
    const auto& bounds = sequences.bounds();
    for (size_t n = 0; n + 1 < bounds.size(); ++n) {
      const int64_t start = bounds[n], length = bounds[n + 1] - bounds[n];
      if (length > 0) {
        parts.push_back(attend_with_chosen(o, q.narrow(2, start, length),
                                           k.narrow(2, start, length), v.narrow(2, start, length),
                                           false));
      }
    }
    out = at::cat(parts, 2);
  } else if (state) {
    if (state->k.defined()) {
      k = at::cat({state->k, k}, 2);
      v = at::cat({state->v, v}, 2);
    }
    out = attend_with_chosen(o, q, k, v, true);
    // Tokens that no later query can see are dropped.
    const int64_t keep = o.window_size ? std::min(k.size(2), *o.window_size - 1) : k.size(2);
    state->k = k.narrow(2, k.size(2) - keep, keep).contiguous();
    state->v = v.narrow(2, v.size(2) - keep, keep).contiguous();
    state->position += T;
  } else {
    out = attend_with_chosen(o, q, k, v, true);
  }
  return project(out.transpose(1, 2).reshape({B, T, o.num_heads * d}), w.o_proj);
}

std::vector<int64_t> Attention::state_shape(std::string_view, int64_t B) const {
  return {B, options.num_kv_heads, -1, options.head_dim};
}

}  // namespace mdn::layers

#include "mdn/layers/attention.h"

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/SDPBackend.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <mutex>
#include <vector>

#include "mdn/core/error.h"
#include "mdn/layers/project.h"
#include "mdn/ops/deterministic_scope.h"
#include "mdn/ops/rms_norm.h"
#include "mdn/ops/rotary.h"

namespace mdn::layers {
namespace {

std::atomic<bool> deterministic = false;

// The order in which libtorch tries its kernels on a GPU. In a hybrid's training step on an H100
// cuDNN's take 12 ms where flash takes 22 (docs/design/training_step_cuda.md); but they are planned
// anew for each length, which a growing cache would pay at every token and packed documents at
// every document, and have no order of their own for sums. What cuDNN does not support takes the
// next.
void order_backends(bool cudnn, c10::Device device) {
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
  // When it is first asked for a choice libtorch sets an order of its own, cuDNN first on Hopper:
  // it is asked before it is given another.
  static std::once_flag asked;
  std::call_once(asked, [&] {
    const at::Tensor x = at::empty({1, 1, 64, 64}, at::TensorOptions(at::kHalf).device(device));
    at::_fused_sdp_choice(x, x, x);
  });
  at::globalContext().setSDPPriorityOrder(cudnn ? cudnn_first : flash_first);
}

using Attend =
    std::function<at::Tensor(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v)>;

// attend as one node of the graph around its own graph, whose backward pass runs with deterministic
// algorithms: flash attention reads the choice there.
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
    const ops::DeterministicScope scope;
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

// Runs attend, on a GPU in one order where that is asked for. `one_length`: calls of a training run
// have one shape.
at::Tensor attend_with_chosen(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                              bool one_length, const Attend& attend) {
  if (!q.is_cuda()) {
    return attend(q, k, v);
  }
  const bool training = at::GradMode::is_enabled() && q.requires_grad();
  order_backends(training && one_length && !deterministic, q.device());
  return training && deterministic ? InOneOrder::apply(q, k, v, attend) : attend(q, k, v);
}

// Whether flash attention can be called with the sequences' boundaries.
bool flash_takes(const at::Tensor& q) {
  constexpr int64_t kMaxHeadDim = 256, kHeadDimMultiple = 8;
  const auto type = q.scalar_type();
  const int64_t d = q.size(3);
  return q.is_cuda() && (type == at::kBFloat16 || type == at::kHalf) && d <= kMaxHeadDim &&
         d % kHeadDimMultiple == 0 && at::globalContext().userEnabledFlashSDP();
}

// All sequences in one call, a window without a mask; as many keys as queries. k and v may have
// fewer heads.
at::Tensor attend_in_one_call(const AttentionOptions& o, const Sequences& sequences,
                              const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  const int64_t B = q.size(0), T = q.size(2);
  const at::Tensor bounds = sequences.packed()
                                ? sequences.bounds_on(q.device())
                                : at::arange(0, B * T + 1, T, q.options().dtype(at::kInt));
  // For a longest of 1 flash swaps heads and queries, which its backward pass does not know of.
  const int64_t longest = std::max<int64_t>(sequences.packed() ? sequences.longest() : T, 2);
  const auto rows = [](const at::Tensor& x) { return x.transpose(1, 2).flatten(0, 1); };
  using Side = std::optional<int64_t>;
  const Side left = o.window_size ? Side(*o.window_size - 1) : std::nullopt;
  const Side right = o.window_size ? Side(0) : std::nullopt;
  const at::Tensor out = std::get<0>(
      at::_flash_attention_forward(rows(q), rows(k), rows(v), bounds, bounds, longest, longest, 0.0,
                                   true, false, std::nullopt, left, right));
  return out.unflatten(0, {B, T}).transpose(1, 2);
}

// Packed sequences one after the other.
at::Tensor attend_one_by_one(const AttentionOptions& o, const Sequences& sequences,
                             const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  std::vector<at::Tensor> parts;
  const auto& bounds = sequences.bounds();
  for (size_t n = 0; n + 1 < bounds.size(); ++n) {
    const int64_t start = bounds[n], length = bounds[n + 1] - bounds[n];
    if (length > 0) {
      parts.push_back(attend(o, q.narrow(2, start, length), k.narrow(2, start, length),
                             v.narrow(2, start, length)));
    }
  }
  return at::cat(parts, 2);
}

at::Tensor attend_sequences(const AttentionOptions& o, const Sequences& sequences,
                            const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  const bool windowed = o.window_size && *o.window_size < k.size(2);
  if ((sequences.packed() || windowed) && q.size(2) == k.size(2) && flash_takes(q)) {
    return attend_in_one_call(o, sequences, q, k, v);
  }
  return sequences.packed() ? attend_one_by_one(o, sequences, q, k, v) : attend(o, q, k, v);
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
    return norm.defined() ? ops::rms_norm(split, norm, kHeadNormEps) : split;
  };
  at::Tensor positions = sequences.positions(T, x.device());
  if (state) {
    positions = positions + state->position;
  }
  const auto rotated = [&](const at::Tensor& y) {
    return ops::rotary(y, positions, o.rope_theta).transpose(1, 2);  // [B, heads, T, d]
  };
  const at::Tensor q = rotated(heads(project(x, w.q_proj, w.q_bias), o.num_heads, w.q_norm));
  at::Tensor k = rotated(heads(project(x, w.k_proj, w.k_bias), o.num_kv_heads, w.k_norm));
  at::Tensor v = heads(project(x, w.v_proj, w.v_bias), o.num_kv_heads, {}).transpose(1, 2);

  if (state && state->k.defined()) {
    k = at::cat({state->k, k}, 2);
    v = at::cat({state->v, v}, 2);
  }
  const at::Tensor out = attend_with_chosen(
      q, k, v, !sequences.packed(), [&](const auto& q_now, const auto& k_now, const auto& v_now) {
        return attend_sequences(o, sequences, q_now, k_now, v_now);
      });  // [B, heads, T, d]
  if (state) {
    // Tokens that no later query can see are dropped.
    const int64_t keep = o.window_size ? std::min(k.size(2), *o.window_size - 1) : k.size(2);
    state->k = k.narrow(2, k.size(2) - keep, keep).contiguous();
    state->v = v.narrow(2, v.size(2) - keep, keep).contiguous();
    state->position += T;
  }
  return project(out.transpose(1, 2).reshape({B, T, o.num_heads * d}), w.o_proj);
}

std::vector<int64_t> Attention::state_shape(std::string_view, int64_t B) const {
  return {B, options.num_kv_heads, -1, options.head_dim};
}

}  // namespace mdn::layers

#include "mdn/ops/general_momentum_delta_rule.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <vector>

#include "mdn/kernels/momentum_delta_rule.h"
#include "mdn/ops/delta_rule.h"
#include "mdn/ops/general_momentum_masks.h"
#include "mdn/ops/tensor.h"
#include "mdn/ops/unit_lower_inverse.h"

namespace mdn::ops {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kChunk = kMaskTokens;

// ---- how tokens lie in chunks ---------------------------------------------------------------

/// For each row of the chunks its token, for each token its row, and which rows have no token
/// (undefined: all have one).
struct Places {
  Tensor token, row, padding;
};

/// The tokens' rows x [tokens, ..] in chunks, `fill` where there is no token; and the way back.
/// Either's gradient is the other's: no sum, hence no atomics.
class Cut : public torch::autograd::Function<Cut> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Places& places,
                        const Tensor& fill) {
    ctx->save_for_backward({places.row});
    const Tensor rows = x.index_select(0, places.token);
    return places.padding.defined() ? at::where(places.padding, fill, rows) : rows;
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    return {grads[0].index_select(0, ctx->get_saved_variables()[0]), {}, {}};
  }
};

class Join : public torch::autograd::Function<Join> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& rows, const Places& places) {
    ctx->save_for_backward({places.token, places.padding});
    return rows.index_select(0, places.row);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor rows = grads[0].index_select(0, saved[0]);
    return {saved[1].defined() ? rows.masked_fill(saved[1], 0) : rows, {}};
  }
};

/// Every sequence on a grid of its own. Sequences stand in the order of their lengths, the longest
/// first, and all first chunks come before all second chunks: at step i those that have a chunk i
/// are neighbours, and nothing is computed for the others.
class Layout {
 public:
  Layout(int64_t B, int64_t T, const OptionalTensor& cu_seqlens, c10::Device device) {
    std::vector<int64_t> bounds;
    if (cu_seqlens) {
      const int64_t* bound = cu_seqlens->const_data_ptr<int64_t>();
      bounds.assign(bound, bound + cu_seqlens->numel());
    } else {
      for (int64_t b = 0; b <= B; ++b) {
        bounds.push_back(b * T);
      }
    }
    const auto length = [&](int64_t n) {
      return bounds[static_cast<size_t>(n) + 1] - bounds[static_cast<size_t>(n)];
    };
    std::vector<int64_t> order(bounds.size() - 1);
    std::iota(order.begin(), order.end(), 0);
    std::ranges::stable_sort(order, [&](int64_t a, int64_t b) { return length(a) > length(b); });
    std::vector<int64_t> starts, sizes;  // of chunks
    for (int64_t done = 0; done < length(order[0]); done += kChunk) {
      const size_t before = starts.size();
      for (const int64_t n : order) {
        if (length(n) <= done) {
          break;
        }
        starts.push_back(bounds[static_cast<size_t>(n)] + done);
        sizes.push_back(std::min(kChunk, length(n) - done));
      }
      active_.push_back(static_cast<int64_t>(starts.size() - before));
    }
    chunks_ = static_cast<int64_t>(starts.size());

    const auto on_device = [&](const std::vector<int64_t>& x) {
      return to_device(at::tensor(x, at::kLong), device);
    };
    if (!std::ranges::is_sorted(order)) {
      order_ = on_device(order);
      rank_ = order_.argsort();
    }
    const int64_t tokens = bounds.back(), rows = chunks_ * kChunk;
    const auto integers = at::TensorOptions(at::kLong).device(device);
    const Tensor of_chunk = at::arange(kChunk, integers);
    places_.token = (on_device(starts).unsqueeze(1) + of_chunk).flatten();
    if (tokens < rows) {
      const Tensor padding = (of_chunk >= on_device(sizes).unsqueeze(1)).flatten();
      places_.padding = padding.view({rows, 1, 1});
      places_.token = places_.token.masked_fill(padding, tokens);
    }
    // rows without a token stand for one after the last
    places_.row = at::empty({tokens + 1}, integers)
                      .scatter_(0, places_.token, at::arange(rows, integers))
                      .narrow(0, 0, tokens);
    places_.token = places_.token.clamp_max(tokens - 1);
  }

  int64_t chunks() const { return chunks_; }
  /// How many sequences have a chunk i.
  const std::vector<int64_t>& active() const { return active_; }

  /// [B, T, heads, channels] -> [chunks, heads, kChunk, channels], `fill` after the ends.
  Tensor cut(const Tensor& x, at::ScalarType type, const Tensor& fill) const {
    const Tensor rows = Cut::apply(x.flatten(0, 1), places_, fill.to(x.scalar_type())).to(type);
    return rows.unflatten(0, {chunks_, kChunk}).transpose(1, 2).contiguous();
  }

  /// The way back, to the shape of `like`.
  Tensor join(const Tensor& x, const Tensor& like) const {
    const Tensor rows = x.transpose(1, 2).flatten(0, 1).to(like.scalar_type());
    return Join::apply(rows, places_).view(like.sizes());
  }

  /// States [N, ...] in the order of the layout, and back.
  Tensor sorted(const Tensor& states) const {
    return order_.defined() ? states.index_select(0, order_) : states;
  }
  Tensor unsorted(const Tensor& states) const {
    return order_.defined() ? states.index_select(0, rank_) : states;
  }

 private:
  int64_t chunks_ = 0;
  std::vector<int64_t> active_;
  Places places_;
  Tensor order_, rank_;  // [N]; undefined: as they came
};

// ---- from chunk to chunk --------------------------------------------------------------------

/// The states [S | M] = X [states, V, 2K] through the chunks, m of them with their heads: with the
/// state X of its sequence and head a chunk has
///   R = r_free + r_from_x Xᵀ
///   S <- a_C S - b_C M, M <- m_C M, then X <- X + Rᵀ x_from_r
/// r_free [m, C, V], r_from_x, x_from_r [m, C, 2K], ends [m, 3] (a_C, -b_C, m_C). `active`: states
/// of each step, the first ones. Gives X before each chunk [m, V, 2K], R [m, C, V] and the last X.
///
/// Autograd would fill a gradient of all chunks at each step of it; here the backward pass walks
/// the steps with what they depend on and makes the other products for all chunks at once.
class Chain : public torch::autograd::Function<Chain> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& r_free, const Tensor& r_from_x,
                               const Tensor& x_from_r, const Tensor& ends, const Tensor& first,
                               const std::vector<int64_t>& active) {
    const int64_t m = r_free.size(0), V = first.size(1), K = first.size(2) / 2;
    const Tensor before = at::empty({m, V, 2 * K}, first.options()), R = at::empty_like(r_free);
    const Tensor last = first.clone(at::MemoryFormat::Contiguous);
    int64_t row = 0;
    for (const int64_t states : active) {
      const auto rows = [&](const Tensor& t) { return t.narrow(0, row, states); };
      const Tensor X = last.narrow(0, 0, states);
      Tensor r = rows(R);
      rows(before).copy_(X);
      at::baddbmm_out(r, rows(r_free), rows(r_from_x), X.mT());
      const auto [a, minus_b, m_end] = ends_of(rows(ends));
      const Tensor S = X.narrow(2, 0, K), M = X.narrow(2, K, K);
      S.mul_(a).addcmul_(M, minus_b);
      M.mul_(m_end);
      X.baddbmm_(r.mT(), rows(x_from_r));
      row += states;
    }
    ctx->save_for_backward({r_from_x, x_from_r, ends, before, R});
    ctx->saved_data["active"] = active;
    return {before, R, last};
  }

  // For a chunk, from dX after it, with what reads the state before it (d_before) and R (d_R):
  //   dR = d_R + x_from_r dXᵀ
  //   dM <- m_C dM - b_C dS, dS <- a_C dS, then dX <- dX + dRᵀ r_from_x + d_before
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    check_first_order("general_momentum_delta_rule");
    const auto saved = ctx->get_saved_variables();
    const Tensor &r_from_x = saved[0], &x_from_r = saved[1], &ends = saved[2], &before = saved[3],
                 &R = saved[4];
    const Tensor &d_before = grads[0], &d_R = grads[1];
    const auto active = ctx->saved_data["active"].toIntVector();
    const int64_t K = before.size(2) / 2;
    const Tensor d_last = grads[2].clone(at::MemoryFormat::Contiguous);
    const Tensor dR = at::empty_like(R), d_after = at::empty_like(before);
    int64_t row = before.size(0);
    for (auto states = active.rbegin(); states != active.rend(); ++states) {
      row -= *states;
      const auto rows = [&](const Tensor& t) { return t.narrow(0, row, *states); };
      const Tensor dX = d_last.narrow(0, 0, *states);
      Tensor d_r = rows(dR);
      rows(d_after).copy_(dX);
      at::baddbmm_out(d_r, rows(d_R), rows(x_from_r), dX.mT());
      const auto [a, minus_b, m_end] = ends_of(rows(ends));
      const Tensor dS = dX.narrow(2, 0, K), dM = dX.narrow(2, K, K);
      dM.mul_(m_end).addcmul_(dS, minus_b);
      dS.mul_(a);
      dX.baddbmm_(d_r.mT(), rows(r_from_x)).add_(rows(d_before));
    }
    const auto S_of = [&](const Tensor& t) { return t.narrow(2, 0, K); };
    const auto M_of = [&](const Tensor& t) { return t.narrow(2, K, K); };
    const auto dot = [](const Tensor& x, const Tensor& y) { return (x * y).sum({1, 2}); };
    return {dR,
            at::bmm(dR, before),
            at::bmm(R, d_after),
            at::stack({dot(S_of(d_after), S_of(before)), dot(S_of(d_after), M_of(before)),
                       dot(M_of(d_after), M_of(before))},
                      -1),
            d_last,
            {}};
  }

 private:
  static std::array<Tensor, 3> ends_of(const Tensor& ends) {
    const auto of = [&](int64_t i) { return ends.select(1, i).view({-1, 1, 1}); };
    return {of(0), of(1), of(2)};
  }
};

// ---- the program ----------------------------------------------------------------------------

Tensor normalised(const Tensor& x, bool l2norm) {
  return l2norm ? x * (x.square().sum(-1, true) + kernels::kL2NormEps).rsqrt() : x;
}

/// What does not change when the operator is differentiated.
struct Shape {
  OptionalTensor cu_seqlens;  // on the CPU
  double scale = 1;
  bool l2norm = false;
};

enum Input : size_t { kQ, kK, kV, kAlpha, kMu, kEta, kBeta, kKappa, kLambda, kPi, kS, kM, kInputs };

/// o and the final states, by operations that torch differentiates. With X = [S | M] and D =
/// diag(eta), a chunk is
///   R = (I + (H∘KKᵀ) D)⁻¹ (V + [-diag(e) K | diag(c) K] X)
///   O = scale ([diag(a) Q | -diag(b) Q] X + (P∘G) D R),   P = QKᵀ
///   S <- a_C S - b_C M + Kᵀ diag(g) D R,   M <- m_C M - Kᵀ diag(n) D R
/// where g and n are the last rows of G and Mu; only X is carried from chunk to chunk.
variable_list program(const variable_list& x, const Shape& shape) {
  const auto type = x[kAlpha].scalar_type();
  const int64_t HV = x[kV].size(2), V = x[kV].size(3), K = x[kK].size(3);
  const int64_t group = HV / x[kK].size(2);
  const Layout layout(x[kQ].size(0), x[kQ].size(1), shape.cu_seqlens, x[kQ].device());
  // rows of one batch: chunk, value head
  const auto spread = [&](const Tensor& t) {
    return (group == 1 ? t : t.repeat_interleave(group, 1)).flatten(0, 1);
  };
  // past a sequence's end nothing is written and the states stay: alpha and mu are 1, all else 0
  const Tensor nothing = at::zeros({1}, x[kAlpha].options());
  const Tensor q_heads = normalised(layout.cut(x[kQ], type, nothing), shape.l2norm) * shape.scale;
  const Tensor k_heads = normalised(layout.cut(x[kK], type, nothing), shape.l2norm);
  const Tensor P = spread(at::matmul(q_heads, k_heads.mT()));
  const Tensor KK = spread(at::matmul(k_heads, k_heads.mT()));
  const Tensor q = spread(q_heads), k = spread(k_heads);
  const Tensor v = layout.cut(x[kV], type, nothing).flatten(0, 1);
  const Tensor gates =
      at::stack({x[kAlpha], x[kMu], x[kEta], x[kBeta], x[kKappa], x[kLambda], x[kPi]}, -1);
  const Tensor stay = (at::arange(gates.size(-1), gates.options()) < 2).to(type);
  const GeneralMomentumMasks masks =
      general_momentum_masks(layout.cut(gates, type, stay).flatten(0, 1).permute({2, 0, 1}));

  // rows of t for S and for M: [m, C, K] and [m, C, 2] -> [m, C, 2K]
  const auto of_both = [](const Tensor& t, const Tensor& coefficients) {
    return (t.unsqueeze(2) * coefficients.unsqueeze(-1)).flatten(2);
  };
  const Tensor inverse = unit_lower_inverse(masks.H * KK);
  const Tensor states = layout.sorted(at::cat({x[kS], x[kM]}, -1));
  std::vector<int64_t> active;
  for (const int64_t sequences : layout.active()) {
    active.push_back(sequences * HV);
  }
  const auto chain =
      Chain::apply(at::bmm(inverse, v), at::bmm(inverse, of_both(k, masks.from_states)),
                   of_both(k, masks.to_states), masks.ends, states.flatten(0, 1), active);
  const Tensor &before = chain[0], &R = chain[1];
  const Tensor read = at::bmm(of_both(q, masks.read), before.mT());
  const Tensor rows = at::baddbmm(read, P * masks.G, R);
  const Tensor o = layout.join(rows.unflatten(0, {layout.chunks(), HV}), x[kV]);
  const Tensor last = layout.unsorted(chain[2].view({-1, HV, V, 2 * K}));
  return {o, last.narrow(3, 0, K).contiguous(), last.narrow(3, K, K).contiguous()};
}

/// Keeps the inputs and runs the program again for its gradient: what the program leaves for
/// autograd (masks, solutions, a state a chunk) is held for one layer at a time.
class Recomputed : public torch::autograd::Function<Recomputed> {
 public:
  static variable_list forward(AutogradContext* ctx, at::TensorList inputs,
                               const OptionalTensor& cu_seqlens, double scale, bool l2norm) {
    ctx->save_for_backward(inputs.vec());
    ctx->saved_data["cu_seqlens"] = cu_seqlens;
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["l2norm"] = l2norm;
    ctx->set_materialize_grads(false);
    return program(inputs.vec(), {cu_seqlens, scale, l2norm});
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    check_first_order("general_momentum_delta_rule");
    const auto saved = ctx->get_saved_variables();
    variable_list inputs, wanted;
    for (const Tensor& x : saved) {
      inputs.push_back(x.detach().requires_grad_(x.requires_grad()));
      if (x.requires_grad()) {
        wanted.push_back(inputs.back());
      }
    }
    variable_list outputs, d_outputs, d_wanted;
    {
      const at::AutoGradMode record(true);
      const auto all = program(
          inputs, {ctx->saved_data["cu_seqlens"].toOptional<Tensor>(),
                   ctx->saved_data["scale"].toDouble(), ctx->saved_data["l2norm"].toBool()});
      for (size_t i = 0; i < all.size(); ++i) {
        if (grads[i].defined() && all[i].requires_grad()) {
          outputs.push_back(all[i]);
          d_outputs.push_back(grads[i]);
        }
      }
      if (!outputs.empty() && !wanted.empty()) {
        d_wanted = torch::autograd::grad(outputs, wanted, d_outputs, std::nullopt, false, true);
      }
    }
    variable_list d(kInputs + 3);  // and cu_seqlens, scale, l2norm, which have none
    size_t next = 0;
    for (size_t i = 0; i < kInputs && !d_wanted.empty(); ++i) {
      if (saved[i].requires_grad()) {
        d[i] = d_wanted[next++];
      }
    }
    return d;
  }
};

using Coefficients = std::array<const Tensor*, 6>;
constexpr std::array<const char*, 6> kNames = {"alpha", "mu", "eta", "beta", "kappa", "lambda"};

/// Checks of the inputs that have the tokens' leading sizes: `at` is {B, T} or {B}.
void check_rows(const char* op, std::vector<int64_t> at, const Tensor& q, const Tensor& k,
                const Tensor& v, const Coefficients& gates, const OptionalTensor& pi) {
  const auto dims = static_cast<int64_t>(at.size()) + 2;
  MDN_CHECK(q.dim() == dims && v.dim() == dims,
            "{}: q and v must have {} dimensions, got {} and {}", op, dims, shape_text(q),
            shape_text(v));
  const int64_t H = q.size(-2), K = q.size(-1), HV = v.size(-2), V = v.size(-1);
  MDN_CHECK(H >= 1 && HV >= 1 && HV % H == 0,
            "{}: v has {} heads, which must be a multiple of q's {}", op, HV, H);
  MDN_CHECK(K >= 1 && V >= 1 && q.numel() > 0, "{}: q is {} and v is {}; no size may be 0", op,
            shape_text(q), shape_text(v));
  const auto with = [&](std::initializer_list<int64_t> more) {
    std::vector<int64_t> sizes = at;
    sizes.insert(sizes.end(), more);
    return sizes;
  };
  const auto type = q.scalar_type();
  dtype_of(op, type);
  const TensorCheck check{op, q.device()};
  check(q, "q", with({H, K}), type);
  check(k, "k", with({H, K}), type);
  check(v, "v", with({HV, V}), type);
  for (size_t i = 0; i < gates.size(); ++i) {
    check(*gates[i], kNames[i], with({HV}), gate_type_of(type));
  }
  check(pi, "pi", with({HV}), gate_type_of(type));
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> general_momentum_delta_rule(
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& alpha, const Tensor& mu,
    const Tensor& eta, const Tensor& beta, const Tensor& kappa, const Tensor& lambda,
    const OptionalTensor& pi, const OptionalTensor& initial_S, const OptionalTensor& initial_M,
    const OptionalTensor& cu_seqlens, std::optional<double> scale, bool l2norm) {
  constexpr const char* kOp = "general_momentum_delta_rule";
  MDN_CHECK(q.dim() == 4, "{}: q must be [B, T, H, K], got {}", kOp, shape_text(q));
  const int64_t B = q.size(0), T = q.size(1);
  check_rows(kOp, {B, T}, q, k, v, {&alpha, &mu, &eta, &beta, &kappa, &lambda}, pi);
  OptionalTensor bounds;
  int64_t N = B;
  if (cu_seqlens) {
    bounds = check_cu_seqlens(kOp, *cu_seqlens, B, T, at::kCPU);
    N = bounds->numel() - 1;
  }
  MDN_CHECK(initial_S.has_value() == initial_M.has_value(),
            "{}: initial_S and initial_M must be given together", kOp);
  const std::vector<int64_t> states = {N, v.size(2), v.size(3), q.size(3)};
  const TensorCheck check{kOp, q.device()};
  check(initial_S, "initial_S", states, alpha.scalar_type());
  check(initial_M, "initial_M", states, alpha.scalar_type());
  const auto start = [&](const OptionalTensor& x) {
    return x ? *x : at::zeros(states, alpha.options().requires_grad(false));
  };
  const variable_list inputs = {q,
                                k,
                                v,
                                alpha,
                                mu,
                                eta,
                                beta,
                                kappa,
                                lambda,
                                pi.value_or(alpha),
                                start(initial_S),
                                start(initial_M)};
  const auto y =
      Recomputed::apply(at::TensorList(inputs), bounds, scale_of(scale, q.size(-1)), l2norm);
  return {y[0], y[1], y[2]};
}

Tensor general_momentum_delta_rule_step(const Tensor& q_in, const Tensor& k_in, const Tensor& v,
                                        const Tensor& alpha, const Tensor& mu, const Tensor& eta,
                                        const Tensor& beta, const Tensor& kappa,
                                        const Tensor& lambda, Tensor& S, Tensor& M,
                                        const OptionalTensor& pi, std::optional<double> scale,
                                        bool l2norm) {
  constexpr const char* kOp = "general_momentum_delta_rule_step";
  MDN_CHECK(q_in.dim() == 3, "{}: q must be [B, H, K], got {}", kOp, shape_text(q_in));
  const int64_t B = q_in.size(0);
  check_rows(kOp, {B}, q_in, k_in, v, {&alpha, &mu, &eta, &beta, &kappa, &lambda}, pi);
  const int64_t group = v.size(1) / q_in.size(1);
  const TensorCheck check{kOp, q_in.device()};
  check(S, "S", {B, v.size(1), v.size(2), q_in.size(2)}, alpha.scalar_type());
  check(M, "M", S.sizes(), alpha.scalar_type());

  const auto heads = [&](const Tensor& x) {  // [B, HV, 1, K]
    const Tensor wide = normalised(x.to(alpha.scalar_type()), l2norm);
    return (group == 1 ? wide : wide.repeat_interleave(group, 1)).unsqueeze(2);
  };
  const auto per_value = [](const Tensor& gate) { return gate.unsqueeze(-1); };
  const auto per_entry = [](const Tensor& gate) { return gate.unsqueeze(-1).unsqueeze(-1); };
  const Tensor q = heads(q_in), k = heads(k_in);
  const Tensor r = v.to(alpha.scalar_type()) - per_value(pi.value_or(alpha)) * (S * k).sum(-1) +
                   per_value(lambda) * (M * k).sum(-1);
  const Tensor write = (per_value(eta) * r).unsqueeze(-1) * k;  // eta k rᵀ
  S.mul_(per_entry(alpha)).sub_(per_entry(kappa) * M).add_(per_entry(beta) * write);
  M.mul_(per_entry(mu)).sub_(write);
  return ((S * q).sum(-1) * scale_of(scale, q_in.size(-1))).to(v.scalar_type());
}

TORCH_LIBRARY_FRAGMENT(mdn, m) {
#define MDN_ROWS                                                                            \
  "Tensor q, Tensor k, Tensor v, Tensor alpha, Tensor mu, Tensor eta, Tensor beta, Tensor " \
  "kappa, Tensor lambda, "
  m.def("general_momentum_delta_rule(" MDN_ROWS
        "Tensor? pi=None, Tensor? initial_S=None, Tensor? initial_M=None, Tensor? "
        "cu_seqlens=None, float? scale=None, bool l2norm=False) -> (Tensor o, Tensor final_S, "
        "Tensor final_M)",
        general_momentum_delta_rule);
  m.def("general_momentum_delta_rule_step(" MDN_ROWS
        "Tensor(a!) S, Tensor(b!) M, Tensor? pi=None, float? scale=None, bool l2norm=False) -> "
        "Tensor o",
        general_momentum_delta_rule_step);
#undef MDN_ROWS
}

}  // namespace mdn::ops

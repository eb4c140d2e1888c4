#include "mdn/ops/general_momentum_delta_rule.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "mdn/kernels/momentum_delta_rule.h"
#include "mdn/ops/tensor.h"

namespace mdn::ops {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kChunk = 64;  // tokens, a power of two

at::ScalarType gate_type_of(const Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// ---- how tokens lie in chunks ---------------------------------------------------------------

/// Every sequence on a grid of its own, padded to the chunks of the longest.
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
    sequences_ = static_cast<int64_t>(bounds.size()) - 1;
    int64_t longest = 0;
    for (int64_t n = 0; n < sequences_; ++n) {
      longest = std::max(longest, bounds[n + 1] - bounds[n]);
    }
    chunks_ = (longest + kChunk - 1) / kChunk;
    const int64_t rows = chunks_ * kChunk;  // of a sequence
    std::vector<int64_t> token(static_cast<size_t>(sequences_ * rows), -1), row;
    for (int64_t n = 0; n < sequences_; ++n) {
      for (int64_t t = bounds[n]; t < bounds[n + 1]; ++t) {
        row.push_back(n * rows + t - bounds[n]);
        token[static_cast<size_t>(row.back())] = t;
      }
    }
    padded_ = row.size() < token.size();
    token_ = at::tensor(token, at::kLong).to(device);
    padding_ = token_ < 0;
    token_ = token_.clamp_min(0);
    row_ = at::tensor(row, at::kLong).to(device);
  }

  int64_t sequences() const { return sequences_; }
  int64_t chunks() const { return chunks_; }  // of every sequence

  /// [B, T, heads, channels] -> [chunks, N, heads, kChunk, channels], `fill` after the ends.
  Tensor cut(const Tensor& x, at::ScalarType type, double fill) const {
    Tensor rows = x.flatten(0, 1).index_select(0, token_).to(type);
    if (padded_) {
      rows = rows.masked_fill(padding_.view({-1, 1, 1}), fill);
    }
    return rows.view({sequences_, chunks_, kChunk, x.size(2), x.size(3)})
        .permute({1, 0, 3, 2, 4})
        .contiguous();
  }

  /// The way back, to the shape of `like`.
  Tensor join(const Tensor& x, const Tensor& like) const {
    const Tensor rows = x.permute({1, 0, 3, 2, 4}).reshape({-1, x.size(2), x.size(4)});
    return rows.index_select(0, row_).view(like.sizes()).to(like.scalar_type());
  }

 private:
  int64_t sequences_ = 0, chunks_ = 0;
  bool padded_ = false;
  Tensor token_, padding_;  // [N rows]: the token of each row, and whether there is none
  Tensor row_;              // [B T]
};

// ---- masks ----------------------------------------------------------------------------------

/// For a run of tokens: the coefficients with which a write (column j) and the states before the
/// run act on M (Mu, m), on S (G; a, b with -b that of M) and on predictions (H; e, c with -c).
struct Masks {
  Tensor Mu, G, H;       // [m, C, C], lower triangular (H: strictly)
  Tensor m, a, b, e, c;  // [m, C]
};

/// Doubles the run until it is a chunk. With 1 and 2 being neighbouring runs, and g, n, a', b', m'
/// the last rows and entries of the first:
///   Mu21 = m2 nᵀ,   G21 = a2 gᵀ + b2 nᵀ,   H21 = e2 gᵀ + c2 nᵀ
///   m2 m',   a2 a',   a2 b' + b2 m',   e2 a',   e2 b' + c2 m'   in place of m2, a2, b2, e2, c2
/// Coefficients [m, C].
Masks make_masks(const Tensor& alpha, const Tensor& mu, const Tensor& beta, const Tensor& kappa,
                 const Tensor& lambda, const Tensor& pi) {
  const int64_t count = alpha.size(0);
  const auto runs = [&](const Tensor& x) { return x.reshape({count, kChunk, 1}); };
  Masks x{.Mu = at::ones({count, kChunk, 1, 1}, alpha.options()),
          .G = runs(beta).unsqueeze(-1),
          .H = at::zeros({count, kChunk, 1, 1}, alpha.options()),
          .m = runs(mu),
          .a = runs(alpha),
          .b = runs(kappa),
          .e = runs(pi),
          .c = runs(lambda)};
  for (int64_t length = 1; length < kChunk; length *= 2) {
    const auto first = [](const Tensor& t) { return t.slice(1, 0, std::nullopt, 2); };
    const auto second = [](const Tensor& t) { return t.slice(1, 1, std::nullopt, 2); };
    const auto last = [&](const Tensor& t) { return first(t).narrow(2, length - 1, 1); };
    const auto square = [&](const Tensor& t, const Tensor& below) {
      const Tensor upper = at::cat({first(t), at::zeros_like(below)}, 3);
      return at::cat({upper, at::cat({below, second(t)}, 3)}, 2);
    };
    const auto column = [&](const Tensor& t) { return second(t).unsqueeze(-1); };
    const auto row = [&](const Tensor& t, const Tensor& of_second) {
      return at::cat({first(t), of_second}, 2);
    };
    const Tensor g = last(x.G), n = last(x.Mu), a = last(x.a), b = last(x.b), m = last(x.m);
    x = {.Mu = square(x.Mu, column(x.m) * n),
         .G = square(x.G, column(x.a) * g + column(x.b) * n),
         .H = square(x.H, column(x.e) * g + column(x.c) * n),
         .m = row(x.m, second(x.m) * m),
         .a = row(x.a, second(x.a) * a),
         .b = row(x.b, second(x.a) * b + second(x.b) * m),
         .e = row(x.e, second(x.e) * a),
         .c = row(x.c, second(x.e) * b + second(x.c) * m)};
  }
  return {.Mu = x.Mu.squeeze(1),
          .G = x.G.squeeze(1),
          .H = x.H.squeeze(1),
          .m = x.m.squeeze(1),
          .a = x.a.squeeze(1),
          .b = x.b.squeeze(1),
          .e = x.e.squeeze(1),
          .c = x.c.squeeze(1)};
}

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
  const int64_t chunks = layout.chunks(), N = layout.sequences();
  // rows of one batch: chunk, sequence, value head
  const auto spread = [&](const Tensor& t) {
    return (group == 1 ? t : t.repeat_interleave(group, 2)).flatten(0, 2);
  };
  const Tensor q_heads = normalised(layout.cut(x[kQ], type, 0), shape.l2norm);
  const Tensor k_heads = normalised(layout.cut(x[kK], type, 0), shape.l2norm);
  const Tensor P = spread(at::matmul(q_heads, k_heads.mT()));
  const Tensor KK = spread(at::matmul(k_heads, k_heads.mT()));
  const Tensor q = spread(q_heads), k = spread(k_heads);
  const Tensor v = layout.cut(x[kV], type, 0).flatten(0, 2);
  // past a sequence's end nothing is written and the states stay
  const auto gate = [&](Input input, double fill) {
    return layout.cut(x[input].unsqueeze(-1), type, fill).flatten(0, 2).squeeze(-1);
  };
  const Tensor eta = gate(kEta, 0);
  const Masks masks = make_masks(gate(kAlpha, 1), gate(kMu, 1), gate(kBeta, 0), gate(kKappa, 0),
                                 gate(kLambda, 0), gate(kPi, 0));

  const auto column = [](const Tensor& t) { return t.unsqueeze(-1); };
  const Tensor D = eta.unsqueeze(1);  // scales columns
  const Tensor rhs = at::cat({v, column(masks.e) * -k, column(masks.c) * k}, -1);
  const Tensor solved = at::linalg_solve_triangular(masks.H * KK * D, rhs, false, true, true);
  const Tensor r_free = solved.narrow(2, 0, V), r_from_x = solved.narrow(2, V, 2 * K);
  const auto last = [](const Tensor& t) { return t.select(1, kChunk - 1); };
  const Tensor x_from_r =
      at::cat({column(last(masks.G) * eta) * k, column(last(masks.Mu) * eta) * -k}, -1);

  const int64_t batch = N * HV;
  Tensor X = at::cat({x[kS], x[kM]}, -1).view({batch, V, 2 * K});
  std::vector<Tensor> before, errors;
  for (int64_t i = 0; i < chunks; ++i) {
    const auto rows = [&](const Tensor& t) { return t.narrow(0, i * batch, batch); };
    const auto end = [&](const Tensor& t) { return last(rows(t)).view({batch, 1, 1}); };
    before.push_back(X);
    errors.push_back(at::baddbmm(rows(r_free), rows(r_from_x), X.mT()));
    const Tensor S = X.narrow(2, 0, K), M = X.narrow(2, K, K);
    X = at::cat({end(masks.a) * S - end(masks.b) * M, end(masks.m) * M}, -1);
    X = at::baddbmm(X, errors.back().mT(), rows(x_from_r));
  }
  const Tensor o_from_x = at::cat({column(masks.a) * q, column(masks.b) * -q}, -1);
  const Tensor read = at::bmm(o_from_x, at::cat(before, 0).mT());
  const Tensor rows = at::baddbmm(read, P * masks.G * D, at::cat(errors, 0)) * shape.scale;
  const Tensor o = layout.join(rows.view({chunks, N, HV, kChunk, V}), x[kV]);
  X = X.view({N, HV, V, 2 * K});
  return {o, X.narrow(3, 0, K).contiguous(), X.narrow(3, K, K).contiguous()};
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
    check(*gates[i], kNames[i], with({HV}), gate_type_of(q));
  }
  check(pi, "pi", with({HV}), gate_type_of(q));
}

double scale_of(const std::optional<double>& scale, const Tensor& q) {
  return scale.value_or(1.0 / std::sqrt(static_cast<double>(q.size(-1))));
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
  const auto y = Recomputed::apply(at::TensorList(inputs), bounds, scale_of(scale, q), l2norm);
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
  return ((S * q).sum(-1) * scale_of(scale, q_in)).to(v.scalar_type());
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

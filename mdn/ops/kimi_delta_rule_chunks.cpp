#include "mdn/ops/kimi_delta_rule_chunks.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>

#include "mdn/kernels/momentum_delta_rule.h"

namespace mdn::ops::kimi_chunks {
namespace {

using at::Tensor;

// Elements of the largest temporary of a piece: on the CPU what a cache holds a few of, on a GPU
// what keeps it busy.
constexpr int64_t kPieceCpu = int64_t{1} << 18;
constexpr int64_t kPieceCuda = int64_t{1} << 26;

/// How the tokens of all sequences lie in chunks. Chunk c of every sequence that has so many comes
/// before any chunk c + 1, and the longest sequences come first, so that the states that step c
/// advances are the first `active(c)` of them and its chunks are consecutive.
class Grid {
 public:
  Grid(int64_t B, int64_t T, const std::vector<int64_t>& bounds, c10::Device device) {
    std::vector<int64_t> begin, length;
    const auto N = bounds.empty() ? B : static_cast<int64_t>(bounds.size()) - 1;
    for (int64_t n = 0; n < N; ++n) {
      begin.push_back(bounds.empty() ? n * T : bounds[n]);
      length.push_back(bounds.empty() ? T : bounds[n + 1] - bounds[n]);
    }
    const auto chunks_of = [&](int64_t n) { return (length[n] + kChunk - 1) / kChunk; };
    std::vector<int64_t> order(N);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return chunks_of(a) > chunks_of(b); });
    std::vector<int64_t> token, row;
    first_chunk_.push_back(0);
    first_valid_.push_back(0);
    for (int64_t c = 0; c < chunks_of(order[0]); ++c) {
      int64_t chunk = first_chunk_.back();
      for (int64_t n : order) {
        if (c >= chunks_of(n)) {
          break;
        }
        for (int64_t i = 0; i < kChunk; ++i) {
          const int64_t t = c * kChunk + i;
          token.push_back(t < length[n] ? begin[n] + t : -1);
          if (t < length[n]) {
            row.push_back(chunk * kChunk + i);
          }
        }
        ++chunk;
      }
      first_chunk_.push_back(chunk);
      first_valid_.push_back(static_cast<int64_t>(row.size()));
    }
    const auto on_device = [&](const std::vector<int64_t>& x) {
      return at::tensor(x, at::kLong).to(device);
    };
    sequences_ = N;
    order_ = on_device(order);
    token_ = on_device(token);
    padding_ = token_ < 0;
    token_ = token_.clamp_min(0);
    row_ = on_device(row);
  }

  int64_t sequences() const { return sequences_; }
  int64_t steps() const { return static_cast<int64_t>(first_chunk_.size()) - 1; }
  int64_t chunks() const { return first_chunk_.back(); }
  int64_t active(int64_t step) const { return first_chunk_[step + 1] - first_chunk_[step]; }
  int64_t first_chunk(int64_t step) const { return first_chunk_[step]; }

  /// Tokens of the chunks of steps [begin, end): rows of x [tokens, heads, channels], in x's type,
  /// -> [chunks, heads, kChunk, channels] in `type`, `fill` after a sequence's end.
  Tensor gather(const Tensor& x, int64_t begin, int64_t end, at::ScalarType type,
                double fill) const {
    const int64_t first = first_chunk_[begin], chunks = first_chunk_[end] - first;
    const auto part = [&](const Tensor& index) {
      return index.narrow(0, first * kChunk, chunks * kChunk);
    };
    Tensor rows = x.index_select(0, part(token_));
    if (padded(begin, end)) {
      rows.masked_fill_(part(padding_).view({-1, 1, 1}), fill);
    }
    return rows.view({chunks, kChunk, x.size(1), x.size(2)}).transpose(1, 2).to(type).contiguous();
  }

  /// The way back: writes the tokens of chunks [chunks, heads, kChunk, channels] into x.
  void scatter(const Tensor& from, int64_t begin, int64_t end, const Tensor& x) const {
    const int64_t valid = first_valid_[end] - first_valid_[begin];
    Tensor row = row_.narrow(0, first_valid_[begin], valid) - first_chunk_[begin] * kChunk;
    Tensor rows = from.transpose(1, 2).reshape({-1, from.size(1), from.size(3)});
    Tensor token = token_.narrow(0, first_chunk_[begin] * kChunk, rows.size(0));
    if (padded(begin, end)) {
      rows = rows.index_select(0, row);
      token = token.index_select(0, row);
    }
    x.index_copy_(0, token, rows.to(x.scalar_type()));
  }

  /// States between the caller's order of sequences and the longest-first order of steps.
  Tensor to_steps(const Tensor& states) const { return states.index_select(0, order_); }
  Tensor from_steps(const Tensor& states) const {
    return at::empty_like(states).index_copy_(0, order_, states);
  }

 private:
  bool padded(int64_t begin, int64_t end) const {
    return first_valid_[end] - first_valid_[begin] <
           (first_chunk_[end] - first_chunk_[begin]) * kChunk;
  }

  int64_t sequences_ = 0;
  std::vector<int64_t> first_chunk_, first_valid_;  // of each step; and the end
  Tensor order_;                                    // sequences, the longest first
  Tensor token_, padding_;                          // [chunks kChunk]: token, whether there is none
  Tensor row_;                                      // [tokens]: rows of token_ that are no padding
};

/// A range of heads and steps that is worked on at once.
struct Range {
  int64_t key_head, key_heads, group;
  int64_t step, step_end;

  int64_t head() const { return key_head * group; }
  int64_t heads() const { return key_heads * group; }
};

/// Cuts heads, then steps, so that no temporary is above the limit by more than need be.
std::vector<std::vector<Range>> cut(const Grid& grid, int64_t H, int64_t group, int64_t channels,
                                    bool cuda) {
  const int64_t limit = cuda ? kPieceCuda : kPieceCpu;
  const int64_t a_head = std::max<int64_t>(grid.active(0), 1) * group * kChunk * channels;
  const int64_t key_heads = std::clamp<int64_t>(limit / a_head, 1, H);
  const int64_t steps = std::max<int64_t>(limit / (a_head * key_heads), 1);
  std::vector<std::vector<Range>> ranges;
  for (int64_t head = 0; head < H; head += key_heads) {
    auto& of_heads = ranges.emplace_back();
    for (int64_t step = 0; step < grid.steps(); step += steps) {
      of_heads.push_back(
          {head, std::min(key_heads, H - head), group, step, std::min(step + steps, grid.steps())});
    }
  }
  return ranges;
}

// ---- masks ----------------------------------------------------------------------------------

/// What the scores between the two halves of each block of 2 half tokens were made with, kept for
/// their gradient. Per block and channel: left[t] is the decay from the middle to t in the second
/// half, right[j] from j to the middle in the first, `total` that of the whole first half.
struct Level {
  Tensor left, right;  // [m, blocks, half, K]
  Tensor total;        // [m, blocks, 1, K]
};

Tensor blocks_of(const Tensor& x, int64_t half) {
  return x.view({x.size(0), kChunk / (2 * half), 2, half, x.size(2)});
}

/// The lower left quarters of the diagonal blocks of [m, C, C], as a view [m, half, half, blocks].
Tensor quarters(const Tensor& x, int64_t half) {
  const int64_t blocks = kChunk / (2 * half);
  return x.view({x.size(0), blocks, 2, half, blocks, 2, half})
      .select(5, 0)
      .select(2, 1)
      .diagonal(0, 1, 3);
}

/// Scores of a piece and the decays over whole chunks, A(t, j) being the product of alpha over
/// tokens j + 1 to t:
///   KK[t, j] = k_t·(A(t, j) k_j) for j < t,   QK[t, j] = q_t·(A(t, j) k_j) for j <= t
struct Masks {
  Tensor KK, QK;        // [m, C, C]
  Tensor since, until;  // [m, C, K]: from the chunk's start to after t, from after j to its end
  std::vector<Level> levels;
};

Masks make_masks(const Tensor& q, const Tensor& k, const Tensor& alpha, bool keep_levels) {
  const int64_t m = k.size(0), K = k.size(2);
  Masks masks;
  masks.KK = at::zeros({m, kChunk, kChunk}, k.options());
  masks.QK = at::zeros({m, kChunk, kChunk}, k.options());
  masks.QK.diagonal(0, 1, 2).copy_((q * k).sum(-1));
  // Within blocks of `half` tokens: from the block's start to after t, from after j to its end.
  Tensor since = alpha.clone(), until = at::ones_like(alpha);
  for (int64_t half = 1; half < kChunk; half *= 2) {
    const int64_t blocks = m * kChunk / (2 * half);
    const Tensor since_b = blocks_of(since, half), until_b = blocks_of(until, half);
    const Tensor left = since_b.select(2, 1), right = until_b.select(2, 0);
    const Tensor total = since_b.select(2, 0).narrow(2, half - 1, 1);
    const Tensor k_b = blocks_of(k, half);
    // A(t, j) = left[t] right[j]
    const auto flat = [&](const Tensor& x) { return x.reshape({blocks, half, K}); };
    const Tensor k_right = flat(k_b.select(2, 0) * right).mT();
    const auto put = [&](const Tensor& to, const Tensor& rows) {
      const Tensor scores = at::bmm(flat(rows * left), k_right);
      quarters(to, half).copy_(scores.view({m, -1, half, half}).permute({0, 2, 3, 1}));
    };
    put(masks.KK, k_b.select(2, 1));
    put(masks.QK, blocks_of(q, half).select(2, 1));
    if (keep_levels) {
      masks.levels.push_back({left.clone(), right.clone(), total.clone()});
    }
    // The second half's end is the block's; then its tokens see the first half decay as well.
    right.mul_(left.narrow(2, half - 1, 1));
    left.mul_(total);
  }
  masks.since = since;
  masks.until = until;
  return masks;
}

/// Adds to d_q and d_k what comes from the gradients of KK and QK (read below their diagonals) and
/// of QK's diagonal; d_since and d_until, the gradients of since and until, are used up. Returns
/// the gradient of alpha.
Tensor masks_gradient(const Masks& masks, const Tensor& q, const Tensor& k, const Tensor& d_KK,
                      const Tensor& d_QK, Tensor d_since, Tensor d_until, const Tensor& d_q,
                      const Tensor& d_k) {
  const int64_t m = k.size(0), K = k.size(2);
  const Tensor d_diagonal = d_QK.diagonal(0, 1, 2).unsqueeze(-1);
  d_q.addcmul_(d_diagonal, k);
  d_k.addcmul_(d_diagonal, q);
  int64_t half = kChunk / 2;
  for (auto level = masks.levels.rbegin(); level != masks.levels.rend(); ++level, half /= 2) {
    const int64_t blocks = m * kChunk / (2 * half);
    const auto& [left, right, total] = *level;
    const Tensor d_since_b = blocks_of(d_since, half), d_until_b = blocks_of(d_until, half);
    const Tensor d_left = d_since_b.select(2, 1), d_right = d_until_b.select(2, 0);
    // Of left <- left total and right <- right left[last]
    const Tensor d_total = (d_left * left).sum(2, true), d_last = (d_right * right).sum(2, true);
    d_left.mul_(total);
    d_right.mul_(left.narrow(2, half - 1, 1));
    d_since_b.select(2, 0).narrow(2, half - 1, 1).add_(d_total);
    d_left.narrow(2, half - 1, 1).add_(d_last);
    // Of the scores
    const auto flat = [&](const Tensor& x) { return x.reshape({blocks, half, K}); };
    const auto get = [&](const Tensor& d) {
      return quarters(d, half).permute({0, 3, 1, 2}).reshape({blocks, half, half});
    };
    const Tensor k_b = blocks_of(k, half), d_k_b = blocks_of(d_k, half);
    const Tensor k_first = k_b.select(2, 0), k_right = flat(k_first * right);
    Tensor d_k_right = at::zeros_like(k_right);
    const auto add = [&](const Tensor& d_scores, const Tensor& rows, const Tensor& d_rows) {
      const Tensor d = get(d_scores);
      const Tensor d_product = at::bmm(d, k_right).view_as(left);  // of rows left
      d_rows.addcmul_(d_product, left);
      d_left.addcmul_(d_product, rows);
      d_k_right.baddbmm_(d.mT(), flat(rows * left));
    };
    add(d_KK, k_b.select(2, 1), d_k_b.select(2, 1));
    add(d_QK, blocks_of(q, half).select(2, 1), blocks_of(d_q, half).select(2, 1));
    d_k_right = d_k_right.view_as(right);
    d_k_b.select(2, 0).addcmul_(d_k_right, right);
    d_right.addcmul_(d_k_right, k_first);
  }
  return d_since;
}

// ---- pieces ---------------------------------------------------------------------------------

/// x / sqrt(sum(x²) + eps), and the factor.
struct Unit {
  Tensor x, factor;
};

Unit unit(const Tensor& x, bool l2norm) {
  if (!l2norm) {
    return {x, {}};
  }
  const Tensor factor = (x.square().sum(-1, true) + kernels::kL2NormEps).rsqrt();
  return {x * factor, factor};
}

Tensor unit_gradient(const Unit& u, const Tensor& d) {
  return u.factor.defined() ? u.factor * (d - u.x * (u.x * d).sum(-1, true)) : d;
}

/// The operands of a range, one row of m = chunks heads a chunk and value head, and what is made of
/// them without a state:
///   (I + KK D) [U | W] = [V | since K],   D = diag(beta)
struct Piece {
  Unit q_unit, k_unit;    // [chunks, key heads, C, K]
  Tensor q, k, v, alpha;  // [m, C, .]
  Tensor beta;            // [m, C, 1]
  Masks masks;
  Tensor system;   // KK D: strictly lower
  Tensor q_since;  // scale since Q: reads the state before the chunk
  Tensor U, W;     // [m, C, V], [m, C, K]
  Tensor k_until;  // until K: writes into the state after it
  Tensor decay;    // [m, 1, K] of the state over the chunk
};

/// Everything a pass needs of the call: tensors as rows of tokens, the grid, the cut.
struct Pass {
  explicit Pass(const Call& of)
      : call(of),
        type(of.beta.scalar_type()),
        B(of.q.size(0)),
        T(of.q.size(1)),
        H(of.q.size(2)),
        K(of.q.size(3)),
        HV(of.v.size(2)),
        V(of.v.size(3)),
        grid(B, T, of.bounds, of.q.device()),
        ranges(cut(grid, H, HV / H, std::max(K, V), of.q.is_cuda())) {}

  /// [B, T, heads, channels] (contiguous) -> [B T, heads of the range, channels], a view.
  static Tensor tokens(const Tensor& x, int64_t first, int64_t heads) {
    return x.view({x.size(0) * x.size(1), x.size(2), -1}).narrow(1, first, heads);
  }
  Tensor keys(const Tensor& x, const Range& r) const { return tokens(x, r.key_head, r.key_heads); }
  Tensor values(const Tensor& x, const Range& r) const { return tokens(x, r.head(), r.heads()); }

  Tensor gather(const Tensor& rows, const Range& r, double fill = 0) const {
    return grid.gather(rows, r.step, r.step_end, type, fill);
  }
  static Tensor flat(const Tensor& x) { return x.flatten(0, 1); }
  /// Query/key heads to the value heads that share them.
  static Tensor shared(const Tensor& x, int64_t group) {
    return group == 1 ? flat(x) : x.repeat_interleave(group, 1).flatten(0, 1);
  }
  static Tensor summed(const Tensor& x, const Range& r) {
    return x.view({-1, r.key_heads, r.group, x.size(1), x.size(2)}).sum(2);
  }

  Piece piece(const Range& r, bool keep_levels) const {
    Piece p;
    p.q_unit = unit(gather(keys(call.q, r), r), call.l2norm);
    p.k_unit = unit(gather(keys(call.k, r), r), call.l2norm);
    p.q = shared(p.q_unit.x, r.group);
    p.k = shared(p.k_unit.x, r.group);
    p.v = flat(gather(values(call.v, r), r));
    p.alpha = flat(gather(values(call.alpha, r), r, 1));
    p.beta = flat(gather(values(call.beta, r), r));
    p.masks = make_masks(p.q, p.k, p.alpha, keep_levels);
    p.system = p.masks.KK * p.beta.mT();
    p.q_since = p.q * p.masks.since * call.scale;
    p.k_until = p.k * p.masks.until;
    p.decay = p.masks.since.narrow(1, kChunk - 1, 1);
    const Tensor UW = at::linalg_solve_triangular(p.system, at::cat({p.v, p.k * p.masks.since}, -1),
                                                  false, true, true);
    p.U = UW.narrow(2, 0, V);
    p.W = UW.narrow(2, V, K);
    return p;
  }

  /// Rows of a piece that belong to one step: calls body(rows, sequences' states).
  struct Rows {
    int64_t first, count;
    Tensor operator()(const Tensor& x) const { return x.narrow(0, first, count); }
  };
  Rows rows_of(const Range& r, int64_t step) const {
    const int64_t before = grid.first_chunk(step) - grid.first_chunk(r.step);
    return {before * r.heads(), grid.active(step) * r.heads()};
  }
  /// [chunks or N, HV, V, K] -> those of the range's heads, copied to [m, V, K].
  static Tensor states_of(const Tensor& states, const Range& r) {
    return states.narrow(1, r.head(), r.heads()).flatten(0, 1);
  }
  Tensor chunk_states(const Tensor& states, const Range& r) const {
    const int64_t first = grid.first_chunk(r.step);
    return states.narrow(0, first, grid.first_chunk(r.step_end) - first)
        .narrow(1, r.head(), r.heads());
  }

  const Call& call;
  at::ScalarType type;
  int64_t B, T, H, K, HV, V;
  Grid grid;
  std::vector<std::vector<Range>> ranges;
};

}  // namespace

std::tuple<Tensor, Tensor> forward(const Call& call, const Tensor& saved_states) {
  const Pass pass(call);
  const Grid& grid = pass.grid;
  const auto options = call.beta.options();
  const Tensor o = at::empty_like(call.v);
  Tensor finals = call.initial_S ? grid.to_steps(*call.initial_S)
                                 : at::zeros({grid.sequences(), pass.HV, pass.V, pass.K}, options);
  for (const auto& of_heads : pass.ranges) {
    Tensor S;  // [sequences heads, V, K], advanced from range to range
    for (const Range& r : of_heads) {
      if (!S.defined()) {
        S = Pass::states_of(finals, r).clone();
      }
      const Piece p = pass.piece(r, false);
      const Tensor k_write = p.k_until * p.beta;
      const Tensor R = at::empty_like(p.v),
                   states = at::empty({R.size(0), pass.V, pass.K}, options);
      for (int64_t step = r.step; step < r.step_end; ++step) {
        const auto rows = pass.rows_of(r, step);
        const Tensor S_step = S.narrow(0, 0, rows.count);
        rows(states).copy_(S_step);
        // R = U - W S;  S <- diag(decay) S + (until K)ᵀ D R
        Tensor R_step = rows(R);
        at::baddbmm_out(R_step, rows(p.U), rows(p.W), S_step.mT(), 1, -1);
        S_step.mul_(rows(p.decay)).baddbmm_(R_step.mT(), rows(k_write));
      }
      // O = scale [since Q S + QK D R]
      Tensor rows = at::bmm(p.q_since, states.mT());
      rows.baddbmm_(p.masks.QK * p.beta.mT(), R, 1, call.scale);
      grid.scatter(rows.view({-1, r.heads(), kChunk, pass.V}), r.step, r.step_end,
                   pass.values(o, r));
      if (saved_states.defined()) {
        const Tensor to = pass.chunk_states(saved_states, r);
        to.copy_(states.view(to.sizes()));
      }
    }
    if (S.defined()) {
      const Range& r = of_heads.front();
      finals.narrow(1, r.head(), r.heads()).copy_(S.view({-1, r.heads(), pass.V, pass.K}));
    }
  }
  return {o, grid.from_steps(finals)};
}

Gradients backward(const Call& call, Tensor saved_states, const Tensor& d_o,
                   const std::optional<Tensor>& d_final_S) {
  const Pass pass(call);
  const Grid& grid = pass.grid;
  const auto options = call.beta.options();
  if (saved_states.numel() == 0) {
    saved_states = at::empty({grid.chunks(), pass.HV, pass.V, pass.K}, options);
    forward(call, saved_states);
  }
  Gradients grad{.q = at::empty_like(call.q),
                 .k = at::empty_like(call.k),
                 .v = at::empty_like(call.v),
                 .alpha = at::empty_like(call.alpha),
                 .beta = at::empty_like(call.beta),
                 .initial_S = {}};
  Tensor d_states = d_final_S ? grid.to_steps(*d_final_S)
                              : at::zeros({grid.sequences(), pass.HV, pass.V, pass.K}, options);
  for (const auto& of_heads : pass.ranges) {
    Tensor dS;  // of the states after the range
    for (auto range = of_heads.rbegin(); range != of_heads.rend(); ++range) {
      const Range& r = *range;
      if (!dS.defined()) {
        dS = Pass::states_of(d_states, r).clone();
      }
      const Piece p = pass.piece(r, true);
      const Tensor S = pass.chunk_states(saved_states, r).flatten(0, 1);
      const Tensor d_out = Pass::flat(pass.gather(pass.values(d_o, r), r)) * call.scale;
      const Tensor R = at::baddbmm(p.U, p.W, S.mT(), 1, -1);
      // With Y = D R:  dY = QKᵀ dO + until K dS;  dS <- diag(decay) dS + (since Q)ᵀ dO - Wᵀ D dY
      const Tensor q_since = p.q * p.masks.since;
      const Tensor dY = at::bmm(p.masks.QK.mT(), d_out);
      const Tensor W_write = p.W * p.beta, dS_after = at::empty_like(S);
      for (int64_t step = r.step_end - 1; step >= r.step; --step) {
        const auto rows = pass.rows_of(r, step);
        const Tensor dS_step = dS.narrow(0, 0, rows.count), dY_step = rows(dY);
        rows(dS_after).copy_(dS_step);
        dY_step.baddbmm_(rows(p.k_until), dS_step.mT());
        dS_step.mul_(rows(p.decay))
            .baddbmm_(rows(d_out).mT(), rows(q_since))
            .baddbmm_(dY_step.mT(), rows(W_write), 1, -1);
      }
      // (I + KK D)ᵀ dV = D dY is the gradient of the right-hand side [V - since K S]
      const Tensor dV = at::linalg_solve_triangular(p.system.mT(), dY * p.beta, true, true, true);
      const Tensor d_system = at::bmm(dV, R.mT()).tril_(-1).neg_();
      const Tensor Y = R * p.beta;
      Tensor d_beta = (dY * R).sum(-1, true);
      d_beta += (d_system * p.masks.KK).sum(1).unsqueeze(-1);
      const Tensor d_KK = d_system * p.beta.mT();
      const Tensor d_QK = at::bmm(d_out, Y.mT());
      const Tensor d_q_since = at::bmm(d_out, S), d_k_since = at::bmm(dV, S).neg_();
      const Tensor d_k_until = at::bmm(Y, dS_after);
      // since and until: where they meet q and k, and the state's decay, the last row of since
      Tensor d_since = d_q_since * p.q;
      d_since.addcmul_(d_k_since, p.k);
      d_since.narrow(1, kChunk - 1, 1).add_((S * dS_after).sum(1, true));
      const Tensor d_until = d_k_until * p.k;
      const Tensor d_q = d_q_since * p.masks.since;
      Tensor d_k = d_k_since * p.masks.since;
      d_k.addcmul_(d_k_until, p.masks.until);
      const Tensor d_alpha =
          masks_gradient(p.masks, p.q, p.k, d_KK, d_QK, d_since, d_until, d_q, d_k);

      const auto put = [&](const Tensor& d, const Tensor& to) {
        grid.scatter(d, r.step, r.step_end, to);
      };
      const auto by_head = [&](const Tensor& d) {
        return d.view({-1, r.heads(), kChunk, d.size(2)});
      };
      put(unit_gradient(p.q_unit, Pass::summed(d_q, r)), pass.keys(grad.q, r));
      put(unit_gradient(p.k_unit, Pass::summed(d_k, r)), pass.keys(grad.k, r));
      put(by_head(dV), pass.values(grad.v, r));
      put(by_head(d_alpha), pass.values(grad.alpha, r));
      put(by_head(d_beta), pass.values(grad.beta, r));
    }
    if (dS.defined()) {
      const Range& r = of_heads.front();
      d_states.narrow(1, r.head(), r.heads()).copy_(dS.view({-1, r.heads(), pass.V, pass.K}));
    }
  }
  grad.initial_S = grid.from_steps(d_states);
  return grad;
}

}  // namespace mdn::ops::kimi_chunks

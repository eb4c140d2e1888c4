// momentum_delta_rule, CPU backend: how a problem is cut into chunks, segments and tasks, and how
// the caller's memory is laid out. The arithmetic is in momentum_delta_rule_simd.cpp; what is cut
// how and why is in docs/design/momentum_delta_rule_cpu.md.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "mdn/kernels/momentum_delta_rule.h"

namespace mdn::kernels::cpu {

/// Throws for a type that no call of this backend takes.
void check_dtype(DType dtype);

/// Columns of a panel: one cache line of floats. Matrices that a product reads as its right-hand
/// side are kept as panels [columns / kPanel][rows][kPanel] where they outlive a chunk.
inline constexpr int64_t kPanel = 16;

/// Chunks of a segment. The forward pass saves the states before every segment but the first; the
/// backward pass rebuilds one segment at a time from them.
inline constexpr int64_t kSegmentChunks = 8;

inline int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

/// Row stride for `columns` floats: whole cache lines, and an odd number of them, so that the rows
/// of a column of tiles fall into different sets of the first-level cache.
inline int64_t row_stride(int64_t columns) {
  const int64_t lines = (columns + kPanel - 1) / kPanel;
  return (lines | 1) * kPanel;
}

/// Tokens of one sequence, counted through the whole of [B, T].
struct Sequence {
  int64_t begin = 0;
  int64_t length = 0;
};

/// The cut of a problem. K and V are padded to whole panels; the padding of every local matrix is
/// zero, so that it takes part in the products without an effect.
struct Plan {
  explicit Plan(const MomentumDeltaRuleProblem& problem);

  int64_t K, V;          // padded
  int64_t C;             // longest chunk, a multiple of kPanel
  int64_t ld_k;          // row stride of matrices with K columns
  int64_t ld_x;          // with 2 K columns: S and M side by side
  int64_t ld_c;          // with C columns
  int64_t ld_v;          // with V columns
  int64_t panels;        // of V
  int64_t state;         // floats of the panels [V / kPanel][2 K][kPanel] of one S and M
  int64_t segment;       // tokens of a segment
  int64_t saved_states;  // of one value head, at most
  bool shared;           // several value heads read one query/key head

  Sequence sequence(const MomentumDeltaRuleProblem& problem, int64_t n) const {
    if (problem.cu_seqlens != nullptr) {
      return {problem.cu_seqlens[n], problem.cu_seqlens[n + 1] - problem.cu_seqlens[n]};
    }
    return {n * problem.T, problem.T};
  }

  /// Index in `saved`, [saved_states, HV, state], of the states before segment `segment_index` >= 1
  /// of a sequence. Sequence n needs (length - 1) / segment of them, so that no two share one.
  int64_t saved_index(const Sequence& s, int64_t segment_index) const {
    return s.begin / segment + segment_index - 1;
  }
};

/// Hands out pieces of a block of floats, each starting on a cache line.
class Scratch {
 public:
  explicit Scratch(float* memory) : begin_(memory), next_(memory) {}
  float* take(int64_t count) {
    float* piece = next_;
    next_ += round_up(count, kPanel);
    return piece;
  }
  int64_t taken() const { return next_ - begin_; }

 private:
  float* begin_;
  float* next_;
};

/// A chunk as the linear map it is (docs/math/momentum_delta_rule.md), for X = [S; M], 2K x V:
///
///     R = V + r_from_x X + r_from_r R      the per-token errors r_t; r_from_r is strictly lower
///     O =     o_from_x X + o_from_r R      o_from_r is lower triangular
///     X <-  decay(X) + x_from_rᵀ R         decay: S <- a S - b M, M <- m M
///
/// and what the gradients of these matrices need. Token rows; columns past the last token are zero.
struct Chunk {
  int64_t tokens = 0;
  float* o_from_x = nullptr;  // [C, 2 K], stride ld_x
  float* r_from_x = nullptr;
  float* x_from_r = nullptr;
  float* o_from_r = nullptr;  // [C, C], stride ld_c
  float* r_from_r = nullptr;
  float* q = nullptr;  // [C, K], stride ld_k; normalised if asked for
  float* k = nullptr;
  float* P = nullptr;   // [C, C], stride ld_c: q kᵀ
  float* KK = nullptr;  // k kᵀ
  float* G = nullptr;   // the masks
  float* Mu = nullptr;
  // [C] each: the masks' column of the initial M, the decay of the initial S, the gates, and the
  // factors that normalise q and k.
  float *a = nullptr, *b = nullptr, *c = nullptr, *e = nullptr, *m = nullptr;
  float *alpha = nullptr, *mu = nullptr, *eta = nullptr, *beta = nullptr, *pi = nullptr;
  float *q_factor = nullptr, *k_factor = nullptr;

  void take(const Plan& plan, Scratch& scratch) {
    for (float** x : {&o_from_x, &r_from_x, &x_from_r}) {
      *x = scratch.take(plan.C * plan.ld_x);
    }
    for (float** x : {&o_from_r, &r_from_r, &P, &KK, &G, &Mu}) {
      *x = scratch.take(plan.C * plan.ld_c);
    }
    for (float** x : {&q, &k}) {
      *x = scratch.take(plan.C * plan.ld_k);
    }
    for (float** x : {&a, &b, &c, &e, &m, &alpha, &mu, &eta, &beta, &pi, &q_factor, &k_factor}) {
      *x = scratch.take(plan.C);
    }
  }
};

/// Scratch of a thread in the forward pass.
struct ForwardScratch {
  Chunk chunk;
  float* k_transposed;  // [K, C], stride ld_c
  float* x;             // [panels][2 K][kPanel]
  float* r;             // [C, V], stride ld_v
  float* o;             // likewise
  ForwardScratch(const Plan& plan, Scratch& scratch);
  static int64_t floats(const Plan& plan);
};

/// Of one sequence and head in the backward pass: a segment rebuilt, and what its chain leaves for
/// the gradients of its chunks. When the chunks' gradients follow the chain chunk by chunk, all
/// chunks share d_o, dw and dx_transposed (`stored` 1); when they run in parallel after it, each
/// has its own (`stored` kSegmentChunks).
struct SegmentScratch {
  Chunk chunk[kSegmentChunks];
  float* x_transposed[kSegmentChunks];   // [2 K / kPanel][V][kPanel]: X before the chunk
  float* r[kSegmentChunks];              // [C, V], stride ld_v
  float* d_o[kSegmentChunks];            // likewise
  float* dw[kSegmentChunks];             // likewise: the gradient of V
  float* dx_transposed[kSegmentChunks];  // as x_transposed: the gradient of X after the chunk
  float* x;                              // [panels][2 K][kPanel]
  float* dx;                             // likewise: the gradient of X
  SegmentScratch(const Plan& plan, Scratch& scratch, int64_t stored);
  static int64_t floats(const Plan& plan, int64_t stored);
};

/// Of one thread in the backward pass: one chunk's gradients.
struct GradientScratch {
  float* k_transposed;     // [K, C], stride ld_c
  float* r_transposed;     // [C / kPanel][V][kPanel]
  float *ox, *wx, *rx;     // [C, 2 K], stride ld_x
  float *oR, *F, *dP, *Z;  // [C, C], stride ld_c
  float *dq, *dk;          // [C, K], stride ld_k
  float* vectors;          // [9, C]
  GradientScratch(const Plan& plan, Scratch& scratch);
  static int64_t floats(const Plan& plan);
};

/// One segment of one sequence and value head in the backward pass.
struct Segment {
  const MomentumDeltaRuleBackward& call;
  const Plan& plan;
  Sequence sequence;
  int64_t n = 0;
  int64_t head = 0;
  int64_t index = 0;  // of the segment in its sequence
  // Where heads share q and k, [B, T, HV, K] floats for this head's part of their gradients.
  float* head_dq = nullptr;
  float* head_dk = nullptr;

  int64_t begin() const { return index * plan.segment; }
  int64_t end() const { return std::min(begin() + plan.segment, sequence.length); }
  int64_t chunks() const { return (end() - begin() + plan.C - 1) / plan.C; }
  int64_t chunk_begin(int64_t i) const { return begin() + i * plan.C; }
  int64_t chunk_tokens(int64_t i) const { return std::min(plan.C, end() - chunk_begin(i)); }
  int64_t token(int64_t i) const { return sequence.begin + chunk_begin(i); }
  int64_t state_index() const { return n * call.problem.HV + head; }
  /// X before chunk i is known to be zero; so is its gradient after chunk i.
  bool x_is_zero(int64_t i) const {
    return chunk_begin(i) == 0 && call.inputs.initial_S == nullptr &&
           call.inputs.initial_M == nullptr;
  }
  bool dx_is_zero(int64_t i) const {
    return chunk_begin(i) + chunk_tokens(i) == sequence.length && call.d_final_S == nullptr &&
           call.d_final_M == nullptr;
  }
};

// One task each, by the best instructions this processor has.

/// Columns [panel_begin, panel_end) of V of one sequence and value head.
void forward_task(const MomentumDeltaRuleForward& call, const Plan& plan, int64_t n, int64_t head,
                  int64_t panel_begin, int64_t panel_end, float* scratch);

/// The stages of a segment's backward pass, in this order; columns are panels of V.
/// 1. Rebuilds the matrices of chunk i.
void build_segment_chunk(const Segment& segment, int64_t i, SegmentScratch& s,
                         GradientScratch& scratch);
/// 2. Rebuilds the errors of all chunks and the states before each, panels [begin, end).
void rebuild_segment(const Segment& segment, int64_t begin, int64_t end, SegmentScratch& s);
/// 3. The chain: gradients of chunk i's values and of the states before it, chunks in reverse.
void chain_chunk(const Segment& segment, int64_t i, int64_t begin, int64_t end, SegmentScratch& s);
/// 4. Gradients of chunk i's q, k and gates. Uses up the chunk's memory.
void differentiate_chunk(const Segment& segment, int64_t i, SegmentScratch& s,
                         GradientScratch& scratch);

/// Adds the gradients of the value heads of each query/key head, tokens [begin, end).
void sum_heads(const MomentumDeltaRuleProblem& problem, const float* head_rows, int64_t begin,
               int64_t end, void* rows);

}  // namespace mdn::kernels::cpu

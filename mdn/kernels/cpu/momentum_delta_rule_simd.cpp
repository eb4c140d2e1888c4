// momentum_delta_rule, CPU backend: the tasks of the forward and backward calls, made for
// every instruction set; the best one is chosen when the program runs. A chunk's matrices come
// from chunk-inl.h; here they act on values and states, panel by panel of V.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "mdn/kernels/cpu/momentum_delta_rule_simd.cpp"
#ifndef HWY_DISABLED_TARGETS
// Not worth their size: what has SSSE3 and no SSE4 is rare, AVX3_DL and AVX3_ZEN4 add nothing for
// float. Vectors of unknown length (SVE, RVV) cannot be kept in arrays, as tiles are.
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#endif
#include <hwy/foreach_target.h>  // before highway.h
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "mdn/core/dtype.h"
#include "mdn/kernels/cpu/chunk-inl.h"
#include "mdn/kernels/cpu/micro_gemm-inl.h"
#include "mdn/kernels/cpu/momentum_delta_rule_plan.h"
#include "mdn/kernels/cpu/rows-inl.h"
#include "mdn/kernels/momentum_delta_rule.h"

HWY_BEFORE_NAMESPACE();
namespace mdn::kernels::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// One panel of the forward pass. x is the panel [2 K][kPanel] of X; r, o, d_o, dw point at the
// panel's first column of matrices of stride ld_v. `x_is_zero` spares the products with X.

/// r holds V on entry and R on return: R = V + r_from_x X + r_from_r R, by forward substitution.
void solve_panel(const Plan& plan, const Chunk& chunk, const float* x, bool x_is_zero, float* r) {
  for_tiles(chunk.tokens, [&](auto rows, int64_t first) HWY_ATTR {
    Tile<rows()> tile;
    load(tile, r + first * plan.ld_v, plan.ld_v);
    if (!x_is_zero) {
      accumulate<Left::kRowMajor>(tile, chunk.r_from_x + first * plan.ld_x, plan.ld_x, x, kPanel,
                                  2 * plan.K);
    }
    const float* lower = chunk.r_from_r + first * plan.ld_c;
    accumulate<Left::kRowMajor>(tile, lower, plan.ld_c, r, plan.ld_v, first);
    substitute_forward(tile, lower + first, plan.ld_c);
    store(tile, r + first * plan.ld_v, plan.ld_v);
  });
}

/// O = o_from_x X + o_from_r R
void output_panel(const Plan& plan, const Chunk& chunk, const float* x, bool x_is_zero,
                  const float* r, float* o) {
  for_tiles(chunk.tokens, [&](auto rows, int64_t first) HWY_ATTR {
    Tile<rows()> tile;
    clear(tile);
    if (!x_is_zero) {
      accumulate<Left::kRowMajor>(tile, chunk.o_from_x + first * plan.ld_x, plan.ld_x, x, kPanel,
                                  2 * plan.K);
    }
    accumulate<Left::kRowMajor>(tile, chunk.o_from_r + first * plan.ld_c, plan.ld_c, r, plan.ld_v,
                                first + rows());
    store(tile, o + first * plan.ld_v, plan.ld_v);
  });
}

/// S <- a S - b M + x_from_rᵀ R,  M <- m M + x_from_rᵀ R, each with its half of x_from_r
void advance_panel(const Plan& plan, const Chunk& chunk, const float* r, bool x_is_zero, float* x) {
  const float a = chunk.a[chunk.tokens - 1];
  const float b = chunk.b[chunk.tokens - 1];
  const float m = chunk.m[chunk.tokens - 1];
  float* S = x;
  float* M = x + plan.K * kPanel;
  for_tiles(plan.K, [&](auto rows, int64_t first) HWY_ATTR {
    Tile<rows()> tile;
    if (x_is_zero) {
      clear(tile);
    } else {
      load_scaled(tile, a, S + first * kPanel, kPanel);
      add_scaled(tile, -b, M + first * kPanel, kPanel);
    }
    accumulate<Left::kTransposed>(tile, chunk.x_from_r + first, plan.ld_x, r, plan.ld_v,
                                  chunk.tokens);
    store(tile, S + first * kPanel, kPanel);
  });
  for_tiles(plan.K, [&](auto rows, int64_t first) HWY_ATTR {
    Tile<rows()> tile;
    if (x_is_zero) {
      clear(tile);
    } else {
      load_scaled(tile, m, M + first * kPanel, kPanel);
    }
    accumulate<Left::kTransposed>(tile, chunk.x_from_r + plan.K + first, plan.ld_x, r, plan.ld_v,
                                  chunk.tokens);
    store(tile, M + first * kPanel, kPanel);
  });
}

// The same maps transposed: the gradients. dx is the panel of the gradient of X.

/// dw = o_from_rᵀ d_o + x_from_r dX + r_from_rᵀ dw, by backward substitution. dw is the gradient of
/// V.
void solve_panel_gradient(const Plan& plan, const Chunk& chunk, const float* d_o, const float* dx,
                          bool dx_is_zero, float* dw) {
  for_tiles_reversed(chunk.tokens, [&](auto rows, int64_t first) HWY_ATTR {
    const int64_t next = first + rows();
    Tile<rows()> tile;
    clear(tile);
    accumulate<Left::kTransposed>(tile, chunk.o_from_r + first * plan.ld_c + first, plan.ld_c,
                                  d_o + first * plan.ld_v, plan.ld_v, chunk.tokens - first);
    if (!dx_is_zero) {
      accumulate<Left::kRowMajor>(tile, chunk.x_from_r + first * plan.ld_x, plan.ld_x, dx, kPanel,
                                  2 * plan.K);
    }
    accumulate<Left::kTransposed>(tile, chunk.r_from_r + next * plan.ld_c + first, plan.ld_c,
                                  dw + next * plan.ld_v, plan.ld_v, chunk.tokens - next);
    substitute_backward(tile, chunk.r_from_r + first * plan.ld_c + first, plan.ld_c);
    store(tile, dw + first * plan.ld_v, plan.ld_v);
  });
}

/// dM <- m dM - b dS + Oᵀ d_o + Wᵀ dw,  dS <- a dS + Oᵀ d_o + Wᵀ dw, each with its half of
/// O = o_from_x and W = r_from_x
void retreat_panel(const Plan& plan, const Chunk& chunk, const float* d_o, const float* dw,
                   bool dx_is_zero, float* dx) {
  const float a = chunk.a[chunk.tokens - 1];
  const float b = chunk.b[chunk.tokens - 1];
  const float m = chunk.m[chunk.tokens - 1];
  float* dS = dx;
  float* dM = dx + plan.K * kPanel;
  for_tiles(plan.K, [&](auto rows, int64_t first) HWY_ATTR {
    Tile<rows()> tile;
    if (dx_is_zero) {
      clear(tile);
    } else {
      load_scaled(tile, m, dM + first * kPanel, kPanel);
      add_scaled(tile, -b, dS + first * kPanel, kPanel);
    }
    const int64_t column = plan.K + first;
    accumulate<Left::kTransposed>(tile, chunk.o_from_x + column, plan.ld_x, d_o, plan.ld_v,
                                  chunk.tokens);
    accumulate<Left::kTransposed>(tile, chunk.r_from_x + column, plan.ld_x, dw, plan.ld_v,
                                  chunk.tokens);
    store(tile, dM + first * kPanel, kPanel);
  });
  for_tiles(plan.K, [&](auto rows, int64_t first) HWY_ATTR {
    Tile<rows()> tile;
    if (dx_is_zero) {
      clear(tile);
    } else {
      load_scaled(tile, a, dS + first * kPanel, kPanel);
    }
    accumulate<Left::kTransposed>(tile, chunk.o_from_x + first, plan.ld_x, d_o, plan.ld_v,
                                  chunk.tokens);
    accumulate<Left::kTransposed>(tile, chunk.r_from_x + first, plan.ld_x, dw, plan.ld_v,
                                  chunk.tokens);
    store(tile, dS + first * kPanel, kPanel);
  });
}

/// to = rows rightᵀ: [tokens, 2 K] from rows [tokens, V] and the panels [2 K / kPanel][V][kPanel].
void contract_values(const Plan& plan, int64_t tokens, const float* rows_of, const float* right,
                     float* to) {
  for (int64_t panel = 0; panel < 2 * plan.K / kPanel; ++panel) {
    for_tiles(tokens, [&](auto rows, int64_t first) HWY_ATTR {
      Tile<rows()> tile;
      clear(tile);
      accumulate<Left::kRowMajor>(tile, rows_of + first * plan.ld_v, plan.ld_v,
                                  right + panel * plan.V * kPanel, kPanel, plan.V);
      store(tile, to + first * plan.ld_x + panel * kPanel, plan.ld_x);
    });
  }
}

/// to = rows Rᵀ: [tokens, tokens] in every panel that meets the lower triangle.
void contract_errors(const Plan& plan, int64_t tokens, const float* rows_of,
                     const float* r_transposed, float* to) {
  for_tiles(tokens, [&](auto rows, int64_t first) HWY_ATTR {
    for (int64_t j = 0; j < first + rows(); j += kPanel) {
      Tile<rows()> tile;
      clear(tile);
      accumulate<Left::kRowMajor>(tile, rows_of + first * plan.ld_v, plan.ld_v,
                                  r_transposed + j * plan.V, kPanel, plan.V);
      store(tile, to + first * plan.ld_c + j, plan.ld_c);
    }
  });
}

/// Panels [V / kPanel][2 K][kPanel], [begin, end) of them, to panels [2 K / kPanel][V][kPanel].
void transpose_panels(const Plan& plan, const float* from, int64_t begin, int64_t end, float* to) {
  for (int64_t p = begin; p < end; ++p) {
    for (int64_t i = 0; i < 2 * plan.K; i += kPanel) {
      transpose(from + (p * 2 * plan.K + i) * kPanel, kPanel, kPanel, kPanel,
                to + (i * plan.V + p * kPanel * kPanel), kPanel);
    }
  }
}

/// Reads panels [begin, end) of the states of one sequence and head, [V, K] in the caller's memory.
void read_states(const Plan& plan, const MomentumDeltaRuleProblem& p, const void* S, const void* M,
                 int64_t index, int64_t begin, int64_t end, float* x) {
  std::fill(x + begin * 2 * plan.K * kPanel, x + end * 2 * plan.K * kPanel, 0.0f);
  for (int half = 0; half < 2; ++half) {
    const void* state = half == 0 ? S : M;
    if (state == nullptr) {
      continue;
    }
    const float* from = static_cast<const float*>(state) + index * p.V * p.K;
    for (int64_t panel = begin; panel < end; ++panel) {
      float* to = x + (panel * 2 + half) * plan.K * kPanel;
      const int64_t columns = std::min(kPanel, p.V - panel * kPanel);
      if (columns == kPanel && p.K % 4 == 0) {
        transpose(from + panel * kPanel * p.K, p.K, kPanel, p.K, to, kPanel);
        continue;
      }
      for (int64_t v = 0; v < columns; ++v) {
        for (int64_t i = 0; i < p.K; ++i) {
          to[i * kPanel + v] = from[(panel * kPanel + v) * p.K + i];
        }
      }
    }
  }
}

void write_states(const Plan& plan, const MomentumDeltaRuleProblem& p, const float* x,
                  int64_t index, int64_t begin, int64_t end, void* S, void* M) {
  for (int half = 0; half < 2; ++half) {
    void* state = half == 0 ? S : M;
    if (state == nullptr) {
      continue;
    }
    float* to = static_cast<float*>(state) + index * p.V * p.K;
    for (int64_t panel = begin; panel < end; ++panel) {
      const float* from = x + (panel * 2 + half) * plan.K * kPanel;
      const int64_t columns = std::min(kPanel, p.V - panel * kPanel);
      if (columns == kPanel && p.K % 4 == 0) {
        transpose(from, kPanel, p.K, kPanel, to + panel * kPanel * p.K, p.K);
        continue;
      }
      for (int64_t v = 0; v < columns; ++v) {
        for (int64_t i = 0; i < p.K; ++i) {
          to[(panel * kPanel + v) * p.K + i] = from[i * kPanel + v];
        }
      }
    }
  }
}

void forward_task(const MomentumDeltaRuleForward& call, const Plan& plan, int64_t n, int64_t head,
                  int64_t panel_begin, int64_t panel_end, float* memory) {
  const MomentumDeltaRuleProblem& p = call.problem;
  const MomentumDeltaRuleInputs& in = call.inputs;
  Scratch pieces(memory);
  ForwardScratch s(plan, pieces);
  const Sequence sequence = plan.sequence(p, n);
  const int64_t panel_floats = 2 * plan.K * kPanel;
  const int64_t first_column = panel_begin * kPanel;
  const int64_t columns = std::min(panel_end * kPanel, p.V) - first_column;
  const bool wants_final = call.final_S != nullptr || call.final_M != nullptr;

  read_states(plan, p, in.initial_S, in.initial_M, n * p.HV + head, panel_begin, panel_end, s.x);
  bool x_is_zero = in.initial_S == nullptr && in.initial_M == nullptr;
  for (int64_t done = 0; done < sequence.length; done += plan.C) {
    const int64_t token = sequence.begin + done;
    const int64_t tokens = std::min(plan.C, sequence.length - done);
    if (call.saved != nullptr && done > 0 && done % plan.segment == 0) {
      const int64_t index = plan.saved_index(sequence, done / plan.segment) * p.HV + head;
      std::copy(s.x + panel_begin * panel_floats, s.x + panel_end * panel_floats,
                static_cast<float*>(call.saved) + index * plan.state + panel_begin * panel_floats);
    }
    build_chunk(plan, p, in, token, tokens, head, s.k_transposed, s.chunk);
    const int64_t offset = (token * p.HV + head) * p.V + first_column;
    load_rows(in.v, p.dtype, offset, p.HV * p.V, tokens, columns, s.r + first_column, plan.ld_v,
              (panel_end - panel_begin) * kPanel);
    const bool advances = wants_final || done + tokens < sequence.length;
    for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
      float* x = s.x + panel * panel_floats;
      float* r = s.r + panel * kPanel;
      solve_panel(plan, s.chunk, x, x_is_zero, r);
      output_panel(plan, s.chunk, x, x_is_zero, r, s.o + panel * kPanel);
      if (advances) {
        advance_panel(plan, s.chunk, r, x_is_zero, x);
      }
    }
    x_is_zero = false;
    store_rows(s.o + first_column, plan.ld_v, tokens, columns, call.o, p.dtype, offset, p.HV * p.V);
  }
  write_states(plan, p, s.x, n * p.HV + head, panel_begin, panel_end, call.final_S, call.final_M);
}

void build_segment_chunk(const Segment& segment, int64_t i, SegmentScratch& s,
                         GradientScratch& scratch) {
  const MomentumDeltaRuleBackward& call = segment.call;
  build_chunk(segment.plan, call.problem, call.inputs, segment.token(i), segment.chunk_tokens(i),
              segment.head, scratch.k_transposed, s.chunk[i]);
}

void rebuild_segment(const Segment& segment, int64_t begin, int64_t end, SegmentScratch& s) {
  const MomentumDeltaRuleBackward& call = segment.call;
  const MomentumDeltaRuleProblem& p = call.problem;
  const Plan& plan = segment.plan;
  const int64_t panel_floats = 2 * plan.K * kPanel;
  if (segment.index == 0) {
    read_states(plan, p, call.inputs.initial_S, call.inputs.initial_M, segment.state_index(), begin,
                end, s.x);
  } else {
    const int64_t index = plan.saved_index(segment.sequence, segment.index) * p.HV + segment.head;
    const float* saved = static_cast<const float*>(call.saved) + index * plan.state;
    std::copy(saved + begin * panel_floats, saved + end * panel_floats, s.x + begin * panel_floats);
  }
  const int64_t column = begin * kPanel;
  const int64_t columns = std::min(end * kPanel, p.V) - column;
  for (int64_t i = 0; i < segment.chunks(); ++i) {
    const bool x_is_zero = segment.x_is_zero(i);
    if (!x_is_zero) {
      transpose_panels(plan, s.x, begin, end, s.x_transposed[i]);
    }
    load_rows(call.inputs.v, p.dtype, (segment.token(i) * p.HV + segment.head) * p.V + column,
              p.HV * p.V, segment.chunk_tokens(i), columns, s.r[i] + column, plan.ld_v,
              (end - begin) * kPanel);
    for (int64_t panel = begin; panel < end; ++panel) {
      float* x = s.x + panel * panel_floats;
      float* r = s.r[i] + panel * kPanel;
      solve_panel(plan, s.chunk[i], x, x_is_zero, r);
      if (i + 1 < segment.chunks()) {
        advance_panel(plan, s.chunk[i], r, x_is_zero, x);
      }
    }
  }
}

void chain_chunk(const Segment& segment, int64_t i, int64_t begin, int64_t end, SegmentScratch& s) {
  const MomentumDeltaRuleBackward& call = segment.call;
  const MomentumDeltaRuleProblem& p = call.problem;
  const Plan& plan = segment.plan;
  const int64_t tokens = segment.chunk_tokens(i);
  const bool first = segment.chunk_begin(i) == 0;
  const bool last = segment.chunk_begin(i) + tokens == segment.sequence.length;
  const bool dx_is_zero = segment.dx_is_zero(i);
  if (last) {
    read_states(plan, p, call.d_final_S, call.d_final_M, segment.state_index(), begin, end, s.dx);
  }
  if (!dx_is_zero) {
    transpose_panels(plan, s.dx, begin, end, s.dx_transposed[i]);
  }
  const int64_t column = begin * kPanel;
  const int64_t columns = std::min(end * kPanel, p.V) - column;
  const int64_t offset = (segment.token(i) * p.HV + segment.head) * p.V + column;
  load_rows(call.d_o, p.dtype, offset, p.HV * p.V, tokens, columns, s.d_o[i] + column, plan.ld_v,
            (end - begin) * kPanel);
  const bool retreats = !first || call.d_initial_S != nullptr || call.d_initial_M != nullptr;
  for (int64_t panel = begin; panel < end; ++panel) {
    float* dx = s.dx + panel * 2 * plan.K * kPanel;
    const float* d_o = s.d_o[i] + panel * kPanel;
    float* dw = s.dw[i] + panel * kPanel;
    solve_panel_gradient(plan, s.chunk[i], d_o, dx, dx_is_zero, dw);
    if (retreats) {
      retreat_panel(plan, s.chunk[i], d_o, dw, dx_is_zero, dx);
    }
  }
  store_rows(s.dw[i] + column, plan.ld_v, tokens, columns, call.d_v, p.dtype, offset, p.HV * p.V);
  if (first) {
    write_states(plan, p, s.dx, segment.state_index(), begin, end, call.d_initial_S,
                 call.d_initial_M);
  }
}

void differentiate_chunk(const Segment& segment, int64_t i, SegmentScratch& s,
                         GradientScratch& scratch) {
  const MomentumDeltaRuleBackward& call = segment.call;
  const MomentumDeltaRuleProblem& p = call.problem;
  const Plan& plan = segment.plan;
  const Chunk& chunk = s.chunk[i];
  const int64_t tokens = chunk.tokens;
  const float* x = s.x_transposed[i];
  const float* dx = s.dx_transposed[i];
  float* r = s.r[i];
  const bool x_is_zero = segment.x_is_zero(i);
  const bool dx_is_zero = segment.dx_is_zero(i);
  ChunkGradient grad;
  grad.ox = scratch.ox;
  grad.wx = scratch.wx;
  grad.rx = scratch.rx;
  grad.oR = scratch.oR;
  grad.F = scratch.F;
  grad.dP = scratch.dP;
  grad.Z = scratch.Z;
  grad.dq = scratch.dq;
  grad.dk = scratch.dk;
  grad.vectors = scratch.vectors;

  // Gradients of the chunk's matrices: of o_from_x, r_from_x, x_from_r, o_from_r, r_from_r.
  if (x_is_zero) {
    std::fill_n(scratch.ox, tokens * plan.ld_x, 0.0f);
    std::fill_n(scratch.wx, tokens * plan.ld_x, 0.0f);
  } else {
    contract_values(plan, tokens, s.d_o[i], x, scratch.ox);
    contract_values(plan, tokens, s.dw[i], x, scratch.wx);
  }
  if (dx_is_zero) {
    std::fill_n(scratch.rx, tokens * plan.ld_x, 0.0f);
  } else {
    contract_values(plan, tokens, r, dx, scratch.rx);
  }
  std::fill(r + tokens * plan.ld_v, r + round_up(tokens, kPanel) * plan.ld_v, 0.0f);
  for (int64_t j = 0; j < tokens; j += kPanel) {
    transpose(r + j * plan.ld_v, plan.ld_v, kPanel, plan.V, scratch.r_transposed + j * plan.V,
              kPanel);
  }
  contract_errors(plan, tokens, s.d_o[i], scratch.r_transposed, scratch.oR);
  contract_errors(plan, tokens, s.dw[i], scratch.r_transposed, scratch.F);
  // And of the decay.
  grad.dS_S = grad.dS_M = grad.dM_M = 0;
  if (!x_is_zero && !dx_is_zero) {
    const int64_t half = plan.K * plan.V;  // floats of S before those of M
    grad.dS_S = dot(dx, x, half);
    grad.dS_M = dot(dx, x + half, half);
    grad.dM_M = dot(dx + half, x + half, half);
  }

  const int64_t gate = segment.token(i) * p.HV + segment.head;
  grad.alpha = static_cast<float*>(call.d_alpha) + gate;
  grad.mu = call.d_mu != nullptr ? static_cast<float*>(call.d_mu) + gate : nullptr;
  grad.eta = static_cast<float*>(call.d_eta) + gate;
  grad.beta = static_cast<float*>(call.d_beta) + gate;
  grad.pi = call.d_pi != nullptr ? static_cast<float*>(call.d_pi) + gate : nullptr;
  chunk_gradient(plan, static_cast<float>(p.scale), p.HV, chunk, grad);
  if (p.l2norm) {
    for (int64_t t = 0; t < tokens; ++t) {
      const int64_t row = t * plan.ld_k;
      normalise_row_gradient(chunk.q + row, chunk.q_factor[t], plan.K, scratch.dq + row);
      normalise_row_gradient(chunk.k + row, chunk.k_factor[t], plan.K, scratch.dk + row);
    }
  }
  const DType row_dtype = plan.shared ? DType::kFloat32 : p.dtype;
  store_rows(scratch.dq, plan.ld_k, tokens, p.K, plan.shared ? segment.head_dq : call.d_q,
             row_dtype, gate * p.K, p.HV * p.K);
  store_rows(scratch.dk, plan.ld_k, tokens, p.K, plan.shared ? segment.head_dk : call.d_k,
             row_dtype, gate * p.K, p.HV * p.K);
}

template <class T>
void sum_heads_of(const MomentumDeltaRuleProblem& p, const float* head_rows, int64_t begin,
                  int64_t end, T* rows) {
  const int64_t group = p.HV / p.H;
  // row h = Σ rows of the value heads h group, h group + 1, ...
  for (int64_t row = begin * p.H; row < end * p.H; ++row) {
    const float* from = head_rows + row * group * p.K;
    T* to = rows + row * p.K;
    int64_t i = 0;
    for (; i + kLanes <= p.K; i += kLanes) {
      Vf total = load_at(from + i);
      for (int64_t member = 1; member < group; ++member) {
        total = hn::Add(total, load_at(from + member * p.K + i));
      }
      store_floats(total, to + i);
    }
    for (; i < p.K; ++i) {
      float total = from[i];
      for (int64_t member = 1; member < group; ++member) {
        total += from[member * p.K + i];
      }
      to[i] = static_cast<T>(total);
    }
  }
}

void sum_heads(const MomentumDeltaRuleProblem& p, const float* head_rows, int64_t begin,
               int64_t end, void* rows) {
  if (p.dtype == DType::kFloat32) {
    sum_heads_of(p, head_rows, begin, end, static_cast<float*>(rows));
  } else {
    sum_heads_of(p, head_rows, begin, end, static_cast<BFloat16*>(rows));
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace mdn::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mdn::kernels::cpu {

HWY_EXPORT(forward_task);
HWY_EXPORT(build_segment_chunk);
HWY_EXPORT(rebuild_segment);
HWY_EXPORT(chain_chunk);
HWY_EXPORT(differentiate_chunk);
HWY_EXPORT(sum_heads);

void forward_task(const MomentumDeltaRuleForward& call, const Plan& plan, int64_t n, int64_t head,
                  int64_t panel_begin, int64_t panel_end, float* scratch) {
  HWY_DYNAMIC_DISPATCH(forward_task)(call, plan, n, head, panel_begin, panel_end, scratch);
}

void build_segment_chunk(const Segment& segment, int64_t i, SegmentScratch& s,
                         GradientScratch& scratch) {
  HWY_DYNAMIC_DISPATCH(build_segment_chunk)(segment, i, s, scratch);
}

void rebuild_segment(const Segment& segment, int64_t begin, int64_t end, SegmentScratch& s) {
  HWY_DYNAMIC_DISPATCH(rebuild_segment)(segment, begin, end, s);
}

void chain_chunk(const Segment& segment, int64_t i, int64_t begin, int64_t end, SegmentScratch& s) {
  HWY_DYNAMIC_DISPATCH(chain_chunk)(segment, i, begin, end, s);
}

void differentiate_chunk(const Segment& segment, int64_t i, SegmentScratch& s,
                         GradientScratch& scratch) {
  HWY_DYNAMIC_DISPATCH(differentiate_chunk)(segment, i, s, scratch);
}

void sum_heads(const MomentumDeltaRuleProblem& problem, const float* head_rows, int64_t begin,
               int64_t end, void* rows) {
  HWY_DYNAMIC_DISPATCH(sum_heads)(problem, head_rows, begin, end, rows);
}

}  // namespace mdn::kernels::cpu
#endif  // HWY_ONCE

// momentum_delta_rule, CPU backend: what a call needs, and how its tasks spread over threads.
// Design, floors and what was tried: docs/design/momentum_delta_rule_cpu.md.
#include "mdn/kernels/momentum_delta_rule.h"

#include <algorithm>

#include "mdn/core/error.h"
#include "mdn/core/threads.h"
#include "mdn/kernels/cpu/momentum_delta_rule_plan.h"

namespace mdn::kernels::cpu {
namespace {

/// Longest chunk. Short chunks spend their time on loading and storing states, long ones on the
/// products of the chunk with itself, which weigh more the narrower the states are.
int64_t chunk_length(const MomentumDeltaRuleProblem& p) {
  const int64_t longest = std::min(p.K, p.V) <= 32 ? 48 : 64;
  return std::min(longest, round_up(p.T, kPanel));
}

/// Tokens that one task of the sum over heads takes.
constexpr int64_t kSumTokens = 256;

void check_workspace(const void* workspace) {
  MDN_CHECK(workspace != nullptr, "momentum_delta_rule: workspace is missing (a null pointer)");
}

/// Gradients of the states of an empty sequence: those that come in.
void pass_gradient(const void* d_final, const MomentumDeltaRuleProblem& p, int64_t n,
                   void* d_initial) {
  const int64_t count = p.HV * p.V * p.K;
  if (d_initial == nullptr) {
    return;
  }
  float* to = static_cast<float*>(d_initial) + n * count;
  if (d_final == nullptr) {
    std::fill_n(to, count, 0.0f);
  } else {
    std::copy_n(static_cast<const float*>(d_final) + n * count, count, to);
  }
}

int64_t head_rows(const MomentumDeltaRuleProblem& p, const Plan& plan) {
  return plan.shared ? round_up(p.B * p.T * p.HV * p.K, kPanel) : 0;
}

}  // namespace

void check_dtype(DType dtype) {
  MDN_CHECK(dtype == DType::kFloat32 || dtype == DType::kBFloat16,
            "momentum_delta_rule: the CPU backend has no {}; it has float32 and bfloat16",
            name_of(dtype));
}

Plan::Plan(const MomentumDeltaRuleProblem& p) {
  K = round_up(p.K, kPanel);
  V = round_up(p.V, kPanel);
  C = chunk_length(p);
  ld_k = row_stride(K);
  ld_x = row_stride(2 * K);
  ld_c = row_stride(C);
  ld_v = row_stride(V);
  panels = V / kPanel;
  state = 2 * K * V;
  segment = kSegmentChunks * C;
  saved_states = p.B * p.T / segment;
  shared = p.HV != p.H;
}

ForwardScratch::ForwardScratch(const Plan& plan, Scratch& scratch) {
  chunk.take(plan, scratch);
  k_transposed = scratch.take(plan.K * plan.ld_c);
  x = scratch.take(plan.state);
  r = scratch.take(plan.C * plan.ld_v);
  o = scratch.take(plan.C * plan.ld_v);
}

int64_t ForwardScratch::floats(const Plan& plan) {
  Scratch count(nullptr);
  ForwardScratch(plan, count);
  return count.taken();
}

SegmentScratch::SegmentScratch(const Plan& plan, Scratch& scratch, int64_t stored) {
  for (int64_t i = 0; i < kSegmentChunks; ++i) {
    chunk[i].take(plan, scratch);
    x_transposed[i] = scratch.take(plan.state);
    r[i] = scratch.take(plan.C * plan.ld_v);
    const bool own = i < stored;
    d_o[i] = own ? scratch.take(plan.C * plan.ld_v) : d_o[0];
    dw[i] = own ? scratch.take(plan.C * plan.ld_v) : dw[0];
    dx_transposed[i] = own ? scratch.take(plan.state) : dx_transposed[0];
  }
  x = scratch.take(plan.state);
  dx = scratch.take(plan.state);
}

int64_t SegmentScratch::floats(const Plan& plan, int64_t stored) {
  Scratch count(nullptr);
  SegmentScratch(plan, count, stored);
  return count.taken();
}

GradientScratch::GradientScratch(const Plan& plan, Scratch& scratch) {
  k_transposed = scratch.take(plan.K * plan.ld_c);
  r_transposed = scratch.take(plan.C * plan.V);
  for (float** piece : {&ox, &wx, &rx}) {
    *piece = scratch.take(plan.C * plan.ld_x);
  }
  for (float** piece : {&oR, &F, &dP, &Z}) {
    *piece = scratch.take(plan.C * plan.ld_c);
  }
  for (float** piece : {&dq, &dk}) {
    *piece = scratch.take(plan.C * plan.ld_k);
  }
  vectors = scratch.take(9 * plan.C);
}

int64_t GradientScratch::floats(const Plan& plan) {
  Scratch count(nullptr);
  GradientScratch(plan, count);
  return count.taken();
}

namespace {

/// How the backward pass spreads: heads (of all sequences) over threads, each thread with a segment
/// of its own; or, when there are fewer heads than threads, all threads on all heads, stage by
/// stage. The arithmetic is the same, and so are the bits.
struct Spread {
  Spread(const MomentumDeltaRuleProblem& p, const Plan& plan)
      : heads(p.N * p.HV),
        by_stage(heads < num_threads()),
        stored(by_stage ? kSegmentChunks : 1),
        segments(by_stage ? heads : num_threads()),
        segment_floats(SegmentScratch::floats(plan, stored)),
        gradient_floats(GradientScratch::floats(plan)) {}
  int64_t floats() const { return segments * segment_floats + num_threads() * gradient_floats; }

  int64_t heads;
  bool by_stage;
  int64_t stored;    // chunks whose chain is kept
  int64_t segments;  // in memory at once
  int64_t segment_floats;
  int64_t gradient_floats;
};

}  // namespace

std::string unsupported(const MomentumDeltaRuleProblem& problem) {
  if (problem.dtype != DType::kFloat32 && problem.dtype != DType::kBFloat16) {
    return fmt::format("the CPU backend has no {}; it has float32 and bfloat16",
                       name_of(problem.dtype));
  }
  return "";
}

MomentumDeltaRuleSizes sizes(const MomentumDeltaRuleProblem& p) {
  const Plan plan(p);
  const int64_t threads = num_threads();
  MomentumDeltaRuleSizes sizes;
  sizes.forward_workspace =
      sizeof(float) * static_cast<size_t>(threads * ForwardScratch::floats(plan));
  sizes.backward_workspace =
      sizeof(float) * static_cast<size_t>(Spread(p, plan).floats() + 2 * head_rows(p, plan));
  sizes.saved = sizeof(float) * static_cast<size_t>(plan.saved_states * p.HV * plan.state);
  return sizes;
}

void forward(const MomentumDeltaRuleForward& call) {
  check(call);
  const MomentumDeltaRuleProblem& p = call.problem;
  check_dtype(p.dtype);
  check_cu_seqlens(p);
  check_workspace(call.workspace);
  const Plan plan(p);
  const int64_t floats = ForwardScratch::floats(plan);
  float* workspace = static_cast<float*>(call.workspace);
  // Columns of V are independent, so how many tasks share a head changes no bit.
  const int64_t heads = p.N * p.HV;
  const int64_t tiles = std::clamp<int64_t>((num_threads() + heads - 1) / heads, 1, plan.panels);
  parallel_for(heads * tiles, [&](int64_t task, int thread) {
    const int64_t tile = task % tiles;
    const int64_t head = task / tiles;
    forward_task(call, plan, head / p.HV, head % p.HV, plan.panels * tile / tiles,
                 plan.panels * (tile + 1) / tiles, workspace + thread * floats);
  });
}

void backward(const MomentumDeltaRuleBackward& call) {
  check(call);
  const MomentumDeltaRuleProblem& p = call.problem;
  check_dtype(p.dtype);
  check_cu_seqlens(p);
  check_workspace(call.workspace);
  const Plan plan(p);
  MDN_CHECK(call.saved != nullptr || plan.saved_states == 0,
            "momentum_delta_rule: saved is missing (a null pointer); the backward pass of more "
            "than {} tokens needs what the forward pass saved",
            plan.segment);
  float* head_dq = static_cast<float*>(call.workspace);
  float* head_dk = head_dq + head_rows(p, plan);
  const Spread spread(p, plan);
  float* segment_memory = head_dk + head_rows(p, plan);
  float* gradient_memory = segment_memory + spread.segments * spread.segment_floats;
  // Memory `i` as the scratch of a segment.
  const auto segment_scratch = [&](int64_t i, const Segment& segment) {
    Scratch pieces(segment_memory + i * spread.segment_floats);
    SegmentScratch s(plan, pieces, spread.stored);
    for (int64_t chunk = 0; chunk < segment.chunks(); ++chunk) {
      s.chunk[chunk].tokens = segment.chunk_tokens(chunk);
    }
    return s;
  };
  const auto gradient_scratch = [&](int thread) {
    Scratch pieces(gradient_memory + thread * spread.gradient_floats);
    return GradientScratch(plan, pieces);
  };
  const auto segment_of = [&](int64_t head, int64_t index) {
    const int64_t n = head / p.HV;
    return Segment{call, plan, plan.sequence(p, n), n, head % p.HV, index, head_dq, head_dk};
  };
  const auto segments_of = [&](int64_t head) {
    return (plan.sequence(p, head / p.HV).length + plan.segment - 1) / plan.segment;
  };
  for (int64_t n = 0; n < p.N; ++n) {
    if (plan.sequence(p, n).length == 0) {
      pass_gradient(call.d_final_S, p, n, call.d_initial_S);
      pass_gradient(call.d_final_M, p, n, call.d_initial_M);
    }
  }
  if (!spread.by_stage) {
    parallel_for(spread.heads, [&](int64_t head, int thread) {
      GradientScratch scratch = gradient_scratch(thread);
      for (int64_t index = segments_of(head) - 1; index >= 0; --index) {
        const Segment segment = segment_of(head, index);
        SegmentScratch s = segment_scratch(thread, segment);
        for (int64_t i = 0; i < segment.chunks(); ++i) {
          build_segment_chunk(segment, i, s, scratch);
        }
        rebuild_segment(segment, 0, plan.panels, s);
        for (int64_t i = segment.chunks() - 1; i >= 0; --i) {
          chain_chunk(segment, i, 0, plan.panels, s);
          differentiate_chunk(segment, i, s, scratch);
        }
      }
    });
  } else {
    int64_t longest = 0;
    for (int64_t head = 0; head < spread.heads; head += p.HV) {
      longest = std::max(longest, segments_of(head));
    }
    const int64_t tiles =
        std::min<int64_t>((num_threads() + spread.heads - 1) / spread.heads, plan.panels);
    // Tasks of a stage: (head, chunk) or (head, tile of V); heads without this segment have none.
    for (int64_t index = longest - 1; index >= 0; --index) {
      const auto for_chunks = [&](const auto& body) {
        parallel_for(spread.heads * kSegmentChunks, [&](int64_t task, int thread) {
          const int64_t head = task / kSegmentChunks;
          const int64_t i = task % kSegmentChunks;
          if (index < segments_of(head) && i < segment_of(head, index).chunks()) {
            const Segment segment = segment_of(head, index);
            SegmentScratch s = segment_scratch(head, segment);
            GradientScratch scratch = gradient_scratch(thread);
            body(segment, i, s, scratch);
          }
        });
      };
      for_chunks([](const Segment& segment, int64_t i, SegmentScratch& s,
                    GradientScratch& scratch) { build_segment_chunk(segment, i, s, scratch); });
      parallel_for(spread.heads * tiles, [&](int64_t task, int) {
        const int64_t head = task / tiles;
        const int64_t begin = plan.panels * (task % tiles) / tiles;
        const int64_t end = plan.panels * (task % tiles + 1) / tiles;
        if (index < segments_of(head)) {
          const Segment segment = segment_of(head, index);
          SegmentScratch s = segment_scratch(head, segment);
          rebuild_segment(segment, begin, end, s);
          for (int64_t i = segment.chunks() - 1; i >= 0; --i) {
            chain_chunk(segment, i, begin, end, s);
          }
        }
      });
      for_chunks([](const Segment& segment, int64_t i, SegmentScratch& s,
                    GradientScratch& scratch) { differentiate_chunk(segment, i, s, scratch); });
    }
  }
  if (plan.shared) {
    const int64_t tokens = p.B * p.T;
    parallel_for((tokens + kSumTokens - 1) / kSumTokens, [&](int64_t task, int) {
      const int64_t begin = task * kSumTokens;
      const int64_t end = std::min(begin + kSumTokens, tokens);
      sum_heads(p, head_dq, begin, end, call.d_q);
      sum_heads(p, head_dk, begin, end, call.d_k);
    });
  }
}

}  // namespace mdn::kernels::cpu

// kimi_delta_rule: the contract of the operator of Kimi Delta Attention (KDA, arXiv 2510.26692), a
// gated delta rule whose decay is one number a key channel.
//
// Per value head, with fast weights S (K x V, starting at the initial state), every token does
//
//     S <- diag(alpha_t) S
//     r_t = v_t - Sᵀ k_t
//     S <- S + beta_t k_t r_tᵀ
//     o_t = scale Sᵀ q_t
//
// Derivations in docs/math/kimi_delta_rule.md. With `l2norm`, q and k stand for
// x / sqrt(sum(x²) + 1e-6) of the given rows. alpha and beta are values, not logarithms, and any
// finite numbers, 0 included; the published layer has alpha in [0, 1].
//
// Memory, layouts, packed sequences and workspaces are momentum_delta_rule's (see there), with
//
//     alpha           [B, T, HV, K]   gate type    float; double when dtype is float64
//     beta            [B, T, HV]      gate type
//     S               [N, HV, V, K]   gate type    state layout 1
#pragma once

#include "mdn/kernels/momentum_delta_rule.h"

namespace mdn::kernels {

/// Sizes and choices of the same names, of another operator.
struct KimiDeltaRuleProblem : MomentumDeltaRuleProblem {};

struct KimiDeltaRuleInputs {
  const void* q = nullptr;
  const void* k = nullptr;
  const void* v = nullptr;
  const void* alpha = nullptr;
  const void* beta = nullptr;
  const void* initial_S = nullptr;  // null: zeros
};

/// Bytes the caller provides. Nothing is saved between the passes.
struct KimiDeltaRuleSizes {
  size_t forward_workspace = 0;
  size_t backward_workspace = 0;
};

struct KimiDeltaRuleForward {
  KimiDeltaRuleProblem problem;
  KimiDeltaRuleInputs inputs;
  void* o = nullptr;
  void* final_S = nullptr;  // null: not wanted
  void* workspace = nullptr;
};

struct KimiDeltaRuleBackward {
  KimiDeltaRuleProblem problem;
  KimiDeltaRuleInputs inputs;
  const void* d_o = nullptr;
  const void* d_final_S = nullptr;  // null: zero
  void* d_q = nullptr;
  void* d_k = nullptr;
  void* d_v = nullptr;
  void* d_alpha = nullptr;
  void* d_beta = nullptr;
  void* d_initial_S = nullptr;  // null: not wanted
  void* workspace = nullptr;
};

/// One token for each of B sequences, the state updated in place. q, k [B, H, K], v, o [B, HV, V],
/// alpha [B, HV, K], beta [B, HV]; S and slots as in MomentumDeltaRuleStep.
struct KimiDeltaRuleStep {
  int64_t B = 1;
  int64_t H = 1;
  int64_t HV = 1;
  int64_t K = 0;
  int64_t V = 0;
  DType dtype = DType::kFloat32;
  double scale = 1.0;
  bool l2norm = false;
  const void* q = nullptr;
  const void* k = nullptr;
  const void* v = nullptr;
  const void* alpha = nullptr;
  const void* beta = nullptr;
  void* S = nullptr;
  const int64_t* slots = nullptr;  // [B], null: b
  void* o = nullptr;
};

/// Throws mdn::Error when the sizes contradict each other or a required pointer is missing.
void check(const KimiDeltaRuleForward& call);
void check(const KimiDeltaRuleBackward& call);
void check(const KimiDeltaRuleStep& call);

/// float64 only, token by token: the law that the chunkwise program is tested against.
namespace reference {
KimiDeltaRuleSizes sizes(const KimiDeltaRuleProblem& problem);
void forward(const KimiDeltaRuleForward& call);
void backward(const KimiDeltaRuleBackward& call);
void step(const KimiDeltaRuleStep& call);
}  // namespace reference

/// The step alone, in float32 and bfloat16, SIMD and threads. Whole sequences are the chunkwise
/// program of mdn/ops/kimi_delta_rule_chunks.h.
namespace cpu {
void step(const KimiDeltaRuleStep& call);
}  // namespace cpu

/// Whole sequences in bfloat16 and float16 with K and V multiples of 8 up to 128, and the step in
/// every type but float64 with K up to 512. Work is queued on `stream` (a cudaStream_t) of the
/// current device and nothing waits for it; tensors start on multiples of 16 bytes. In a build
/// without CUDA everything is unsupported.
namespace cuda {
std::string unsupported(const KimiDeltaRuleProblem& problem);  // empty: supported
std::string unsupported(const KimiDeltaRuleStep& call);
KimiDeltaRuleSizes sizes(const KimiDeltaRuleProblem& problem);
void forward(const KimiDeltaRuleForward& call, Stream stream);
void backward(const KimiDeltaRuleBackward& call, Stream stream);
void step(const KimiDeltaRuleStep& call, Stream stream);
}  // namespace cuda

}  // namespace mdn::kernels

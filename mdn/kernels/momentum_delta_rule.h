// momentum_delta_rule: the contract of the operator, shared by every backend.
//
// Per value head, with fast weights S and momentum M (both K x V, starting at the initial states),
// every token t does one step of gradient descent with momentum on ½|v - Sᵀk|²:
//
//     r_t = v_t - pi_t Sᵀ k_t
//     M  <- mu_t M - eta_t k_t r_tᵀ
//     S  <- alpha_t S - beta_t M
//     o_t = scale Sᵀ q_t
//
// Source: arXiv 2605.05838; derivations in docs/math/momentum_delta_rule.md. With `l2norm`, q and k
// stand for x / sqrt(sum(x²) + 1e-6) of the given rows. alpha, mu, beta, pi >= 0 and eta are any
// finite numbers, 0 included: no backend takes a logarithm of, or divides by, a gate.
//
// Memory. Every pointer is to contiguous memory of the backend (host, or the CUDA device), row
// major, and stays valid until the call (on CUDA: the stream's work) is done. Shapes:
//
//     q, k            [B, T, H, K]    dtype        H query/key heads
//     v, o            [B, T, HV, V]   dtype        HV value heads, a multiple of H:
//                                                  value head j reads q/k head j / (HV/H)
//     alpha mu eta beta pi [B, T, HV] gate type    float; double when dtype is float64
//     S, M            [N, HV, V, K]   gate type    state layout 1, see below
//     cu_seqlens      [N + 1]         int64        packed sequences, see below
//
// State layout 1 (kStateLayoutVersion): S and M apart, each [N, HV, V, K] with K contiguous, i.e.
// transposed against the formulas: a row holds all that one value channel needs, so that a
// single-token step reads and writes each row once.
//
// Without momentum. Where mu is 0 in every token, M <- -eta k rᵀ is forgotten at once: the gated
// delta rule, S <- alpha S + beta eta k rᵀ. A problem with `momentum` false says so, and nobody
// keeps an M: mu and all pointers to M and to gradients of mu and M are null (in a step: mu and M).
// It takes about half of the work and memory.
//
// Packed sequences: B = 1 and tokens [cu_seqlens[n], cu_seqlens[n+1]) are sequence n, with its own
// states; 0 = cu_seqlens[0] <= ... <= cu_seqlens[N] = T; empty sequences pass states through.
// Without cu_seqlens each batch row is a sequence: N = B.
//
// No function allocates: `sizes` says how many bytes the caller must provide, 64-byte aligned
// (CUDA: 256), with any content. Outputs are overwritten, whatever they held. All element offsets
// are 64-bit. On the CPU the workspaces grow with num_threads() (mdn/core/threads.h): ask for the
// sizes when it is what it will be in the call. What is saved does not depend on it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "mdn/core/dtype.h"

namespace mdn::kernels {

inline constexpr int kStateLayoutVersion = 1;
inline constexpr double kL2NormEps = 1e-6;

/// The problem: sizes and everything that selects code rather than data.
struct MomentumDeltaRuleProblem {
  int64_t B = 1;                        // batch rows
  int64_t T = 0;                        // tokens of a row, >= 1
  int64_t H = 1;                        // query/key heads
  int64_t HV = 1;                       // value heads
  int64_t K = 0;                        // key channels
  int64_t V = 0;                        // value channels
  int64_t N = 1;                        // sequences
  const int64_t* cu_seqlens = nullptr;  // [N + 1], or null: N == B
  DType dtype = DType::kFloat32;        // of q, k, v, o and their gradients; float16 saturates
  double scale = 1.0;                   // of the output
  bool l2norm = false;                  // normalise q and k inside
  bool momentum = true;                 // false: mu is 0 everywhere, see above
};

/// What the forward and backward passes read. `pi` null means pi = alpha (the published layer);
/// then alpha's gradient contains pi's. Initial states null mean zeros. `mu` is null exactly when
/// the problem is without momentum.
struct MomentumDeltaRuleInputs {
  const void* q = nullptr;
  const void* k = nullptr;
  const void* v = nullptr;
  const void* alpha = nullptr;
  const void* mu = nullptr;
  const void* eta = nullptr;
  const void* beta = nullptr;
  const void* pi = nullptr;
  const void* initial_S = nullptr;
  const void* initial_M = nullptr;
};

/// Bytes the caller provides. `saved` carries what the backward pass wants from the forward pass.
struct MomentumDeltaRuleSizes {
  size_t forward_workspace = 0;
  size_t backward_workspace = 0;
  size_t saved = 0;
};

struct MomentumDeltaRuleForward {
  MomentumDeltaRuleProblem problem;
  MomentumDeltaRuleInputs inputs;
  void* o = nullptr;
  void* final_S = nullptr;    // null: not wanted
  void* final_M = nullptr;    // null: not wanted
  void* saved = nullptr;      // null: no backward pass will follow
  void* workspace = nullptr;  // forward_workspace bytes
};

struct MomentumDeltaRuleBackward {
  MomentumDeltaRuleProblem problem;
  MomentumDeltaRuleInputs inputs;
  const void* saved = nullptr;      // as the forward pass of the same inputs left it
  const void* d_o = nullptr;        // gradient of o
  const void* d_final_S = nullptr;  // null: zero
  const void* d_final_M = nullptr;  // null: zero
  void* d_q = nullptr;
  void* d_k = nullptr;
  void* d_v = nullptr;
  void* d_alpha = nullptr;
  void* d_mu = nullptr;
  void* d_eta = nullptr;
  void* d_beta = nullptr;
  void* d_pi = nullptr;         // present exactly when inputs.pi is
  void* d_initial_S = nullptr;  // null: not wanted
  void* d_initial_M = nullptr;  // null: not wanted
  void* workspace = nullptr;    // backward_workspace bytes
};

/// One token for each of B sequences, states updated in place. q, k [B, H, K], v, o [B, HV, V],
/// gates [B, HV]. S and M are pools [slots, HV, V, K]; sequence b owns slot slots[b] (null: b), and
/// no slot may appear twice. A negative slot marks a padding row: nothing of it is read or written.
struct MomentumDeltaRuleStep {
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
  const void* mu = nullptr;
  const void* eta = nullptr;
  const void* beta = nullptr;
  const void* pi = nullptr;  // null: alpha
  void* S = nullptr;
  void* M = nullptr;               // null with mu, and only then: without momentum
  const int64_t* slots = nullptr;  // [B]
  void* o = nullptr;
  // Of S and M: kFloat32 stands for the gate type; kFloat16 (CUDA alone) takes half the memory and
  // time, and stores what is past ±65504 as ±65504.
  DType state_dtype = DType::kFloat32;
};

/// Throws mdn::Error when the sizes contradict each other or a required pointer is missing: what
/// every backend checks first. Nothing behind a pointer is read.
void check(const MomentumDeltaRuleForward& call);
void check(const MomentumDeltaRuleBackward& call);
void check(const MomentumDeltaRuleStep& call);

/// What a backend whose memory the host can read checks besides: cu_seqlens starts at 0, never
/// decreases and ends at T; no slot is given twice.
void check_cu_seqlens(const MomentumDeltaRuleProblem& problem);
void check_slots(const MomentumDeltaRuleStep& call);

/// float64 only, token by token: the law that the other backends are tested against.
namespace reference {
std::string unsupported(const MomentumDeltaRuleProblem& problem);  // empty: supported
MomentumDeltaRuleSizes sizes(const MomentumDeltaRuleProblem& problem);
void forward(const MomentumDeltaRuleForward& call);
void backward(const MomentumDeltaRuleBackward& call);
void step(const MomentumDeltaRuleStep& call);
}  // namespace reference

/// float32 and bfloat16, chunkwise, SIMD and threads; the same bits for any number of threads.
namespace cpu {
std::string unsupported(const MomentumDeltaRuleProblem& problem);
MomentumDeltaRuleSizes sizes(const MomentumDeltaRuleProblem& problem);
void forward(const MomentumDeltaRuleForward& call);
void backward(const MomentumDeltaRuleBackward& call);
void step(const MomentumDeltaRuleStep& call);
}  // namespace cpu

/// Work is queued on `stream` (a cudaStream_t) of the current device and nothing waits for it. In a
/// build without CUDA every function throws an error that says so.
namespace cuda {
using Stream = void*;
std::string unsupported(const MomentumDeltaRuleProblem& problem);
MomentumDeltaRuleSizes sizes(const MomentumDeltaRuleProblem& problem);
void forward(const MomentumDeltaRuleForward& call, Stream stream);
void backward(const MomentumDeltaRuleBackward& call, Stream stream);
void step(const MomentumDeltaRuleStep& call, Stream stream);
}  // namespace cuda

}  // namespace mdn::kernels

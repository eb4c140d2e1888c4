// rms_norm: RMSNorm over rows, with an optional gate. With norm(u) = u / sqrt(mean(u²) + eps),
//
//     y = norm(x) weight                    without a gate
//     y = norm(x) weight sigmoid(gate)      RmsNormGating::kSigmoid
//     y = norm(x) weight silu(gate)         kSilu; silu(g) = g sigmoid(g)
//     y = norm(x silu(gate)) weight         kSiluFirst
//     y = norm((x + scale skip) silu(gate)) weight      the same with a skip
//
// x, gate, skip, y [rows, D], weight, scale [D], contiguous; float32 on the CPU, any DType but
// float64 on CUDA; gate null: none. Nothing is allocated: the backward pass wants
// `rms_norm_backward_workspace` bytes, 64-byte aligned.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "mdn/core/dtype.h"

namespace mdn::kernels {

enum class RmsNormGating { kSigmoid, kSilu, kSiluFirst };

/// data null: none; only with kSiluFirst.
struct RmsNormSkip {
  const void* data = nullptr;
  const float* scale = nullptr;
};

/// Its gradients, present exactly when it is.
struct RmsNormSkipGradient {
  void* data = nullptr;
  float* scale = nullptr;
};

namespace cpu {

void rms_norm_forward(int64_t rows, int64_t D, double eps, const float* x, const float* gate,
                      const float* weight, float* y, RmsNormGating gating = RmsNormGating::kSigmoid,
                      const RmsNormSkip& skip = {});

size_t rms_norm_backward_workspace(int64_t rows, int64_t D);

/// d_x, d_gate (present exactly when gate is) and d_weight are overwritten; the same bits for any
/// number of threads.
void rms_norm_backward(int64_t rows, int64_t D, double eps, const float* x, const float* gate,
                       const float* weight, const float* d_y, float* d_x, float* d_gate,
                       float* d_weight, void* workspace,
                       RmsNormGating gating = RmsNormGating::kSigmoid, const RmsNormSkip& skip = {},
                       const RmsNormSkipGradient& d_skip = {});

}  // namespace cpu

/// Work is queued on `stream` (a cudaStream_t) of the current device and nothing waits for it; sums
/// over rows have one order, so the same call gives the same bits. Rows start at multiples of 16
/// bytes; computed in float32, weights in float32.
namespace cuda {
using Stream = void*;

/// A gate that lies among the columns of wider rows: `heads` rows of D neighbours, then the next
/// `heads` of them `stride` elements on. Contiguous: heads 1, stride D.
struct RmsNormGate {
  const void* data = nullptr;
  int64_t heads = 1;
  int64_t stride = 0;
  RmsNormGating gating = RmsNormGating::kSigmoid;
};

struct RmsNormForward {
  int64_t rows = 0;
  int64_t D = 0;
  double eps = 0;
  DType dtype = DType::kBFloat16;  // of x, gate, y and their gradients
  bool float_x = false;            // x is float32 all the same; not with a gate
  const void* x = nullptr;
  RmsNormGate gate;
  RmsNormSkip skip = {};
  const float* weight = nullptr;
  void* y = nullptr;
};

struct RmsNormBackward {
  int64_t rows = 0;
  int64_t D = 0;
  double eps = 0;
  DType dtype = DType::kBFloat16;
  bool float_x = false;  // of add and d_x too
  const void* x = nullptr;
  RmsNormGate gate;
  RmsNormSkip skip = {};
  const float* weight = nullptr;
  const void* d_y = nullptr;
  const void* add = nullptr;  // added to d_x: what reaches x past the norm; null: nothing
  void* d_x = nullptr;
  void* d_gate = nullptr;  // laid out as the gate, with a stride of its own
  int64_t d_gate_stride = 0;
  RmsNormSkipGradient d_skip = {};
  void* y = nullptr;  // the forward pass's result again; null: not wanted
  float* d_weight = nullptr;
  void* workspace = nullptr;
};

std::string rms_norm_unsupported(DType dtype, int64_t D);  // empty: supported
size_t rms_norm_backward_workspace(int64_t rows, int64_t D);
void rms_norm_forward(const RmsNormForward& call, Stream stream);
void rms_norm_backward(const RmsNormBackward& call, Stream stream);
}  // namespace cuda
}  // namespace mdn::kernels

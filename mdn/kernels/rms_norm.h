// rms_norm: RMSNorm over rows, with an optional sigmoid gate after the weight.
//
//     n = x / sqrt(mean(x²) + eps);   y = n weight           or y = n weight sigmoid(gate)
//
// x, gate, y [rows, D], weight [D], contiguous float32; gate null: none. Nothing is allocated: the
// backward pass wants `rms_norm_backward_workspace` bytes, 64-byte aligned.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mdn::kernels::cpu {

void rms_norm_forward(int64_t rows, int64_t D, double eps, const float* x, const float* gate,
                      const float* weight, float* y);

size_t rms_norm_backward_workspace(int64_t rows, int64_t D);

/// d_x, d_gate (present exactly when gate is) and d_weight are overwritten; the same bits for any
/// number of threads.
void rms_norm_backward(int64_t rows, int64_t D, double eps, const float* x, const float* gate,
                       const float* weight, const float* d_y, float* d_x, float* d_gate,
                       float* d_weight, void* workspace);

}  // namespace mdn::kernels::cpu

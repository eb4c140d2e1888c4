// swiglu: y = silu(a) b, element by element; contiguous float32.
#pragma once

#include <cstdint>

namespace mdn::kernels::cpu {

void swiglu_forward(int64_t count, const float* a, const float* b, float* y);
/// d_a and d_b are overwritten.
void swiglu_backward(int64_t count, const float* a, const float* b, const float* d_y, float* d_a,
                     float* d_b);

}  // namespace mdn::kernels::cpu

#include "mdn/kernels/rms_norm.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "mdn/core/threads.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "mdn/kernels/cpu/rms_norm.cpp"
#include <hwy/foreach_target.h>

#include "mdn/kernels/cpu/elementwise-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mdn::kernels::cpu {
namespace HWY_NAMESPACE {

// sum_i a[i] b[i]
float dot(int64_t D, const float* a, const float* b) {
  const hn::ScalableTag<float> d;
  auto sum = hn::Zero(d);
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= D; i += lanes) {
    sum = hn::MulAdd(hn::LoadU(d, a + i), hn::LoadU(d, b + i), sum);
  }
  float total = hn::GetLane(hn::SumOfLanes(d, sum));
  for (; i < D; ++i) {
    total += a[i] * b[i];
  }
  return total;
}

void rms_norm_rows(int64_t rows, int64_t D, float eps, const float* x, const float* gate,
                   const float* weight, float* y) {
  for (int64_t row = 0; row < rows; ++row, x += D, y += D, gate += gate ? D : 0) {
    const float r = 1.0f / std::sqrt(dot(D, x, x) / static_cast<float>(D) + eps);
    // y = x r weight (sigmoid(gate))
    for_each_vector(D, [&](auto d, int64_t i) HWY_ATTR {
      auto n = hn::Mul(hn::Mul(hn::LoadU(d, x + i), hn::Set(d, r)), hn::LoadU(d, weight + i));
      if (gate) {
        n = hn::Mul(n, sigmoid(d, hn::LoadU(d, gate + i)));
      }
      hn::StoreU(n, d, y + i);
    });
  }
}

// Gradients of a block of rows; adds the weight's to d_weight.
void rms_norm_backward_rows(int64_t rows, int64_t D, float eps, const float* x, const float* gate,
                            const float* weight, const float* d_y, float* d_x, float* d_gate,
                            float* d_weight) {
  for (int64_t row = 0; row < rows; ++row) {
    const float r = 1.0f / std::sqrt(dot(D, x, x) / static_cast<float>(D) + eps);
    // with n = x r, g = d_y sigmoid(gate):  d_n = g weight (kept in d_x), d_weight += g n,
    // d_gate = d_y n weight s (1 - s)
    for_each_vector(D, [&](auto d, int64_t i) HWY_ATTR {
      const auto n = hn::Mul(hn::LoadU(d, x + i), hn::Set(d, r));
      const auto w = hn::LoadU(d, weight + i);
      auto g = hn::LoadU(d, d_y + i);
      if (gate) {
        const auto s = sigmoid(d, hn::LoadU(d, gate + i));
        const auto slope = hn::Mul(s, hn::Sub(hn::Set(d, 1.0f), s));
        hn::StoreU(hn::Mul(hn::Mul(g, n), hn::Mul(w, slope)), d, d_gate + i);
        g = hn::Mul(g, s);
      }
      hn::StoreU(hn::MulAdd(g, n, hn::LoadU(d, d_weight + i)), d, d_weight + i);
      hn::StoreU(hn::Mul(g, w), d, d_x + i);
    });
    // d_x = r (d_n - n mean(d_n n))
    const float mean = dot(D, d_x, x) * r / static_cast<float>(D);
    for_each_vector(D, [&](auto d, int64_t i) HWY_ATTR {
      const auto n = hn::Mul(hn::LoadU(d, x + i), hn::Set(d, r));
      const auto d_n = hn::LoadU(d, d_x + i);
      hn::StoreU(hn::Mul(hn::Set(d, r), hn::NegMulAdd(n, hn::Set(d, mean), d_n)), d, d_x + i);
    });
    x += D;
    d_y += D;
    d_x += D;
    if (gate) {
      gate += D;
      d_gate += D;
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace mdn::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mdn::kernels::cpu {
namespace {

HWY_EXPORT(rms_norm_rows);
HWY_EXPORT(rms_norm_backward_rows);

// Rows of a task: a fixed number, so that sums over rows do not depend on the threads.
constexpr int64_t kBlock = 128;

int64_t blocks_of(int64_t rows) {
  return (rows + kBlock - 1) / kBlock;
}

}  // namespace

void rms_norm_forward(int64_t rows, int64_t D, double eps, const float* x, const float* gate,
                      const float* weight, float* y) {
  parallel_for(blocks_of(rows), [&](int64_t block, int) {
    const int64_t first = block * kBlock, n = std::min(kBlock, rows - first), at = first * D;
    HWY_DYNAMIC_DISPATCH(rms_norm_rows)
    (n, D, static_cast<float>(eps), x + at, gate ? gate + at : nullptr, weight, y + at);
  });
}

size_t rms_norm_backward_workspace(int64_t rows, int64_t D) {
  return static_cast<size_t>(blocks_of(rows) * D) * sizeof(float);
}

void rms_norm_backward(int64_t rows, int64_t D, double eps, const float* x, const float* gate,
                       const float* weight, const float* d_y, float* d_x, float* d_gate,
                       float* d_weight, void* workspace) {
  float* partial = static_cast<float*>(workspace);  // [blocks, D]
  const auto bytes = static_cast<size_t>(D) * sizeof(float);
  parallel_for(blocks_of(rows), [&](int64_t block, int) {
    const int64_t first = block * kBlock, n = std::min(kBlock, rows - first), at = first * D;
    std::memset(partial + block * D, 0, bytes);
    HWY_DYNAMIC_DISPATCH(rms_norm_backward_rows)
    (n, D, static_cast<float>(eps), x + at, gate ? gate + at : nullptr, weight, d_y + at, d_x + at,
     gate ? d_gate + at : nullptr, partial + block * D);
  });
  std::memset(d_weight, 0, bytes);
  for (int64_t block = 0; block < blocks_of(rows); ++block) {
    for (int64_t i = 0; i < D; ++i) {
      d_weight[i] += partial[block * D + i];
    }
  }
}

}  // namespace mdn::kernels::cpu
#endif  // HWY_ONCE

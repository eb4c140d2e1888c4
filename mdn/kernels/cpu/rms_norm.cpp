#include "mdn/kernels/rms_norm.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "mdn/core/threads.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "mdn/kernels/cpu/rms_norm.cpp"
#include <hwy/foreach_target.h>

#include "mdn/kernels/cpu/elementwise-inl.h"

#ifndef MDN_KERNELS_CPU_RMS_NORM_SKIP_
#define MDN_KERNELS_CPU_RMS_NORM_SKIP_
namespace mdn::kernels::cpu {

// One row of a skip and of what is summed for its scale; data null: none.
struct Skip {
  const float* data = nullptr;
  const float* scale = nullptr;
  float* d_data = nullptr;
  float* d_scale = nullptr;

  void next_row(int64_t D) {
    data += data ? D : 0;
    d_data += d_data ? D : 0;
  }
};

}  // namespace mdn::kernels::cpu
#endif

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

// A gate's factor and its derivative.
template <class Vec>
struct Gate {
  Vec factor, slope;
};

template <class D, class Vec>
HWY_INLINE Gate<Vec> gate_of(D d, RmsNormGating gating, Vec g) {
  const Vec s = sigmoid(d, g), one = hn::Set(d, 1.0f), rest = hn::Sub(one, s);
  if (gating == RmsNormGating::kSigmoid) {
    return {s, hn::Mul(s, rest)};
  }
  return {hn::Mul(g, s), hn::Mul(s, hn::MulAdd(g, rest, one))};
}

// x + scale skip
template <class D>
HWY_INLINE auto with_skip(D d, const float* x, const Skip& skip, int64_t i) {
  const auto v = hn::LoadU(d, x + i);
  return skip.data ? hn::MulAdd(hn::LoadU(d, skip.scale + i), hn::LoadU(d, skip.data + i), v) : v;
}

// u = (x + scale skip) silu(gate)
void gate_row(int64_t D, const float* x, const Skip& skip, const float* gate, RmsNormGating gating,
              float* u) {
  for_each_vector(D, [&](auto d, int64_t i) HWY_ATTR {
    const auto factor = gate_of(d, gating, hn::LoadU(d, gate + i)).factor;
    hn::StoreU(hn::Mul(with_skip(d, x, skip, i), factor), d, u + i);
  });
}

void rms_norm_rows(int64_t rows, int64_t D, float eps, const float* x, const float* gate,
                   RmsNormGating gating, Skip skip, const float* weight, float* y) {
  const bool first = gate && gating == RmsNormGating::kSiluFirst;
  const bool after = gate && !first;
  for (int64_t row = 0; row < rows; ++row, x += D, y += D, gate += gate ? D : 0) {
    if (first) {
      gate_row(D, x, skip, gate, gating, y);
      skip.next_row(D);
    }
    const float* u = first ? y : x;
    const float r = 1.0f / std::sqrt(dot(D, u, u) / static_cast<float>(D) + eps);
    // y = u r weight (factor of the gate)
    for_each_vector(D, [&](auto d, int64_t i) HWY_ATTR {
      auto n = hn::Mul(hn::Mul(hn::LoadU(d, u + i), hn::Set(d, r)), hn::LoadU(d, weight + i));
      if (after) {
        n = hn::Mul(n, gate_of(d, gating, hn::LoadU(d, gate + i)).factor);
      }
      hn::StoreU(n, d, y + i);
    });
  }
}

// Gradients of a block of rows; adds those of weight and scale to d_weight and d_scale.
void rms_norm_backward_rows(int64_t rows, int64_t D, float eps, const float* x, const float* gate,
                            RmsNormGating gating, Skip skip, const float* weight, const float* d_y,
                            float* d_x, float* d_gate, float* d_weight) {
  const bool first = gate && gating == RmsNormGating::kSiluFirst;
  const bool after = gate && !first;
  for (int64_t row = 0; row < rows; ++row) {
    if (first) {
      gate_row(D, x, skip, gate, gating, d_gate);  // u, until d_gate is known
    }
    const float* u = first ? d_gate : x;
    const float r = 1.0f / std::sqrt(dot(D, u, u) / static_cast<float>(D) + eps);
    // with n = u r, g = d_y (factor of the gate):  d_n = g weight (kept in d_x), d_weight += g n,
    // d_gate = d_y n weight slope
    for_each_vector(D, [&](auto d, int64_t i) HWY_ATTR {
      const auto n = hn::Mul(hn::LoadU(d, u + i), hn::Set(d, r));
      const auto w = hn::LoadU(d, weight + i);
      auto g = hn::LoadU(d, d_y + i);
      if (after) {
        const auto of = gate_of(d, gating, hn::LoadU(d, gate + i));
        hn::StoreU(hn::Mul(hn::Mul(g, n), hn::Mul(w, of.slope)), d, d_gate + i);
        g = hn::Mul(g, of.factor);
      }
      hn::StoreU(hn::MulAdd(g, n, hn::LoadU(d, d_weight + i)), d, d_weight + i);
      hn::StoreU(hn::Mul(g, w), d, d_x + i);
    });
    // d_u = r (d_n - n mean(d_n n));  gate first: d_x = d_u factor, d_gate = d_u x slope with x the
    // sum with the skip;  d_skip = d_x scale, d_scale += d_x skip
    const float mean = dot(D, d_x, u) * r / static_cast<float>(D);
    for_each_vector(D, [&](auto d, int64_t i) HWY_ATTR {
      const auto n = hn::Mul(hn::LoadU(d, u + i), hn::Set(d, r));
      const auto d_n = hn::LoadU(d, d_x + i);
      auto d_u = hn::Mul(hn::Set(d, r), hn::NegMulAdd(n, hn::Set(d, mean), d_n));
      if (first) {
        const auto of = gate_of(d, gating, hn::LoadU(d, gate + i));
        hn::StoreU(hn::Mul(hn::Mul(d_u, with_skip(d, x, skip, i)), of.slope), d, d_gate + i);
        d_u = hn::Mul(d_u, of.factor);
        if (skip.data) {
          float* sum = skip.d_scale + i;
          hn::StoreU(hn::MulAdd(d_u, hn::LoadU(d, skip.data + i), hn::LoadU(d, sum)), d, sum);
          hn::StoreU(hn::Mul(d_u, hn::LoadU(d, skip.scale + i)), d, skip.d_data + i);
        }
      }
      hn::StoreU(d_u, d, d_x + i);
    });
    x += D;
    d_y += D;
    d_x += D;
    if (gate) {
      gate += D;
      d_gate += D;
    }
    skip.next_row(D);
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
                      const float* weight, float* y, RmsNormGating gating,
                      const RmsNormSkip& skip) {
  const auto* skipped = static_cast<const float*>(skip.data);
  parallel_for(blocks_of(rows), [&](int64_t block, int) {
    const int64_t first = block * kBlock, n = std::min(kBlock, rows - first), at = first * D;
    const Skip of_block{.data = skipped ? skipped + at : nullptr, .scale = skip.scale};
    HWY_DYNAMIC_DISPATCH(rms_norm_rows)
    (n, D, static_cast<float>(eps), x + at, gate ? gate + at : nullptr, gating, of_block, weight,
     y + at);
  });
}

size_t rms_norm_backward_workspace(int64_t rows, int64_t D) {
  return static_cast<size_t>(blocks_of(rows) * 2 * D) * sizeof(float);
}

void rms_norm_backward(int64_t rows, int64_t D, double eps, const float* x, const float* gate,
                       const float* weight, const float* d_y, float* d_x, float* d_gate,
                       float* d_weight, void* workspace, RmsNormGating gating,
                       const RmsNormSkip& skip, const RmsNormSkipGradient& d_skip) {
  float* partial = static_cast<float*>(workspace);  // [blocks, 2, D]: of the weight, of the scale
  const auto* skipped = static_cast<const float*>(skip.data);
  parallel_for(blocks_of(rows), [&](int64_t block, int) {
    const int64_t first = block * kBlock, n = std::min(kBlock, rows - first), at = first * D;
    float* sums = partial + block * 2 * D;
    std::memset(sums, 0, static_cast<size_t>(2 * D) * sizeof(float));
    const Skip of_block{.data = skipped ? skipped + at : nullptr,
                        .scale = skip.scale,
                        .d_data = skipped ? static_cast<float*>(d_skip.data) + at : nullptr,
                        .d_scale = sums + D};
    HWY_DYNAMIC_DISPATCH(rms_norm_backward_rows)
    (n, D, static_cast<float>(eps), x + at, gate ? gate + at : nullptr, gating, of_block, weight,
     d_y + at, d_x + at, gate ? d_gate + at : nullptr, sums);
  });
  const auto over_blocks = [&](const float* sums, float* total) {
    std::memset(total, 0, static_cast<size_t>(D) * sizeof(float));
    for (int64_t block = 0; block < blocks_of(rows); ++block) {
      for (int64_t i = 0; i < D; ++i) {
        total[i] += sums[block * 2 * D + i];
      }
    }
  };
  over_blocks(partial, d_weight);
  if (skipped) {
    over_blocks(partial + D, d_skip.scale);
  }
}

}  // namespace mdn::kernels::cpu
#endif  // HWY_ONCE

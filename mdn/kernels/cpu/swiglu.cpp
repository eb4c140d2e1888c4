#include "mdn/kernels/swiglu.h"

#include <algorithm>

#include "mdn/core/threads.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "mdn/kernels/cpu/swiglu.cpp"
#include <hwy/foreach_target.h>

#include "mdn/kernels/cpu/elementwise-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mdn::kernels::cpu {
namespace HWY_NAMESPACE {

void swiglu_block(int64_t count, const float* a, const float* b, float* y) {
  // y = a sigmoid(a) b
  for_each_vector(count, [&](auto d, int64_t i) HWY_ATTR {
    const auto va = hn::LoadU(d, a + i);
    hn::StoreU(hn::Mul(hn::Mul(va, sigmoid(d, va)), hn::LoadU(d, b + i)), d, y + i);
  });
}

void swiglu_backward_block(int64_t count, const float* a, const float* b, const float* d_y,
                           float* d_a, float* d_b) {
  // with s = sigmoid(a): d_b = d_y a s, d_a = d_y b s (1 + a (1 - s))
  for_each_vector(count, [&](auto d, int64_t i) HWY_ATTR {
    const auto va = hn::LoadU(d, a + i), vb = hn::LoadU(d, b + i), dy = hn::LoadU(d, d_y + i);
    const auto s = sigmoid(d, va), one = hn::Set(d, 1.0f);
    const auto dys = hn::Mul(dy, s);
    hn::StoreU(hn::Mul(dys, va), d, d_b + i);
    const auto slope = hn::MulAdd(va, hn::Sub(one, s), one);
    hn::StoreU(hn::Mul(hn::Mul(dys, vb), slope), d, d_a + i);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace mdn::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mdn::kernels::cpu {
namespace {

HWY_EXPORT(swiglu_block);
HWY_EXPORT(swiglu_backward_block);

constexpr int64_t kBlock = 16384;  // elements of a task

template <class Body>
void for_each_block(int64_t count, const Body& body) {
  parallel_for((count + kBlock - 1) / kBlock, [&](int64_t block, int) {
    const int64_t start = block * kBlock;
    body(start, std::min(kBlock, count - start));
  });
}

}  // namespace

void swiglu_forward(int64_t count, const float* a, const float* b, float* y) {
  for_each_block(count, [&](int64_t i, int64_t n) {
    HWY_DYNAMIC_DISPATCH(swiglu_block)(n, a + i, b + i, y + i);
  });
}

void swiglu_backward(int64_t count, const float* a, const float* b, const float* d_y, float* d_a,
                     float* d_b) {
  for_each_block(count, [&](int64_t i, int64_t n) {
    HWY_DYNAMIC_DISPATCH(swiglu_backward_block)(n, a + i, b + i, d_y + i, d_a + i, d_b + i);
  });
}

}  // namespace mdn::kernels::cpu
#endif  // HWY_ONCE

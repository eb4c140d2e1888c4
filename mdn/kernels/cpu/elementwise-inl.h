// What the row-wise kernels share: a loop over a row in vectors and then single lanes, sigmoid.
#if defined(MDN_KERNELS_CPU_ELEMENTWISE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MDN_KERNELS_CPU_ELEMENTWISE_INL_H_
#undef MDN_KERNELS_CPU_ELEMENTWISE_INL_H_
#else
#define MDN_KERNELS_CPU_ELEMENTWISE_INL_H_
#endif

#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace mdn::kernels::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// body(tag, i) for every vector of [0, count), then, with a one-lane tag, for what is left.
template <class Body>
HWY_INLINE void for_each_vector(int64_t count, const Body& body) {
  const hn::ScalableTag<float> wide;
  const hn::CappedTag<float, 1> single;
  const auto lanes = static_cast<int64_t>(hn::Lanes(wide));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    body(wide, i);
  }
  for (; i < count; ++i) {
    body(single, i);
  }
}

/// 1 / (1 + exp(-x)); the argument is kept where the exponential is finite.
template <class D, class Vec>
HWY_INLINE Vec sigmoid(D d, Vec x) {
  const Vec bounded = hn::Max(x, hn::Set(d, -87.0f));
  const Vec one = hn::Set(d, 1.0f);
  return hn::Div(one, hn::Add(one, hn::Exp(d, hn::Neg(bounded))));
}

}  // namespace HWY_NAMESPACE
}  // namespace mdn::kernels::cpu
HWY_AFTER_NAMESPACE();

#endif  // toggle

// Rows of a tensor in memory, float or bfloat16: products, and the way to and from local float
// matrices with padding.
#if defined(MDN_KERNELS_CPU_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MDN_KERNELS_CPU_ROWS_INL_H_
#undef MDN_KERNELS_CPU_ROWS_INL_H_
#else
#define MDN_KERNELS_CPU_ROWS_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>

#include "mdn/core/dtype.h"
#include "mdn/kernels/cpu/micro_gemm-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mdn::kernels::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

HWY_INLINE Vf load_floats(const float* from) {
  return hn::LoadU(Df(), from);
}
HWY_INLINE void store_floats(Vf x, float* to) {
  hn::StoreU(x, Df(), to);
}

HWY_INLINE Vf load_floats(const BFloat16* from) {
  const hn::RebindToUnsigned<Df> du32;
  const hn::Rebind<uint16_t, Df> du16;
  const auto bits = hn::LoadU(du16, reinterpret_cast<const uint16_t*>(from));
  return hn::BitCast(Df(), hn::ShiftLeft<16>(hn::PromoteTo(du32, bits)));
}

/// Rounds to nearest even; NaN stays NaN.
HWY_INLINE void store_floats(Vf x, BFloat16* to) {
  const hn::RebindToUnsigned<Df> du32;
  const hn::RebindToSigned<Df> di32;
  const hn::Rebind<uint16_t, Df> du16;
  const auto bits = hn::BitCast(du32, x);
  const auto upper = hn::ShiftRight<16>(bits);
  const auto odd = hn::And(upper, hn::Set(du32, 1u));
  const auto rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(odd, hn::Set(du32, 0x7fffu))));
  const auto is_nan = hn::RebindMask(du32, hn::Ne(x, x));
  const auto nan = hn::Or(upper, hn::Set(du32, 0x40u));
  const auto result = hn::IfThenElse(is_nan, nan, rounded);
  // The values are below 2^16, so that the saturating conversion from signed changes nothing.
  hn::StoreU(hn::DemoteTo(du16, hn::BitCast(di32, result)), du16, reinterpret_cast<uint16_t*>(to));
}

HWY_INLINE float sum(Vf x) {
  return hn::GetLane(hn::SumOfLanes(Df(), x));
}

/// Σ x y of two rows of any length.
template <class T>
HWY_INLINE float dot_rows(const T* x, const T* y, int64_t count) {
  Vf sums = hn::Zero(Df());
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    sums = hn::MulAdd(load_floats(x + i), load_floats(y + i), sums);
  }
  float total = sum(sums);
  for (; i < count; ++i) {
    total += static_cast<float>(x[i]) * static_cast<float>(y[i]);
  }
  return total;
}

/// to[i][j] = factor from[i][j] for j < columns, 0 up to `padded` columns.
template <class T>
HWY_INLINE void load_row(const T* from, int64_t columns, float* to, int64_t padded) {
  int64_t j = 0;
  for (; j + kLanes <= columns; j += kLanes) {
    store_floats(load_floats(from + j), to + j);
  }
  for (; j < columns; ++j) {
    to[j] = static_cast<float>(from[j]);
  }
  for (; j < padded; ++j) {
    to[j] = 0;
  }
}

template <class T>
HWY_INLINE void store_row(const float* from, int64_t columns, T* to) {
  int64_t j = 0;
  for (; j + kLanes <= columns; j += kLanes) {
    store_floats(load_floats(from + j), to + j);
  }
  for (; j < columns; ++j) {
    to[j] = static_cast<T>(from[j]);
  }
}

/// Rows of a tensor of either type. `from` is the tensor's start, `offset` counts elements.
HWY_INLINE void load_rows(const void* from, DType dtype, int64_t offset, int64_t stride,
                          int64_t rows, int64_t columns, float* to, int64_t to_stride,
                          int64_t padded) {
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t at = offset + i * stride;
    if (dtype == DType::kFloat32) {
      load_row(static_cast<const float*>(from) + at, columns, to + i * to_stride, padded);
    } else {
      load_row(static_cast<const BFloat16*>(from) + at, columns, to + i * to_stride, padded);
    }
  }
}

HWY_INLINE void store_rows(const float* from, int64_t from_stride, int64_t rows, int64_t columns,
                           void* to, DType dtype, int64_t offset, int64_t stride) {
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t at = offset + i * stride;
    if (dtype == DType::kFloat32) {
      store_row(from + i * from_stride, columns, static_cast<float*>(to) + at);
    } else {
      store_row(from + i * from_stride, columns, static_cast<BFloat16*>(to) + at);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace mdn::kernels::cpu
HWY_AFTER_NAMESPACE();

#endif  // toggle

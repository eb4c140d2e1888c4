// Runs of neighbouring elements moved in one access of up to 16 bytes and computed with as float32,
// and the functions of one number that several kernels share.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "mdn/core/dtype.h"

namespace mdn::kernels::cuda {

/// Elements of T in a 16-byte access.
template <class T>
inline constexpr int kVector = 16 / static_cast<int>(sizeof(T));

template <class T>
inline constexpr bool kIsFloat32 = sizeof(T) == 4;

/// Stands for a type in calls of with_type.
template <class T>
struct TypeTag {
  using Type = T;
};

/// Calls f(TypeTag<T>{}) with the CUDA type of `dtype`; float64 has none and is refused earlier.
template <class F>
void with_type(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kBFloat16:
      return f(TypeTag<__nv_bfloat16>{});
    case DType::kFloat16:
      return f(TypeTag<__half>{});
    default:
      return f(TypeTag<float>{});
  }
}

template <int kBytes>
struct Word;
template <>
struct Word<2> {
  using Type = uint16_t;
};
template <>
struct Word<4> {
  using Type = uint32_t;
};
template <>
struct Word<8> {
  using Type = uint2;
};
template <>
struct Word<16> {
  using Type = uint4;
};

__device__ inline float to_float(float x) {
  return x;
}
__device__ inline float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}
__device__ inline float to_float(__half x) {
  return __half2float(x);
}

/// Rounds to nearest even.
template <class T>
__device__ inline T from_float(float x) {
  if constexpr (sizeof(T) == 4) {
    return x;
  } else if constexpr (std::is_same_v<T, __half>) {
    return __float2half(x);
  } else {
    return __float2bfloat16(x);
  }
}

/// kCount elements as they lie in memory.
template <class T, int kCount>
struct Run {
  static constexpr int kBytes = static_cast<int>(sizeof(T)) * kCount;
  static constexpr int kWordBytes = kBytes > 16 ? 16 : kBytes;
  using WordType = typename Word<kWordBytes>::Type;
  static constexpr int kWords = kBytes / kWordBytes;
  WordType words[kWords];

  /// `from` is aligned to kBytes, at most 16.
  __device__ void load(const T* from) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      words[i] = reinterpret_cast<const WordType*>(from)[i];
    }
  }
  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      words[i] = WordType{};
    }
  }
  __device__ void store(T* to) const {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      reinterpret_cast<WordType*>(to)[i] = words[i];
    }
  }
  __device__ void unpack(float (&x)[kCount]) const {
    if constexpr (std::is_same_v<T, __nv_bfloat16> && kCount % 2 == 0) {
      // A bfloat16 is the upper half of a float32: one instruction for each, where nvcc makes two
      // of every second one.
      uint32_t pairs[kCount / 2];
      memcpy(pairs, words, sizeof(pairs));
#pragma unroll
      for (int i = 0; i < kCount / 2; ++i) {
        x[2 * i] = __uint_as_float(pairs[i] << 16);
        x[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000u);
      }
    } else {
      T elements[kCount];
      memcpy(elements, words, sizeof(elements));
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        x[i] = to_float(elements[i]);
      }
    }
  }
  __device__ void pack(const float (&x)[kCount]) {
    T elements[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      elements[i] = from_float<T>(x[i]);
    }
    memcpy(words, elements, sizeof(elements));
  }
};

template <class T, int kCount>
__device__ inline void load_run(const T* from, float (&x)[kCount]) {
  Run<T, kCount> run;
  run.load(from);
  run.unpack(x);
}

template <class T, int kCount>
__device__ inline void store_run(T* to, const float (&x)[kCount]) {
  Run<T, kCount> run;
  run.pack(x);
  run.store(to);
}

/// N neighbouring elements from `at` on, or zeros, as float32, of a tensor whose type is known at
/// run time. `whole`: they are aligned as one access, or as several of 16 bytes; `inside`: how many
/// of them there are, with `whole` none or all.
template <int N>
__device__ inline void load_columns(const void* tensor, int64_t at, DType dtype, bool whole,
                                    int inside, float (&x)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    x[i] = 0;
  }
  const auto load = [&](auto* from) {
    if (whole && inside > 0) {
      load_run(from + at, x);
    } else if (!whole) {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        if (i < inside) {
          x[i] = to_float(from[at + i]);
        }
      }
    }
  };
  if (dtype == DType::kBFloat16) {
    load(static_cast<const __nv_bfloat16*>(tensor));
  } else if (dtype == DType::kFloat16) {
    load(static_cast<const __half*>(tensor));
  } else {
    load(static_cast<const float*>(tensor));
  }
}

/// exp with an error that vanishes in the rounding to T: the hardware's for 16-bit types, as it is
/// and with zeros for denormal numbers, as in `sigmoid`.
template <class T>
__device__ inline float exponential(float x) {
  if constexpr (kIsFloat32<T>) {
    return expf(x);
  } else {
    constexpr float kLog2E = 1.44269504f;
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(kLog2E * x));
    return power;
  }
}

/// 1 / (1 + exp(-x)), for any x. For 16-bit types by the hardware's two functions as they are: the
/// intrinsics would each be wrapped in a scaling for denormal numbers, which nobody would see.
template <class T>
__device__ inline float sigmoid(float x) {
  if constexpr (kIsFloat32<T>) {
    return 1.0f / (1.0f + expf(-x));
  } else {
    constexpr float kMinusLog2E = -1.44269504f;
    float power, inverse;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(kMinusLog2E * x));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(1.0f + power));
    return inverse;
  }
}

}  // namespace mdn::kernels::cuda

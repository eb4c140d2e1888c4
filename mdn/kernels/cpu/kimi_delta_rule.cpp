// kimi_delta_rule, CPU backend: a single token, states in place. A row of the state belongs to one
// value channel and is read once and written once.
#include "mdn/kernels/kimi_delta_rule.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "mdn/kernels/cpu/kimi_delta_rule.cpp"
#ifndef HWY_DISABLED_TARGETS
// As in momentum_delta_rule_simd.cpp.
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#endif
#include <hwy/foreach_target.h>  // before highway.h
#include <hwy/highway.h>

#include <cmath>

#include "mdn/core/error.h"
#include "mdn/core/threads.h"
#include "mdn/kernels/check.h"
#include "mdn/kernels/cpu/rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mdn::kernels::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class T>
void kimi_step_rows(const KimiDeltaRuleStep& call, int64_t b, int64_t head) {
  const int64_t K = call.K;
  const int64_t gate = b * call.HV + head;
  const int64_t row = (b * call.H + head / (call.HV / call.H)) * K;
  const T* q = static_cast<const T*>(call.q) + row;
  const T* k = static_cast<const T*>(call.k) + row;
  const T* v = static_cast<const T*>(call.v) + gate * call.V;
  T* o = static_cast<T*>(call.o) + gate * call.V;
  const float* alpha = static_cast<const float*>(call.alpha) + gate * K;
  const float beta = static_cast<const float*>(call.beta)[gate];
  float q_factor = static_cast<float>(call.scale);
  float k_factor = 1;
  if (call.l2norm) {
    q_factor /= std::sqrt(dot_rows(q, q, K) + static_cast<float>(kL2NormEps));
    k_factor /= std::sqrt(dot_rows(k, k, K) + static_cast<float>(kL2NormEps));
  }
  const float kq = q_factor * k_factor * dot_rows(k, q, K);
  const int64_t slot = call.slots != nullptr ? call.slots[b] : b;
  float* S = static_cast<float*>(call.S) + (slot * call.HV + head) * call.V * K;
  for (int64_t channel = 0; channel < call.V; ++channel, S += K) {
    // s = (diag(alpha) S)ᵀk and y = (diag(alpha) S)ᵀq in one pass
    Vf s_sum = hn::Zero(Df());
    Vf y_sum = s_sum;
    int64_t i = 0;
    for (; i + kLanes <= K; i += kLanes) {
      const Vf decayed = hn::Mul(load_floats(alpha + i), load_floats(S + i));
      s_sum = hn::MulAdd(decayed, load_floats(k + i), s_sum);
      y_sum = hn::MulAdd(decayed, load_floats(q + i), y_sum);
    }
    float s = sum(s_sum);
    float y = sum(y_sum);
    for (; i < K; ++i) {
      s += alpha[i] * S[i] * static_cast<float>(k[i]);
      y += alpha[i] * S[i] * static_cast<float>(q[i]);
    }
    // r = v - s;  o = scale (y + beta (k·q) r);  S <- diag(alpha) S + beta k r
    const float r = static_cast<float>(v[channel]) - k_factor * s;
    o[channel] = static_cast<T>(q_factor * y + beta * kq * r);
    const float write = beta * k_factor * r;
    i = 0;
    for (; i + kLanes <= K; i += kLanes) {
      const Vf decayed = hn::Mul(load_floats(alpha + i), load_floats(S + i));
      store_floats(hn::MulAdd(hn::Set(Df(), write), load_floats(k + i), decayed), S + i);
    }
    for (; i < K; ++i) {
      S[i] = alpha[i] * S[i] + write * static_cast<float>(k[i]);
    }
  }
}

void kimi_step_head(const KimiDeltaRuleStep& call, int64_t b, int64_t head) {
  if (call.dtype == DType::kFloat32) {
    kimi_step_rows<float>(call, b, head);
  } else {
    kimi_step_rows<BFloat16>(call, b, head);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace mdn::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mdn::kernels::cpu {

HWY_EXPORT(kimi_step_head);

void step(const KimiDeltaRuleStep& call) {
  check(call);
  MDN_CHECK(call.dtype == DType::kFloat32 || call.dtype == DType::kBFloat16,
            "kimi_delta_rule on the CPU: {} is not supported; float32 and bfloat16 are",
            name_of(call.dtype));
  check_slots("kimi_delta_rule", call.slots, call.B);
  const auto head = [&](int64_t index, int) {
    const int64_t b = index / call.HV;
    if (call.slots == nullptr || call.slots[b] >= 0) {
      HWY_DYNAMIC_DISPATCH(kimi_step_head)(call, b, index % call.HV);
    }
  };
  parallel_for(call.B * call.HV, head);
}

}  // namespace mdn::kernels::cpu
#endif  // HWY_ONCE

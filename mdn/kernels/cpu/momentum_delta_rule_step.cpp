// momentum_delta_rule, CPU backend: a single token, states in place. Rows of the states belong to
// one value channel each; S and M are read once and written once.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "mdn/kernels/cpu/momentum_delta_rule_step.cpp"
#ifndef HWY_DISABLED_TARGETS
// As in momentum_delta_rule_simd.cpp.
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#endif
#include <hwy/foreach_target.h>  // before highway.h
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "mdn/core/error.h"
#include "mdn/core/threads.h"
#include "mdn/kernels/cpu/momentum_delta_rule_plan.h"
#include "mdn/kernels/cpu/rows-inl.h"
#include "mdn/kernels/momentum_delta_rule.h"

HWY_BEFORE_NAMESPACE();
namespace mdn::kernels::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class T, bool kMomentum>
void step_rows(const MomentumDeltaRuleStep& call, int64_t b, int64_t head, int64_t row_begin,
               int64_t row_end) {
  const int64_t K = call.K;
  const int64_t slot = call.slots != nullptr ? call.slots[b] : b;
  const int64_t key_row = (b * call.H + head / (call.HV / call.H)) * K;
  const T* q = static_cast<const T*>(call.q) + key_row;
  const T* k = static_cast<const T*>(call.k) + key_row;
  const int64_t gate = b * call.HV + head;
  const T* v = static_cast<const T*>(call.v) + gate * call.V;
  T* o = static_cast<T*>(call.o) + gate * call.V;
  const float alpha = static_cast<const float*>(call.alpha)[gate];
  const float mu = kMomentum ? static_cast<const float*>(call.mu)[gate] : 0.0f;
  const float eta = static_cast<const float*>(call.eta)[gate];
  const float beta = static_cast<const float*>(call.beta)[gate];
  const float pi = call.pi != nullptr ? static_cast<const float*>(call.pi)[gate] : alpha;
  const float scale = static_cast<float>(call.scale);
  float q_factor = 1;
  float k_factor = 1;
  if (call.l2norm) {
    q_factor = 1.0f / std::sqrt(dot_rows(q, q, K) + static_cast<float>(kL2NormEps));
    k_factor = 1.0f / std::sqrt(dot_rows(k, k, K) + static_cast<float>(kL2NormEps));
  }
  const float kq = q_factor * k_factor * dot_rows(k, q, K);
  const int64_t state = (slot * call.HV + head) * call.V * K;
  for (int64_t row = row_begin; row < row_end; ++row) {
    float* S = static_cast<float*>(call.S) + state + row * K;
    float* M = kMomentum ? static_cast<float*>(call.M) + state + row * K : nullptr;
    // s = S k, y = S q, z = M q in one pass over the old states
    Vf s_sum = hn::Zero(Df()), y_sum = s_sum, z_sum = s_sum;
    int64_t i = 0;
    for (; i + kLanes <= K; i += kLanes) {
      const Vf S_i = load_floats(S + i);
      const Vf k_i = load_floats(k + i);
      const Vf q_i = load_floats(q + i);
      s_sum = hn::MulAdd(S_i, k_i, s_sum);
      y_sum = hn::MulAdd(S_i, q_i, y_sum);
      if constexpr (kMomentum) {
        z_sum = hn::MulAdd(load_floats(M + i), q_i, z_sum);
      }
    }
    float s = sum(s_sum);
    float y = sum(y_sum);
    float z = sum(z_sum);
    for (; i < K; ++i) {
      s += S[i] * static_cast<float>(k[i]);
      y += S[i] * static_cast<float>(q[i]);
      if constexpr (kMomentum) {
        z += M[i] * static_cast<float>(q[i]);
      }
    }
    s *= k_factor;
    y *= q_factor;
    z *= q_factor;
    // r = v - pi s;  o = scale (alpha y - beta (mu z - eta (k·q) r))
    const float r = static_cast<float>(v[row]) - pi * s;
    o[row] = static_cast<T>(scale * (alpha * y - beta * (mu * z - eta * kq * r)));
    // M <- mu M - eta k r;  S <- alpha S - beta M
    const float write = -eta * r * k_factor;
    i = 0;
    for (; i + kLanes <= K; i += kLanes) {
      Vf M_i = hn::Mul(hn::Set(Df(), write), load_floats(k + i));
      if constexpr (kMomentum) {
        M_i = hn::MulAdd(hn::Set(Df(), mu), load_floats(M + i), M_i);
        store_floats(M_i, M + i);
      }
      store_floats(hn::NegMulAdd(hn::Set(Df(), beta), M_i,
                                 hn::Mul(hn::Set(Df(), alpha), load_floats(S + i))),
                   S + i);
    }
    for (; i < K; ++i) {
      float M_i = write * static_cast<float>(k[i]);
      if constexpr (kMomentum) {
        M_i = mu * M[i] + M_i;
        M[i] = M_i;
      }
      S[i] = alpha * S[i] - beta * M_i;
    }
  }
}

void step_task(const MomentumDeltaRuleStep& call, int64_t b, int64_t head, int64_t row_begin,
               int64_t row_end) {
  const bool momentum = call.mu != nullptr;
  if (call.dtype == DType::kFloat32) {
    momentum ? step_rows<float, true>(call, b, head, row_begin, row_end)
             : step_rows<float, false>(call, b, head, row_begin, row_end);
  } else {
    momentum ? step_rows<BFloat16, true>(call, b, head, row_begin, row_end)
             : step_rows<BFloat16, false>(call, b, head, row_begin, row_end);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace mdn::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mdn::kernels::cpu {

HWY_EXPORT(step_task);

/// Bytes of state below which a step is not worth waking another thread.
constexpr int64_t kStepBytesPerTask = 128 * 1024;

void step(const MomentumDeltaRuleStep& call) {
  check(call);
  check_dtype(call.dtype);
  MDN_CHECK(call.state_dtype == DType::kFloat32,
            "momentum_delta_rule: the CPU backend has no float16 states; only CUDA has them, here "
            "they are float32");
  check_slots(call);
  // Rows of the state are independent.
  const int64_t heads = call.B * call.HV;
  const int64_t bytes = 2 * call.V * call.K * static_cast<int64_t>(sizeof(float));
  const int64_t useful = std::max<int64_t>(heads * bytes / kStepBytesPerTask, 1);
  const int64_t wanted = std::min<int64_t>(useful, 4 * num_threads());
  const int64_t tiles = std::clamp<int64_t>((wanted + heads - 1) / heads, 1, call.V);
  const auto task = [&](int64_t index, int) {
    const int64_t tile = index % tiles;
    const int64_t b = index / tiles / call.HV;
    const int64_t head = index / tiles % call.HV;
    if (call.slots == nullptr || call.slots[b] >= 0) {
      HWY_DYNAMIC_DISPATCH(step_task)
      (call, b, head, call.V * tile / tiles, call.V * (tile + 1) / tiles);
    }
  };
  if (useful == 1) {
    for (int64_t index = 0; index < heads * tiles; ++index) {
      task(index, 0);
    }
  } else {
    parallel_for(heads * tiles, task);
  }
}

}  // namespace mdn::kernels::cpu
#endif  // HWY_ONCE

#include "mdn/kernels/check.h"

#include <cmath>
#include <limits>

#include "mdn/core/error.h"

namespace mdn::kernels {

void check_positive(const char* op, const char* name, int64_t value) {
  MDN_CHECK(value >= 1, "{}: {} is {}; it must be at least 1", op, name, value);
}

void check_heads(const char* op, int64_t H, int64_t HV) {
  MDN_CHECK(HV % H == 0,
            "{}: {} value heads over {} query/key heads; the number of value "
            "heads must be a multiple of the number of query/key heads",
            op, HV, H);
}

void check_size(const char* op, const char* name, std::initializer_list<int64_t> sizes) {
  int64_t bytes = 8;  // the widest element
  for (int64_t size : sizes) {
    MDN_CHECK(size <= std::numeric_limits<int64_t>::max() / bytes,
              "{}: {} of the shape asked for passes 2^63 bytes", op, name);
    bytes *= size;
  }
}

void check_scale(const char* op, double scale) {
  MDN_CHECK(std::isfinite(scale), "{}: scale is {}; it must be finite", op, scale);
}

void check_given(const char* op, const char* name, const void* pointer) {
  MDN_CHECK(pointer != nullptr, "{}: {} is missing (a null pointer)", op, name);
}

void check_problem(const char* op, const MomentumDeltaRuleProblem& p) {
  check_positive(op, "B", p.B);
  check_positive(op, "T", p.T);
  check_positive(op, "H", p.H);
  check_positive(op, "HV", p.HV);
  check_positive(op, "K", p.K);
  check_positive(op, "V", p.V);
  check_positive(op, "N", p.N);
  check_heads(op, p.H, p.HV);
  check_scale(op, p.scale);
  if (p.cu_seqlens != nullptr) {
    MDN_CHECK(p.B == 1, "{}: packed sequences with B = {}; they need B = 1", op, p.B);
  } else {
    MDN_CHECK(p.N == p.B,
              "{}: N is {} and B is {}; without cu_seqlens every batch row is one "
              "sequence, so they must be equal",
              op, p.N, p.B);
  }
  check_size(op, "q", {p.B, p.T, p.H, p.K});
  check_size(op, "v", {p.B, p.T, p.HV, p.V});
  check_size(op, "S", {p.N, p.HV, p.V, p.K});
}

void check_step(const char* op, int64_t B, int64_t H, int64_t HV, int64_t K, int64_t V,
                double scale) {
  check_positive(op, "B", B);
  check_positive(op, "H", H);
  check_positive(op, "HV", HV);
  check_positive(op, "K", K);
  check_positive(op, "V", V);
  check_heads(op, H, HV);
  check_scale(op, scale);
  check_size(op, "S", {B, HV, V, K});
}

void check_cu_seqlens(const char* op, const MomentumDeltaRuleProblem& p) {
  if (p.cu_seqlens == nullptr) {
    return;
  }
  MDN_CHECK(p.cu_seqlens[0] == 0, "{}: cu_seqlens[0] is {}; it must be 0", op, p.cu_seqlens[0]);
  for (int64_t n = 0; n < p.N; ++n) {
    MDN_CHECK(p.cu_seqlens[n] <= p.cu_seqlens[n + 1],
              "{}: cu_seqlens[{}] = {} is above cu_seqlens[{}] = {}; the values "
              "must not decrease",
              op, n, p.cu_seqlens[n], n + 1, p.cu_seqlens[n + 1]);
  }
  MDN_CHECK(p.cu_seqlens[p.N] == p.T,
            "{}: cu_seqlens[{}] = {} but there are {} tokens; the last value must "
            "be their number",
            op, p.N, p.cu_seqlens[p.N], p.T);
}

void check_slots(const char* op, const int64_t* slots, int64_t B) {
  if (slots == nullptr) {
    return;
  }
  for (int64_t b = 1; b < B; ++b) {
    bool twice = false;
    for (int64_t other = 0; other < b; ++other) {
      twice |= slots[other] == slots[b];
    }
    MDN_CHECK(!twice || slots[b] < 0,
              "{}: slot {} is given to two sequences of one step (the second is "
              "sequence {}); every sequence needs its own",
              op, slots[b], b);
  }
}

}  // namespace mdn::kernels

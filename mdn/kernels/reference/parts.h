// What the reference backends share: sequences, states, rows, normalisation, all in float64.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "mdn/kernels/momentum_delta_rule.h"

namespace mdn::kernels::reference {

/// Tokens of one sequence, counted through the whole of [B, T].
struct Sequence {
  int64_t begin = 0;
  int64_t length = 0;
};

inline Sequence sequence(const MomentumDeltaRuleProblem& p, int64_t n) {
  if (p.cu_seqlens != nullptr) {
    return {p.cu_seqlens[n], p.cu_seqlens[n + 1] - p.cu_seqlens[n]};
  }
  return {n * p.T, p.T};
}

/// Tokens of a run: about the square root of the length, so that runs and the tokens of one run
/// are equally many.
inline int64_t run_length(int64_t tokens) {
  return static_cast<int64_t>(std::ceil(std::sqrt(static_cast<double>(tokens))));
}

/// Hands out pieces of the caller's workspace.
class Workspace {
 public:
  explicit Workspace(void* memory) : next_(static_cast<double*>(memory)) {}
  double* take(int64_t count) {
    double* piece = next_;
    next_ += count;
    return piece;
  }

 private:
  double* next_;
};

inline const double* as_double(const void* pointer) {
  return static_cast<const double*>(pointer);
}
inline double* as_double(void* pointer) {
  return static_cast<double*>(pointer);
}

inline double dot(const double* x, const double* y, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    sum += x[i] * y[i];
  }
  return sum;
}

/// The factor of x̂ = factor x = x / sqrt(Σ x² + eps).
inline double norm_factor(const double* x, int64_t count) {
  return 1 / std::sqrt(dot(x, x, count) + kL2NormEps);
}

/// dx += factor (dx̂ - x̂ (x̂·dx̂)) where x̂ is normalised, dx += dx̂ where it is x itself.
inline void add_row_gradient(const double* x, double factor, bool normalised, const double* d_unit,
                             int64_t count, double* d_x) {
  const double along = normalised ? factor * dot(x, d_unit, count) : 0.0;
  for (int64_t i = 0; i < count; ++i) {
    d_x[i] += factor * (d_unit[i] - factor * x[i] * along);
  }
}

/// Copies one state, or zeros where none is given.
inline void read_state(const void* from, int64_t index, int64_t count, double* to) {
  if (from != nullptr) {
    std::copy_n(as_double(from) + index * count, count, to);
  } else {
    std::fill_n(to, count, 0.0);
  }
}

inline void write_state(const double* from, int64_t index, int64_t count, void* to) {
  if (to != nullptr) {
    std::copy_n(from, count, as_double(to) + index * count);
  }
}

}  // namespace mdn::kernels::reference

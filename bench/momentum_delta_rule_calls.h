// Calls of momentum_delta_rule on the CPU with their memory, and the count of their products.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "mdn/core/dtype.h"
#include "mdn/kernels/momentum_delta_rule.h"
#include "tests/support/momentum_delta_rule_cases.h"

namespace mdn::bench {

/// Chunk length of the counts of products, so that figures of all backends compare.
inline constexpr double kCountedChunk = 64;

/// Products of the operator, a multiply-add being two: forward 4 C² K + 4 C² V + 12 C K V a chunk,
/// backward (states rebuilt) 10 C² K + 10 C² V + 32 C K V; without momentum half of the last terms.
inline double forward_flops(const kernels::MomentumDeltaRuleProblem& p) {
  const double K = static_cast<double>(p.K), V = static_cast<double>(p.V);
  const double heads = static_cast<double>(p.B * p.T * p.HV);
  return heads * (4 * kCountedChunk * (K + V) + (p.momentum ? 12 : 6) * K * V);
}

inline double backward_flops(const kernels::MomentumDeltaRuleProblem& p) {
  const double K = static_cast<double>(p.K), V = static_cast<double>(p.V);
  const double heads = static_cast<double>(p.B * p.T * p.HV);
  return heads * (10 * kCountedChunk * (K + V) + (p.momentum ? 32 : 16) * K * V);
}

/// 64-byte aligned memory with an owner.
class Memory {
 public:
  explicit Memory(size_t bytes)
      : data_(std::aligned_alloc(64, (bytes + 63) / 64 * 64 + 64), &std::free) {
    std::memset(data_.get(), 0, bytes);
  }
  explicit Memory(const std::vector<double>& values, DType dtype)
      : Memory(values.size() * size_of(dtype)) {
    for (size_t i = 0; i < values.size(); ++i) {
      if (dtype == DType::kFloat32) {
        static_cast<float*>(data_.get())[i] = static_cast<float>(values[i]);
      } else {
        static_cast<BFloat16*>(data_.get())[i] = BFloat16(static_cast<float>(values[i]));
      }
    }
  }
  void* get() const { return data_.get(); }

 private:
  std::unique_ptr<void, decltype(&std::free)> data_;
};

/// Tensors of a case and its calls, ready to be made again and again.
class Calls {
 public:
  Calls(const test::MomentumDeltaRuleCase& c, DType dtype) {
    const test::MomentumDeltaRuleData data(c, dtype);
    const kernels::MomentumDeltaRuleProblem p = data.problem(dtype);
    const auto rows = [&](const std::vector<double>& x) { return keep(Memory(x, dtype)); };
    const auto gate = [&](const std::vector<double>& x) {
      return keep(Memory(x, DType::kFloat32));
    };
    const size_t q_bytes = data.q.size() * size_of(dtype);
    const size_t v_bytes = data.v.size() * size_of(dtype);
    const size_t gate_bytes = data.alpha.size() * sizeof(float);
    const auto fresh = [&](size_t bytes) { return keep(Memory(bytes)); };
    sizes = kernels::cpu::sizes(p);
    forward.problem = p;
    forward.inputs = {rows(data.q),  rows(data.k),   rows(data.v),    gate(data.alpha),
                      gate(data.mu), gate(data.eta), gate(data.beta), nullptr,
                      nullptr,       nullptr};
    forward.o = fresh(v_bytes);
    forward.saved = sizes.saved > 0 ? fresh(sizes.saved) : nullptr;
    forward.workspace = fresh(sizes.forward_workspace);
    backward.problem = p;
    backward.inputs = forward.inputs;
    backward.saved = forward.saved;
    backward.d_o = rows(data.d_o);
    backward.d_q = fresh(q_bytes);
    backward.d_k = fresh(q_bytes);
    backward.d_v = fresh(v_bytes);
    for (void** d_gate : {&backward.d_alpha, &backward.d_mu, &backward.d_eta, &backward.d_beta}) {
      *d_gate = fresh(gate_bytes);
    }
    backward.workspace = fresh(sizes.backward_workspace);
  }
  kernels::MomentumDeltaRuleSizes sizes;
  kernels::MomentumDeltaRuleForward forward;
  kernels::MomentumDeltaRuleBackward backward;

 private:
  void* keep(Memory memory) {
    kept_.push_back(std::move(memory));
    return kept_.back().get();
  }
  std::vector<Memory> kept_;
};

}  // namespace mdn::bench

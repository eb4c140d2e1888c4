// libtorch set to algorithms that give the same bits in every run, for as long as an object lives.
#pragma once

#include <ATen/Context.h>

namespace mdn::ops {

/// For a call or two whose kernels read the choice. Set for a whole program, libtorch would fill
/// what at::empty gives, have cuBLAS ask for an environment variable and refuse operations.
class DeterministicScope {
 public:
  DeterministicScope() {
    context_.setDeterministicAlgorithms(true, false);
    context_.setDeterministicFillUninitializedMemory(false);
  }
  ~DeterministicScope() {
    context_.setDeterministicFillUninitializedMemory(fills_);
    context_.setDeterministicAlgorithms(on_, warns_);
  }
  DeterministicScope(const DeterministicScope&) = delete;
  DeterministicScope& operator=(const DeterministicScope&) = delete;

 private:
  at::Context& context_ = at::globalContext();
  const bool on_ = context_.deterministicAlgorithms();
  const bool warns_ = context_.deterministicAlgorithmsWarnOnly();
  const bool fills_ = context_.deterministicFillUninitializedMemory();
};

}  // namespace mdn::ops

// Runs the CUDA backend on a case: copies to the device and back, like the runners of the other
// backends in momentum_delta_rule_cases.h.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>
#include <vector>

#include "tests/support/momentum_delta_rule_cases.h"

namespace mdn::test {

/// Empty where there is a CUDA device, else why not: what a test gives as its reason to skip.
std::string no_cuda_device();

/// Device memory with a guard behind it. Starts as NaN (all bits set in each type).
class DeviceBuffer {
 public:
  explicit DeviceBuffer(size_t bytes);
  DeviceBuffer(const std::vector<double>& values, DType dtype);
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  ~DeviceBuffer();

  /// Null when empty: an input that is not given, an output of no elements.
  template <typename T = void>
  T* get() const {
    return bytes_ > 0 ? static_cast<T*>(data_) : nullptr;
  }
  size_t bytes() const { return bytes_; }
  std::vector<double> values(DType dtype) const;
  std::vector<unsigned char> contents() const;
  void fill(int byte);
  /// Throws when a byte of the guard has changed.
  void check_guard(const char* name) const;

 private:
  size_t bytes_;
  void* data_ = nullptr;
};

/// Forward and backward pass with everything the data asks for, as run_cpu does.
Results run_cuda(const MomentumDeltaRuleData& data, DType dtype);

/// The tokens of the data one by one through `step`: o, final_S, final_M. The data must have
/// initial states and no packed sequences.
Results run_cuda_steps(const MomentumDeltaRuleData& data, DType dtype, DType state_dtype);

}  // namespace mdn::test

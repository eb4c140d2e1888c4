// How the tokens of a batch divide into sequences.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

namespace mdn::layers {

/// Either each row of [B, T] is a sequence (the default), or B = 1 and several sequences lie packed
/// along T, bounded by `cu_seqlens` [N + 1] int64 on the CPU. Nothing of one sequence reaches
/// another: not state, not convolution, not attention, and positions start at 0 in each.
class Sequences {
 public:
  Sequences() = default;
  explicit Sequences(at::Tensor cu_seqlens);

  bool packed() const { return cu_seqlens_.has_value(); }
  const std::optional<at::Tensor>& cu_seqlens() const { return cu_seqlens_; }

  /// Boundaries as numbers: 0, ..., T. Empty unless packed.
  const std::vector<int64_t>& bounds() const { return bounds_; }

  /// Position of each token in its sequence: [T] int64.
  at::Tensor positions(int64_t T, c10::Device device) const;

 private:
  std::optional<at::Tensor> cu_seqlens_;
  std::vector<int64_t> bounds_;
};

}  // namespace mdn::layers

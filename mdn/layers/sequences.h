// How the tokens of a batch divide into sequences.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
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

  /// Tokens of the longest sequence. 0 unless packed.
  int64_t longest() const;

  /// The boundaries as [N + 1] int32 on a device, copied there once. Only packed.
  at::Tensor bounds_on(c10::Device device) const;

  /// Position of each token in its sequence: [T] int64. Of packed sequences made once.
  at::Tensor positions(int64_t T, c10::Device device) const;

  /// x [1, T, C] -> [N, count, C]: each sequence's last `count` rows, oldest first, zeros before
  /// its start. Only packed.
  at::Tensor last_rows(const at::Tensor& x, int64_t count) const;

  /// Throws where packed sequences meet a state that was carried here: they start afresh, and a
  /// fresh state becomes that of all of them, [N, ...].
  void check_start(const char* layer, bool carried) const;

 private:
  struct OnDevice;
  OnDevice& on(c10::Device device) const;

  std::optional<at::Tensor> cu_seqlens_;
  std::vector<int64_t> bounds_;
  std::shared_ptr<OnDevice> on_device_;  // shared by copies: each layer of a step reads it
};

}  // namespace mdn::layers

// embedding with its gradient: ATen's operations, summed in one order on every device.
#pragma once

#include <ATen/core/Tensor.h>

namespace mdn::ops {

/// Row ids[b, t] of weight for every token: weight [vocab, D] of any float dtype, ids [B, T] int64
/// in [0, vocab) -> [B, T, D] of weight's dtype. The row of padding_id, -1 for none, gets no
/// gradient. The gradient's sums over tokens have one order, so the same call gives the same bits.
at::Tensor embedding(const at::Tensor& weight, const at::Tensor& ids, int64_t padding_id);

}  // namespace mdn::ops

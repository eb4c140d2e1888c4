// Matrix products of the fused blocks, and the packed weights that they read.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace mdn::ops {

/// a b in float32 where `type` is float32 and the operands are of 16 bits (nothing is rounded in
/// between), else in the operands' type and then converted.
at::Tensor product(const at::Tensor& a, const at::Tensor& b, at::ScalarType type);

/// Rows of packed weights are filled up to a multiple of it: keeps rows of the products aligned.
inline constexpr int64_t kRowMultiple = 64;

/// The rows of several [rows, D] weights under each other, converted to `type`, in one copy; then
/// rows of zeros up to a multiple of `multiple`.
at::Tensor pack_rows(const std::vector<at::Tensor>& weights, at::ScalarType type,
                     int64_t multiple = 1);

/// The gradient of each weight of pack_rows from that of the pack, as views where the types agree.
std::vector<at::Tensor> unpack_rows(const at::Tensor& d_pack,
                                    const std::vector<at::Tensor>& weights);

}  // namespace mdn::ops

#include "mdn/ops/gemm.h"

#include <ATen/ATen.h>

namespace mdn::ops {

at::Tensor product(const at::Tensor& a, const at::Tensor& b, at::ScalarType type) {
  if (a.scalar_type() == type) {
    return at::mm(a, b);
  }
  return type == at::kFloat ? at::mm(a, b, at::kFloat) : at::mm(a, b).to(type);
}

at::Tensor pack_rows(const std::vector<at::Tensor>& weights, at::ScalarType type,
                     int64_t multiple) {
  int64_t used = 0;
  for (const at::Tensor& w : weights) {
    used += w.size(0);
  }
  const int64_t rows = (used + multiple - 1) / multiple * multiple;
  if (weights.size() == 1 && rows == used) {
    return weights[0].to(type).contiguous();
  }
  const at::Tensor pack = at::empty({rows, weights[0].size(1)}, weights[0].options().dtype(type));
  std::vector<at::Tensor> parts;
  int64_t row = 0;
  for (const at::Tensor& w : weights) {
    parts.push_back(pack.narrow(0, row, w.size(0)));
    row += w.size(0);
  }
  at::_foreach_copy_(parts, weights);
  if (rows > used) {
    pack.narrow(0, used, rows - used).zero_();
  }
  return pack;
}

std::vector<at::Tensor> unpack_rows(const at::Tensor& d_pack,
                                    const std::vector<at::Tensor>& weights) {
  std::vector<at::Tensor> parts;
  int64_t row = 0;
  for (const at::Tensor& w : weights) {
    parts.push_back(d_pack.narrow(0, row, w.size(0)).to(w.scalar_type()));
    row += w.size(0);
  }
  return parts;
}

}  // namespace mdn::ops

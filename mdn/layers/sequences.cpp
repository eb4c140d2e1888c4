#include "mdn/layers/sequences.h"

#include <ATen/ATen.h>

#include "mdn/core/error.h"

namespace mdn::layers {

Sequences::Sequences(at::Tensor cu_seqlens) {
  MDN_CHECK(cu_seqlens.dim() == 1 && cu_seqlens.scalar_type() == at::kLong && cu_seqlens.is_cpu() &&
                cu_seqlens.numel() >= 2,
            "cu_seqlens must be [sequences + 1] int64 on the CPU");
  cu_seqlens_ = cu_seqlens.contiguous();
  const int64_t* cu = cu_seqlens_->const_data_ptr<int64_t>();
  bounds_.assign(cu, cu + cu_seqlens_->numel());
}

at::Tensor Sequences::positions(int64_t T, c10::Device device) const {
  at::Tensor positions = at::arange(T, at::kLong);
  int64_t* p = positions.mutable_data_ptr<int64_t>();
  for (size_t n = 0; n + 1 < bounds_.size(); ++n) {
    for (int64_t t = bounds_[n]; t < bounds_[n + 1]; ++t) {
      p[t] = t - bounds_[n];
    }
  }
  return positions.to(device);
}

}  // namespace mdn::layers

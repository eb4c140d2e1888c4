#include "mdn/layers/sequences.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <mutex>

#include "mdn/core/error.h"
#include "mdn/ops/tensor.h"

namespace mdn::layers {

/// What layers read of packed sequences, on the device that asked last: made once a step and not
/// once a layer.
struct Sequences::OnDevice {
  std::mutex mutex;
  at::Tensor positions;  // [T] int64
  at::Tensor bounds;     // [N + 1] int32
  at::Tensor last;       // [N, count] int64: each sequence's last rows, -1 before its start
};

Sequences::Sequences(at::Tensor cu_seqlens) {
  MDN_CHECK(cu_seqlens.dim() == 1 && cu_seqlens.scalar_type() == at::kLong && cu_seqlens.is_cpu() &&
                cu_seqlens.numel() >= 2,
            "cu_seqlens must be [sequences + 1] int64 on the CPU");
  cu_seqlens_ = cu_seqlens.contiguous();
  const int64_t* cu = cu_seqlens_->const_data_ptr<int64_t>();
  bounds_.assign(cu, cu + cu_seqlens_->numel());
  on_device_ = std::make_shared<OnDevice>();
}

int64_t Sequences::longest() const {
  int64_t longest = 0;
  for (size_t n = 0; n + 1 < bounds_.size(); ++n) {
    longest = std::max(longest, bounds_[n + 1] - bounds_[n]);
  }
  return longest;
}

Sequences::OnDevice& Sequences::on(c10::Device device) const {
  OnDevice& made = *on_device_;
  const std::scoped_lock lock(made.mutex);
  if (!made.positions.defined() || made.positions.device() != device) {
    at::Tensor positions = at::empty({bounds_.back()}, at::kLong);
    int64_t* p = positions.mutable_data_ptr<int64_t>();
    for (size_t n = 0; n + 1 < bounds_.size(); ++n) {
      for (int64_t t = bounds_[n]; t < bounds_[n + 1]; ++t) {
        p[t] = t - bounds_[n];
      }
    }
    made.positions = ops::to_device(positions, device);
    made.bounds = ops::to_device(cu_seqlens_->to(at::kInt), device);
    made.last = at::Tensor();
  }
  return made;
}

at::Tensor Sequences::bounds_on(c10::Device device) const {
  return on(device).bounds;
}

at::Tensor Sequences::positions(int64_t T, c10::Device device) const {
  if (!packed()) {
    return at::arange(T, at::TensorOptions(at::kLong).device(device));
  }
  MDN_CHECK(bounds_.front() == 0 && bounds_.back() == T && std::ranges::is_sorted(bounds_),
            "cu_seqlens runs from {} to {}; it must rise from 0 to {}", bounds_.front(),
            bounds_.back(), T);
  return on(device).positions;
}

at::Tensor Sequences::last_rows(const at::Tensor& x, int64_t count) const {
  OnDevice& made = on(x.device());
  const std::scoped_lock lock(made.mutex);
  at::Tensor& last = made.last;
  const auto N = static_cast<int64_t>(bounds_.size()) - 1;
  if (!last.defined() || last.size(1) != count) {
    at::Tensor rows = at::empty({N, count}, at::kLong);
    int64_t* r = rows.mutable_data_ptr<int64_t>();
    for (size_t n = 0; n + 1 < bounds_.size(); ++n) {
      for (int64_t row = bounds_[n + 1] - count; row < bounds_[n + 1]; ++row) {
        *r++ = row < bounds_[n] ? -1 : row;
      }
    }
    last = ops::to_device(rows, x.device());
  }
  return x[0]
      .index_select(0, last.clamp_min(0).flatten())
      .view({N, count, x.size(2)})
      .masked_fill_((last < 0).unsqueeze(2), 0);
}

void Sequences::check_start(const char* layer, bool carried) const {
  MDN_CHECK(!packed() || !carried, "{}: a carried state with packed sequences is not supported",
            layer);
}

}  // namespace mdn::layers

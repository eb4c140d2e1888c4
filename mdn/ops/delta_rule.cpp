#include "mdn/ops/delta_rule.h"

#include <cmath>

namespace mdn::ops {
namespace {

void check_heads(const char* op, const HeadSizes& sizes) {
  MDN_CHECK(sizes.H >= 1 && sizes.HV >= 1 && sizes.HV % sizes.H == 0,
            "{}: v has {} heads, which must be a multiple of q's {}", op, sizes.HV, sizes.H);
}

}  // namespace

HeadSizes sizes_of_sequences(const char* op, const at::Tensor& q, const at::Tensor& v) {
  MDN_CHECK(q.dim() == 4, "{}: q must be [B, T, H, K], got {}", op, shape_text(q));
  MDN_CHECK(v.dim() == 4, "{}: v must be [B, T, HV, V], got {}", op, shape_text(v));
  const HeadSizes sizes{.B = q.size(0),
                        .T = q.size(1),
                        .H = q.size(2),
                        .K = q.size(3),
                        .HV = v.size(2),
                        .V = v.size(3)};
  MDN_CHECK(sizes.T >= 1 && sizes.B >= 1, "{}: q is {}; B and T must be at least 1", op,
            shape_text(q));
  MDN_CHECK(sizes.K >= 1 && sizes.V >= 1, "{}: q is {} and v is {}; K and V must be at least 1", op,
            shape_text(q), shape_text(v));
  check_heads(op, sizes);
  return sizes;
}

HeadSizes sizes_of_step(const char* op, const at::Tensor& q, const at::Tensor& v) {
  MDN_CHECK(q.dim() == 3, "{}: q must be [B, H, K], got {}", op, shape_text(q));
  MDN_CHECK(v.dim() == 3, "{}: v must be [B, HV, V], got {}", op, shape_text(v));
  const HeadSizes sizes{
      .B = q.size(0), .T = 1, .H = q.size(1), .K = q.size(2), .HV = v.size(1), .V = v.size(2)};
  check_heads(op, sizes);
  return sizes;
}

std::optional<at::Tensor> check_slots(const char* op, const std::optional<at::Tensor>& slots,
                                      const at::Tensor& S, int64_t B) {
  MDN_CHECK(slots || S.size(0) >= B, "{}: {} sequences but only {} slots", op, B, S.size(0));
  const std::optional<at::Tensor> dense = contiguous(slots);
  if (dense && dense->is_cpu()) {
    const int64_t* slot = dense->const_data_ptr<int64_t>();
    for (int64_t b = 0; b < B; ++b) {
      MDN_CHECK(slot[b] < S.size(0), "{}: slots[{}] is {}; there are {} slots", op, b, slot[b],
                S.size(0));
    }
  }
  return dense;
}

double scale_of(std::optional<double> scale, int64_t K) {
  return scale.value_or(1.0 / std::sqrt(static_cast<double>(K)));
}

}  // namespace mdn::ops

#include "mdn/ops/unit_lower_inverse.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "mdn/kernels/unit_lower_inverse.h"
#include "mdn/ops/tensor.h"

namespace mdn::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::Tensor inverse_of(const at::Tensor& L) {
  const int64_t n = L.size(1);
  if (L.is_cuda() && L.scalar_type() == at::kFloat && n == kernels::cuda::kUnitLowerRows) {
    at::Tensor T = at::empty_like(L);
    const DeviceScope device(L);
    kernels::cuda::unit_lower_inverse(
        {.matrices = L.size(0), .L = floats(L), .T = T.mutable_data_ptr<float>()}, device.stream());
    return T;
  }
  const at::Tensor I = at::eye(n, L.options()).expand(L.sizes());
  return at::linalg_solve_triangular(L, I, false, true, true);
}

class UnitLowerInverse : public torch::autograd::Function<UnitLowerInverse> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& L) {
    at::Tensor T = inverse_of(L.contiguous());
    ctx->save_for_backward({T});
    return T;
  }

  // dL = -slt(Tᵀ dT Tᵀ)
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    check_first_order("unit_lower_inverse");
    const at::Tensor transposed = ctx->get_saved_variables()[0].mT();
    return {at::bmm(at::bmm(transposed, grads[0]), transposed).tril(-1).neg_()};
  }
};

}  // namespace

at::Tensor unit_lower_inverse(const at::Tensor& L) {
  MDN_CHECK(L.dim() == 3 && L.size(1) == L.size(2),
            "unit_lower_inverse: L must be [matrices, n, n], got {}", shape_text(L));
  return UnitLowerInverse::apply(L);
}

}  // namespace mdn::ops

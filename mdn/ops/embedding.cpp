#include "mdn/ops/embedding.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "mdn/ops/deterministic_scope.h"
#include "mdn/ops/tensor.h"

namespace mdn::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// libtorch's gradient on a GPU adds float32 rows of some thousand ids atomically, unless it is set
// to deterministic algorithms where the gradient is made.
class EmbeddingInOneOrder : public torch::autograd::Function<EmbeddingInOneOrder> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& weight, const at::Tensor& ids,
                            int64_t padding_id) {
    ctx->save_for_backward({ids});
    ctx->saved_data["vocab"] = weight.size(0);
    ctx->saved_data["padding_id"] = padding_id;
    return at::embedding(weight, ids);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    check_first_order("embedding");
    const DeterministicScope scope;
    const at::Tensor d_weight = at::embedding_dense_backward(
        grads[0], ctx->get_saved_variables()[0], ctx->saved_data["vocab"].toInt(),
        ctx->saved_data["padding_id"].toInt(), false);
    return {d_weight, at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor embedding(const at::Tensor& weight, const at::Tensor& ids, int64_t padding_id) {
  return weight.is_cuda() ? EmbeddingInOneOrder::apply(weight, ids, padding_id)
                          : at::embedding(weight, ids, padding_id);
}

}  // namespace mdn::ops

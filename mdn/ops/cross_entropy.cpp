#include "mdn/ops/cross_entropy.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "mdn/kernels/cross_entropy.h"
#include "mdn/ops/gemm.h"
#include "mdn/ops/tensor.h"

namespace mdn::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Logits that exist at a time, in bytes: enough rows for full-rate matrix products, little beside
// the activations of a model that needs chunks.
constexpr int64_t kChunkBytes = int64_t{448} << 20;

class FusedCrossEntropy : public torch::autograd::Function<FusedCrossEntropy> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& hidden_in,
                            const at::Tensor& weight, const at::Tensor& targets_in,
                            bool recording) {
    const at::Tensor hidden = hidden_in.reshape({-1, hidden_in.size(-1)}).contiguous();
    const at::Tensor targets = targets_in.reshape({-1}).contiguous();
    const bool d_hidden_wanted = recording && hidden_in.requires_grad();
    const bool d_weight_wanted = recording && weight.requires_grad();
    const bool backward_wanted = d_hidden_wanted || d_weight_wanted;
    const int64_t N = hidden.size(0), D = hidden.size(1), vocab = weight.size(0);
    const at::ScalarType type = hidden.scalar_type();
    const at::Tensor pack = pack_rows({weight.detach()}, type, kRowMultiple);
    const int64_t stride = pack.size(0);
    const at::Tensor count = targets.ne(-100).sum().to(at::kFloat);
    const at::Tensor scale = count.reciprocal();
    const at::Tensor losses = at::empty({N}, count.options());
    at::Tensor d_hidden, d_pack;
    if (d_hidden_wanted) {
      d_hidden = at::empty_like(hidden);
    }
    // Sums over chunks are kept in float32.
    if (d_weight_wanted) {
      d_pack = at::empty({stride, D}, losses.options());
    }
    const int64_t of_row = stride * static_cast<int64_t>(hidden.element_size());
    const int64_t rows = std::min(std::max<int64_t>(kChunkBytes / of_row / 128 * 128, 128), N);
    const DeviceScope device(hidden);
    const at::Tensor buffer = at::empty({rows, stride}, hidden.options());
    for (int64_t from = 0; from < N; from += rows) {
      const int64_t n = std::min(rows, N - from);
      at::Tensor logits = buffer.narrow(0, 0, n);
      const at::Tensor h = hidden.narrow(0, from, n);
      at::mm_out(logits, h, pack.t());
      kernels::cuda::cross_entropy({.rows = n,
                                    .vocab = vocab,
                                    .stride = stride,
                                    .dtype = dtype_of("linear_cross_entropy", type),
                                    .logits = logits.data_ptr(),
                                    .targets = targets.const_data_ptr<int64_t>() + from,
                                    .losses = losses.mutable_data_ptr<float>() + from,
                                    .gradient = backward_wanted},
                                   device.stream());
      if (d_hidden_wanted) {
        at::Tensor part = d_hidden.narrow(0, from, n);
        at::mm_out(part, logits, pack);
      }
      if (d_weight_wanted) {
        const int beta = from == 0 ? 0 : 1;
        if (type == at::kFloat) {
          at::addmm_out(d_pack, d_pack, logits.t(), h, beta, 1);
        } else {
          at::addmm_out(d_pack, d_pack, logits.t(), h, at::kFloat, beta, 1);
        }
      }
    }
    if (backward_wanted) {
      ctx->save_for_backward({d_hidden, d_pack, weight, scale});
      ctx->saved_data["shape"] = hidden_in.sizes();
    }
    return losses.sum() * scale;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    check_first_order("linear_cross_entropy");
    const auto saved = ctx->get_saved_variables();
    // Until here they are those of the sum: in float16 a mean's would vanish.
    const at::Tensor factor = grads[0] * saved[3];
    at::Tensor d_hidden = saved[0], d_weight;
    if (d_hidden.defined()) {
      d_hidden = (d_hidden * factor)
                     .to(d_hidden.scalar_type())
                     .view(ctx->saved_data["shape"].toIntVector());
    }
    if (saved[1].defined()) {
      d_weight = unpack_rows(saved[1] * factor, {saved[2]})[0];
    }
    return {d_hidden, d_weight, at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor linear_cross_entropy(const at::Tensor& hidden, const at::Tensor& weight,
                                const at::Tensor& targets) {
  constexpr const char* kOp = "linear_cross_entropy";
  MDN_CHECK(hidden.dim() >= 1 && hidden.numel() > 0, "{}: hidden is {}; it must be [..., D]", kOp,
            shape_text(hidden));
  MDN_CHECK(weight.dim() == 2, "{}: weight must be [vocab, D], got {}", kOp, shape_text(weight));
  const TensorCheck check{kOp, hidden.device()};
  check(weight, "weight", {weight.size(0), hidden.size(-1)}, weight.scalar_type());
  check(targets, "targets", hidden.sizes().slice(0, hidden.dim() - 1), at::kLong);
  if (use_cuda_kernel(hidden) && hidden.size(-1) % 8 == 0) {
    return FusedCrossEntropy::apply(hidden, weight, targets, at::GradMode::is_enabled());
  }
  const at::Tensor logits = at::linear(hidden, weight.to(hidden.scalar_type()));
  const auto type = logits.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return at::cross_entropy_loss(logits.to(type).view({-1, weight.size(0)}), targets.reshape({-1}),
                                std::nullopt, at::Reduction::Mean, -100);
}

}  // namespace mdn::ops

#include "mdn/ops/residual_mixer.h"

#include <ATen/ATen.h>
#include <ATen/core/ivalue.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <numeric>

#include "mdn/kernels/rms_norm.h"
#include "mdn/ops/gemm.h"
#include "mdn/ops/residual.h"
#include "mdn/ops/rms_norm.h"
#include "mdn/ops/tensor.h"

namespace mdn::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kOp = "residual_mixer";

// The block as the node keeps it from the forward to the backward pass.
struct Kept : torch::CustomClassHolder {
  explicit Kept(ResidualMixer b) : block(std::move(b)) {}
  ResidualMixer block;
};

// What the backward pass reads.
enum Saved { kX, kProjected, kPackIn, kPackOut };

// The projections as columns of their product [B T, all rows].
variable_list columns_of(const at::Tensor& projected, const ResidualMixer& block, int64_t B,
                         int64_t T) {
  variable_list columns;
  int64_t first = 0;
  for (const int64_t size : block.columns) {
    columns.push_back(projected.narrow(1, first, size).unflatten(0, {B, T}));
    first += size;
  }
  return columns;
}

// Copies into d_projected those of its columns that are not there yet.
void gather(const variable_list& d_columns, const at::Tensor& d_projected) {
  int64_t first = 0;
  for (const at::Tensor& d : d_columns) {
    const int64_t rows = d.size(2);
    if (!d.is_alias_of(d_projected)) {
      d_projected.narrow(1, first, rows).copy_(d.flatten(0, 1));
    }
    first += rows;
  }
  // The padding meets weights of zero in the products, where a NaN would still spread.
  d_projected.narrow(1, first, d_projected.size(1) - first).zero_();
}

bool fused_norm(const at::Tensor& x, const ResidualMixer& block) {
  return use_cuda_kernel(x) &&
         kernels::cuda::rms_norm_unsupported(dtype_of(kOp, block.type), x.size(2)).empty();
}

at::Tensor float_norm(const ResidualMixer& block) {
  return block.norm.detach().to(at::kFloat).contiguous();
}

// The norm of x [B, T, D] as rows.
at::Tensor normed_rows(const at::Tensor& x, const ResidualMixer& block) {
  return fused_norm(x, block) ? rms_norm_rows(x, float_norm(block), block.eps, block.type)
                              : rms_norm(x, block.norm, block.eps).to(block.type).flatten(0, 1);
}

// The norm's result again, and the gradients of x in x + f(norm) and of the norm's weight.
NormGradient norm_backward(const at::Tensor& x, const ResidualMixer& block, const at::Tensor& d_n,
                           const at::Tensor& d_out) {
  if (fused_norm(x, block)) {
    return rms_norm_rows_backward(x, float_norm(block), block.eps, d_n, d_out);
  }
  const at::AutoGradMode recording(true);
  const at::Tensor leaf = x.detach().requires_grad_(), norm = block.norm.detach().requires_grad_();
  const at::Tensor n = rms_norm(leaf, norm, block.eps).to(block.type).flatten(0, 1);
  const auto d = torch::autograd::grad({n}, {leaf, norm}, {d_n});
  return {d_out + d[0].flatten(0, 1), n.detach(), d[1]};
}

class Node : public torch::autograd::Function<Node> {
 public:
  // `weights` are the block's, for autograd: norm, in, between, out.
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x_in,
                            at::TensorList /*weights*/, const ResidualMixer& block) {
    const at::Tensor x = x_in.contiguous();
    const int64_t B = x.size(0), T = x.size(1);
    const at::Tensor pack_in = pack_rows(block.in, block.type, kRowMultiple);
    const at::Tensor pack_out = pack_rows({block.out}, block.type);
    const at::Tensor projected = at::mm(normed_rows(x, block), pack_in.t());
    const at::Tensor mixed = block.mix(columns_of(projected, block, B, T));
    const at::Tensor out = at::mm(mixed.flatten(0, 1), pack_out.t()).view(x.sizes());
    ctx->save_for_backward({x, projected, pack_in, pack_out});
    ctx->saved_data["block"] = c10::IValue::make_capsule(c10::make_intrusive<Kept>(block));
    return x + out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    check_first_order(kOp);
    const auto saved = ctx->get_saved_variables();
    const auto kept = ctx->saved_data["block"].toCapsule();
    const ResidualMixer& block = static_cast<const Kept&>(*kept).block;
    const at::Tensor &x = saved[kX], &projected = saved[kProjected];
    const at::Tensor d_out = grads[0].contiguous().flatten(0, 1);
    const at::Tensor d_product = d_out.to(block.type);

    // mix once more, recorded, for its gradients
    variable_list d;  // of the columns, then of what lies between
    at::Tensor d_out_weight;
    const at::Tensor d_projected = at::empty_like(projected);
    {
      const at::AutoGradMode recording(true);
      const GradientColumns columns(projected, d_projected);
      variable_list leaves;
      for (const at::Tensor& column : columns_of(projected, block, x.size(0), x.size(1))) {
        leaves.push_back(column.detach().requires_grad_());
      }
      const at::Tensor mixed = block.mix(leaves);
      const at::Tensor rows = mixed.detach().flatten(0, 1);
      d_out_weight = product(d_product.t(), rows, block.out.scalar_type());
      leaves.insert(leaves.end(), block.between.begin(), block.between.end());
      d = torch::autograd::grad({mixed}, leaves,
                                {at::mm(d_product, saved[kPackOut]).view_as(mixed)});
    }
    const auto first_between = d.begin() + static_cast<int64_t>(block.columns.size());
    gather({d.begin(), first_between}, d_projected);
    const at::Tensor d_n = at::mm(d_projected, saved[kPackIn]);
    const NormGradient of = norm_backward(x, block, d_n, d_out);
    const auto d_in =
        unpack_rows(product(d_projected.t(), of.n, block.in[0].scalar_type()), block.in);

    variable_list result = {of.d_x.view(x.sizes()), of.d_weight.to(block.norm.scalar_type())};
    result.insert(result.end(), d_in.begin(), d_in.end());
    result.insert(result.end(), first_between, d.end());
    result.push_back(d_out_weight);
    result.emplace_back();  // block
    return result;
  }
};

}  // namespace

at::Tensor residual_mixer(const at::Tensor& x, const ResidualMixer& block) {
  MDN_CHECK(x.dim() == 3 && x.numel() > 0, "{}: x must be [B, T, D], got {}", kOp, shape_text(x));
  const int64_t D = x.size(2);
  const TensorCheck check{kOp, x.device()};
  check(block.norm, "norm", {D}, block.norm.scalar_type());
  check(block.out, "out", {D, block.out.size(-1)}, block.out.scalar_type());
  variable_list weights = {block.norm};
  int64_t rows = 0;
  for (const at::Tensor& weight : block.in) {
    check(weight, "in", {weight.size(0), D}, block.in[0].scalar_type());
    weights.push_back(weight);
    rows += weight.size(0);
  }
  MDN_CHECK(std::reduce(block.columns.begin(), block.columns.end()) == rows,
            "{}: the columns must be those of the {} projections", kOp, rows);
  weights.insert(weights.end(), block.between.begin(), block.between.end());
  weights.push_back(block.out);
  return Node::apply(x, at::TensorList(weights), block);
}

}  // namespace mdn::ops

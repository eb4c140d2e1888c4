#include "mdn/generate/device_step.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "mdn/generate/attention_cache.h"
#include "mdn/kernels/linear.h"
#include "mdn/kernels/rms_norm.h"
#include "mdn/kernels/swiglu.h"
#include "mdn/ops/gemm.h"
#include "mdn/ops/residual.h"
#include "mdn/ops/tensor.h"

namespace mdn::generate {
namespace {

// Whether all of a model is steps of kernels.
bool has_kernels(const model::Decoder& decoder) {
  const auto& entries = decoder.parameters().entries();
  const auto& blocks = decoder.weights().blocks;
  const at::ScalarType type = decoder.compute_type();
  return std::all_of(entries.begin(), entries.end(),
                     [&](const model::Parameter& p) {
                       return p.value.scalar_type() == type && p.value.is_contiguous();
                     }) &&
         std::all_of(blocks.begin(), blocks.end(),
                     [&](const model::Block& block) {
                       return DeviceMixer::supports(block.mixer, type) &&
                              (!block.mlp_norm.defined() || block.mlp.gate_proj.size(0) % 8 == 0);
                     }) &&
         kernels::cuda::rms_norm_unsupported(ops::dtype_of(kDeviceStep, type),
                                             decoder.config().hidden_size)
             .empty();
}

kernels::cuda::Linear linear_call(const at::Tensor& x, const at::Tensor& weight) {
  kernels::cuda::Linear call;
  call.B = x.size(0);
  call.in = x.size(1);
  call.out = weight.size(0);
  call.dtype = ops::dtype_of(kDeviceStep, x.scalar_type());
  call.x = ops::data(x);
  call.weight = ops::data(weight);
  return call;
}

// Whether the products with these weights are made by the kernel for few rows.
bool few_rows(const at::Tensor& x, const at::Tensor& weight) {
  return kernels::cuda::linear_unsupported(linear_call(x, weight)).empty();
}

// y weightᵀ
at::Tensor product(const at::Tensor& y, const at::Tensor& weight) {
  if (!few_rows(y, weight)) {
    return at::mm(y, weight.t());
  }
  at::Tensor z = at::empty({y.size(0), weight.size(0)}, y.options());
  kernels::cuda::Linear call = linear_call(y, weight);
  call.y = z.data_ptr();
  kernels::cuda::linear(call, ops::DeviceScope(y).stream());
  return z;
}

// x += y weightᵀ, in x's type.
void add_product(at::Tensor& x, const at::Tensor& y, const at::Tensor& weight) {
  if (x.scalar_type() != y.scalar_type()) {
    x.add_(product(y, weight));
    return;
  }
  if (!few_rows(y, weight)) {
    x.addmm_(y, weight.t());
    return;
  }
  kernels::cuda::Linear call = linear_call(y, weight);
  call.add = ops::data(x);
  call.y = x.data_ptr();
  kernels::cuda::linear(call, ops::DeviceScope(x).stream());
}

}  // namespace

bool DeviceStep::supports(const model::Decoder& decoder) {
  const auto& entries = decoder.parameters().entries();
  return std::all_of(entries.begin(), entries.end(),
                     [](const model::Parameter& p) { return p.value.is_cuda(); }) &&
         (!has_attention(decoder) || has_kernels(decoder));
}

DeviceStep::DeviceStep(const model::Decoder& decoder) : decoder_(decoder) {
  if (!has_kernels(decoder)) {
    return;
  }
  const auto& weights = decoder.weights();
  const at::ScalarType type = decoder.compute_type();
  norm_ = wide(weights.norm);
  for (const model::Block& block : weights.blocks) {
    Layer layer{.mixer = DeviceMixer(block.mixer, type),
                .gate_up = {},
                .attn_norm = wide(block.attn_norm),
                .mlp_norm = wide(block.mlp_norm)};
    if (layer.mlp_norm.defined()) {
      layer.gate_up = ops::pack_rows({block.mlp.gate_proj, block.mlp.up_proj}, type);
    }
    layers_.push_back(std::move(layer));
  }
}

// rms_norm(x) weightᵀ
at::Tensor DeviceStep::product_of_norm(const at::Tensor& x, const at::Tensor& norm,
                                       const at::Tensor& weight) const {
  const double eps = decoder_.config().norm_eps;
  const bool one_type = x.scalar_type() == weight.scalar_type();
  if (!one_type || !few_rows(x, weight)) {
    return product(ops::rms_norm_rows(x, norm, eps, weight.scalar_type()), weight);
  }
  at::Tensor y = at::empty({x.size(0), weight.size(0)}, x.options());
  kernels::cuda::Linear call = linear_call(x, weight);
  call.norm = ops::floats(norm);
  call.eps = eps;
  call.y = y.data_ptr();
  kernels::cuda::linear(call, ops::DeviceScope(x).stream());
  return y;
}

// x [B, D] += the MLP of rms_norm(x).
void DeviceStep::mlp(size_t index, at::Tensor& x) const {
  const Layer& layer = layers_[index];
  const int64_t B = x.size(0), I = layer.gate_up.size(0) / 2;
  const at::Tensor y = at::empty({B, I}, layer.gate_up.options());
  const ops::DeviceScope device(x);
  if (x.scalar_type() == y.scalar_type() && few_rows(x, layer.gate_up)) {
    kernels::cuda::Linear call = linear_call(x, layer.gate_up);
    call.out = I;
    call.norm = ops::floats(layer.mlp_norm);
    call.eps = decoder_.config().norm_eps;
    call.swiglu = true;
    call.y = y.data_ptr();
    kernels::cuda::linear(call, device.stream());
  } else {
    const at::Tensor inner = product_of_norm(x, layer.mlp_norm, layer.gate_up);
    kernels::cuda::swiglu_forward({.rows = B,
                                   .columns = I,
                                   .dtype = ops::dtype_of(kDeviceStep, y.scalar_type()),
                                   .a = ops::data(inner),
                                   .b = ops::data(inner.narrow(1, I, I)),
                                   .stride = 2 * I,
                                   .y = y.data_ptr()},
                                  device.stream());
  }
  add_product(x, y, decoder_.weights().blocks[index].mlp.down_proj);
}

// Steps change some states in place and replace others; those that were there get their place back.
at::Tensor DeviceStep::by_decoder(const at::Tensor& ids, model::DecoderState& state) const {
  model::DecoderState after = state;
  const at::Tensor hidden = decoder_.hidden(ids.unsqueeze(1), {}, &after).squeeze(1);
  for (size_t i = 0; i < state.layers.size(); ++i) {
    const auto fields = layers::state_fields(state.layers[i]);
    const auto fields_after = layers::state_fields(after.layers[i]);
    for (size_t f = 0; f < fields.size(); ++f) {
      at::Tensor &place = *fields[f].second, &value = *fields_after[f].second;
      if (!place.defined()) {
        place = value;
      } else if (!place.is_same(value)) {
        place.copy_(value);
      }
    }
  }
  return decoder_.logits(hidden);
}

at::Tensor DeviceStep::operator()(const at::Tensor& ids, const at::Tensor& positions,
                                  model::DecoderState& state) const {
  if (!fused()) {
    return by_decoder(ids, state);
  }
  const auto& weights = decoder_.weights();
  at::Tensor x = at::embedding(weights.embeddings, ids);
  if (decoder_.config().residual_in_fp32) {
    x = x.to(at::kFloat);
  }
  StepShared shared(positions);
  for (size_t i = 0; i < layers_.size(); ++i) {
    const Layer& layer = layers_[i];
    const at::Tensor projected = product_of_norm(x, layer.attn_norm, layer.mixer.in());
    add_product(x, layer.mixer(projected, shared, state.layers[i]), layer.mixer.out());
    if (layer.gate_up.defined()) {
      mlp(i, x);
    }
  }
  return product_of_norm(x, norm_, weights.head);
}

}  // namespace mdn::generate

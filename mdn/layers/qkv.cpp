#include "mdn/layers/qkv.h"

#include <ATen/ATen.h>

#include "mdn/layers/project.h"
#include "mdn/layers/short_conv.h"

namespace mdn::layers {

std::vector<StateField> ConvStates::conv_fields() {
  return {{"conv_q", &conv_q}, {"conv_k", &conv_k}, {"conv_v", &conv_v}};
}

std::vector<int64_t> head_state_shape(const HeadOptions& o, std::string_view field, int64_t B) {
  if (field == "S" || field == "M") {
    return {B, o.num_value_heads, o.value_dim, o.head_dim};
  }
  if (!o.use_short_conv) {
    return {};
  }
  return {B, o.conv_size - 1, field == "conv_v" ? o.values() : o.keys()};
}

Qkv query_key_value(const HeadOptions& o, const QkvWeights& w, const at::Tensor& x,
                    const Sequences& sequences, ConvStates* state) {
  const int64_t B = x.size(0), T = x.size(1);
  const auto projected = [&](const at::Tensor& proj, const at::Tensor& conv, at::Tensor* past) {
    const at::Tensor y = project(x, proj);
    return conv.defined() ? short_conv(y, conv, sequences, past) : at::silu(y);
  };
  const auto past = [&](at::Tensor ConvStates::*field) {
    return state ? &(state->*field) : nullptr;
  };
  return {.q = projected(w.q_proj, w.q_conv1d, past(&ConvStates::conv_q))
                   .view({B, T, o.num_heads, o.head_dim}),
          .k = projected(w.k_proj, w.k_conv1d, past(&ConvStates::conv_k))
                   .view({B, T, o.num_heads, o.head_dim}),
          .v = projected(w.v_proj, w.v_conv1d, past(&ConvStates::conv_v))
                   .view({B, T, o.num_value_heads, o.value_dim})};
}

}  // namespace mdn::layers

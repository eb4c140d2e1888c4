#include "mdn/layers/qkv.h"

#include <ATen/ATen.h>

#include <array>

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

Qkv query_key_value(const HeadOptions& o, const QkvWeights& w, const Projected& x,
                    const Sequences& sequences, ConvStates* state) {
  const auto projected = [&](const at::Tensor& proj, const at::Tensor& conv, at::Tensor* past,
                             at::IntArrayRef heads) {
    const at::Tensor y = x(proj);
    return (conv.defined() ? short_conv(y, conv, sequences, past) : at::silu(y))
        .unflatten(-1, heads);
  };
  const auto past = [&](at::Tensor ConvStates::*field) {
    return state ? &(state->*field) : nullptr;
  };
  const std::array<int64_t, 2> keys = {o.num_heads, o.head_dim};
  const std::array<int64_t, 2> values = {o.num_value_heads, o.value_dim};
  return {.q = projected(w.q_proj, w.q_conv1d, past(&ConvStates::conv_q), keys),
          .k = projected(w.k_proj, w.k_conv1d, past(&ConvStates::conv_k), keys),
          .v = projected(w.v_proj, w.v_conv1d, past(&ConvStates::conv_v), values)};
}

}  // namespace mdn::layers

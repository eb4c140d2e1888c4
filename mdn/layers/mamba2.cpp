#include "mdn/layers/mamba2.h"

#include <ATen/ATen.h>

#include "mdn/layers/short_conv.h"
#include "mdn/ops/decay_gates.h"
#include "mdn/ops/gated_delta_rule.h"
#include "mdn/ops/rms_norm.h"

namespace mdn::layers {
namespace {

// RMSNorm over each group of channels, gated, times the weight [E]. y, z [B, T, E].
at::Tensor group_norm(const at::Tensor& y, const at::Tensor& weight, int64_t groups, double eps,
                      const at::Tensor& z, ops::RmsNormGating gating) {
  if (groups == 1) {
    return ops::rms_norm(y, weight, eps, z, gating);
  }
  const auto split = [&](const at::Tensor& t) { return t.unflatten(-1, {groups, -1}); };
  const at::Tensor ones = at::ones({weight.numel() / groups}, y.options());
  return ops::rms_norm(split(y), ones, eps, split(z), gating).flatten(-2) *
         weight.to(y.scalar_type());
}

// The columns of in_proj: z, x, B, C, dt.
std::vector<int64_t> columns_of(const Mamba2Options& o) {
  const int64_t E = o.inner(), group_states = o.num_groups * o.state_size;
  return {E, E, group_states, group_states, o.num_heads};
}

}  // namespace

std::vector<StateField> Mamba2State::fields() {
  return {{"S", &S}, {"conv", &conv}};
}

std::optional<LayerParts> Mamba2::parts() const {
  const auto& w = weights;
  if (options.bias) {
    return std::nullopt;
  }
  return LayerParts{.in = {w.in_proj},
                    .columns = columns_of(options),
                    .between = present({w.dt_bias, w.A_log, w.D, w.conv1d, w.conv1d_bias, w.norm}),
                    .out = w.out_proj};
}

at::Tensor Mamba2::mix(const Projected& input, const Sequences& sequences, State* state) const {
  const auto& [o, w] = *this;
  sequences.check_start("mamba2", state && state->S.defined());
  const auto columns = columns_of(o);
  const auto parts = input.split(w.in_proj, columns, w.in_proj_bias);
  const at::Tensor z = parts[0], dt_raw = parts[4];
  const int64_t batch = z.size(0), T = z.size(1);
  // x, B, C: convolved apart, so that each is contiguous, but for a state, which holds them
  // together
  const std::vector<int64_t> sizes(columns.begin() + 1, columns.begin() + 4);
  std::vector<at::Tensor> xBC = {parts[1], parts[2], parts[3]};
  if (state) {
    xBC = short_conv(at::cat(xBC, -1), w.conv1d, sequences, &state->conv, w.conv1d_bias)
              .split_with_sizes(sizes, -1);
  } else {
    const auto weight = w.conv1d.split_with_sizes(sizes);
    const auto bias = w.conv1d_bias.defined() ? w.conv1d_bias.split_with_sizes(sizes)
                                              : std::vector<at::Tensor>(sizes.size());
    for (size_t i = 0; i < xBC.size(); ++i) {
      xBC[i] = short_conv(xBC[i], weight[i], sequences, nullptr, bias[i]);
    }
  }
  const at::Tensor x = xBC[0].unflatten(-1, {o.num_heads, o.head_dim});
  const at::Tensor B = xBC[1].unflatten(-1, {o.num_groups, o.state_size});
  const at::Tensor C = xBC[2].unflatten(-1, {o.num_groups, o.state_size});

  const auto gates = ops::decay_gates(dt_raw, {}, w.A_log, w.dt_bias,
                                      {.low = o.dt_limit_low, .high = o.dt_limit_high});
  const at::Tensor &alpha = gates.alpha, &dt = gates.dt;
  const at::Tensor no_prediction = at::zeros_like(dt);

  at::Tensor y;
  if (state && T == 1 && !sequences.packed()) {
    if (!state->S.defined()) {
      state->S = at::zeros({batch, o.num_heads, o.head_dim, o.state_size}, dt.options());
    }
    const auto token = [](const at::Tensor& t) { return t.squeeze(1); };
    y = ops::gated_delta_rule_step(token(C), token(B), token(x), token(alpha), token(dt), state->S,
                                   token(no_prediction), std::nullopt, 1.0, false)
            .unsqueeze(1);
  } else {
    at::Tensor final_S;
    std::tie(y, final_S) =
        ops::gated_delta_rule(C, B, x, alpha, dt, no_prediction,
                              state && state->S.defined() ? std::optional(state->S) : std::nullopt,
                              sequences.cu_seqlens(), 1.0, false);
    if (state) {
      state->S = final_S;
    }
  }

  using ops::RmsNormGating;
  if (o.norm && !o.norm_before_gate && o.num_groups == 1) {
    const at::Tensor D = w.D.unsqueeze(-1).expand({o.num_heads, o.head_dim}).flatten();
    return ops::rms_norm(y.flatten(-2), w.norm, o.norm_eps, z, RmsNormGating::kSiluFirst,
                         x.flatten(-2), D);
  }
  // y + D x
  y = at::addcmul(y, w.D.to(x.scalar_type()).unsqueeze(-1), x).flatten(-2);
  if (!o.norm) {
    return y * at::silu(z);
  }
  return group_norm(y, w.norm, o.num_groups, o.norm_eps, z,
                    o.norm_before_gate ? RmsNormGating::kSilu : RmsNormGating::kSiluFirst);
}

std::vector<int64_t> Mamba2::state_shape(std::string_view field, int64_t batch) const {
  if (field == "S") {
    return {batch, options.num_heads, options.head_dim, options.state_size};
  }
  return {batch, options.conv_size - 1, options.convolved()};
}

}  // namespace mdn::layers

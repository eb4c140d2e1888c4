#include "mdn/layers/mamba2.h"

#include <ATen/ATen.h>

#include "mdn/core/error.h"
#include "mdn/layers/project.h"
#include "mdn/layers/short_conv.h"
#include "mdn/ops/gated_delta_rule.h"
#include "mdn/ops/rms_norm.h"

namespace mdn::layers {
namespace {

// RMSNorm over each group of channels, times the weight [E]. y [B, T, E].
at::Tensor group_norm(const at::Tensor& y, const at::Tensor& weight, int64_t groups, double eps) {
  if (groups == 1) {
    return ops::rms_norm(y, weight, eps);
  }
  const at::Tensor split = y.unflatten(-1, {groups, -1});
  const at::Tensor ones = at::ones({split.size(-1)}, y.options());
  return ops::rms_norm(split, ones, eps).flatten(-2) * weight.to(y.scalar_type());
}

}  // namespace

std::vector<StateField> Mamba2State::fields() {
  return {{"S", &S}, {"conv", &conv}};
}

at::Tensor Mamba2::operator()(const at::Tensor& input, const Sequences& sequences,
                              State* state) const {
  const auto& [o, w] = *this;
  MDN_CHECK(!state || !sequences.packed(),
            "mamba2: a carried state with packed sequences is not supported");
  const auto type = gate_type(input);
  const int64_t batch = input.size(0), T = input.size(1), E = o.inner();
  const auto parts = project(input, w.in_proj, w.in_proj_bias)
                         .split_with_sizes({E, o.convolved(), o.num_heads}, -1);
  const at::Tensor z = parts[0], dt_raw = parts[2];
  const at::Tensor xBC =
      short_conv(parts[1], w.conv1d, sequences, state ? &state->conv : nullptr, w.conv1d_bias);
  const auto xBC_parts =
      xBC.split_with_sizes({E, o.num_groups * o.state_size, o.num_groups * o.state_size}, -1);
  const at::Tensor x = xBC_parts[0].unflatten(-1, {o.num_heads, o.head_dim});
  const at::Tensor B = xBC_parts[1].unflatten(-1, {o.num_groups, o.state_size});
  const at::Tensor C = xBC_parts[2].unflatten(-1, {o.num_groups, o.state_size});

  const at::Tensor dt =
      at::softplus(dt_raw.to(type) + w.dt_bias.to(type)).clamp(o.dt_limit_low, o.dt_limit_high);
  const at::Tensor alpha = (-w.A_log.to(type).exp() * dt).exp();
  const at::Tensor no_prediction = at::zeros_like(dt);

  at::Tensor y;
  if (state && T == 1) {
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

  y = (y.to(type) + w.D.to(type).unsqueeze(-1) * x.to(type)).flatten(-2);
  const at::Tensor gate = at::silu(z.to(type));
  if (!o.norm) {
    y = y * gate;
  } else if (o.norm_before_gate) {
    y = group_norm(y, w.norm, o.num_groups, o.norm_eps) * gate;
  } else {
    y = group_norm(y * gate, w.norm, o.num_groups, o.norm_eps);
  }
  return project(y.to(input.scalar_type()), w.out_proj, w.out_proj_bias);
}

std::vector<int64_t> Mamba2::state_shape(std::string_view field, int64_t batch) const {
  if (field == "S") {
    return {batch, options.num_heads, options.head_dim, options.state_size};
  }
  return {batch, options.conv_size - 1, options.convolved()};
}

}  // namespace mdn::layers

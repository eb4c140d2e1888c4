// What mixes tokens in a layer: any of the families, as one value.
#pragma once

#include <variant>

#include "mdn/layers/attention.h"
#include "mdn/layers/comba.h"
#include "mdn/layers/gated_deltanet.h"
#include "mdn/layers/kimi_delta_attention.h"
#include "mdn/layers/mamba2.h"
#include "mdn/layers/momentum_deltanet.h"

namespace mdn::layers {

/// Every alternative has
/// - options and weights, plain data;
/// - State: what its sequences carry, undefined tensors being a fresh start; its fields() are its
///   tensors by name;
/// - operator()(x, sequences, State*): x [B, T, D] -> [B, T, D]; some also in two halves, parts()
///   and mix(), so that residual_mix need not keep what lies between (no parts: as a whole only);
/// - state_shape(field, B): the shape of a state's tensor; empty: not there, -1: any size.
using Mixer =
    std::variant<MomentumDeltaNet, Attention, GatedDeltaNet, Comba, KimiDeltaAttention, Mamba2>;

/// A layer's state; families with the same state share it.
using MixerState =
    std::variant<MomentumDeltaNetState, AttentionState, GatedDeltaNetState, Mamba2State>;

/// x [B, T, D] -> [B, T, D]; a state of the mixer's own kind, or null.
inline at::Tensor mix(const Mixer& mixer, const at::Tensor& x, const Sequences& sequences,
                      MixerState* state) {
  return std::visit(
      [&](const auto& m) {
        using State = typename std::decay_t<decltype(m)>::State;
        return m(x, sequences, state ? &std::get<State>(*state) : nullptr);
      },
      mixer);
}

/// A fresh start for a layer of this kind.
inline MixerState new_state(const Mixer& mixer) {
  return std::visit(
      [](const auto& m) { return MixerState(typename std::decay_t<decltype(m)>::State{}); }, mixer);
}

inline std::vector<StateField> state_fields(MixerState& state) {
  return std::visit([](auto& s) { return s.fields(); }, state);
}

inline std::vector<int64_t> state_shape(const Mixer& mixer, std::string_view field, int64_t B) {
  return std::visit([&](const auto& m) { return m.state_shape(field, B); }, mixer);
}

}  // namespace mdn::layers

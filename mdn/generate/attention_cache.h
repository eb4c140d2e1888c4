// States of attention layers in two forms. A decoder carries the keys and values of the tokens that
// a later one can see, behind each other; a step on a device (device_step.h) has a cache of a fixed
// capacity, where those of token t lie at place t. Sequences of one batch may then have read
// different numbers of tokens.
#pragma once

#include <cstdint>

#include "mdn/model/decoder.h"

namespace mdn::generate {

bool has_attention(const model::Decoder& decoder);

/// The caches' capacity where sequences come to `tokens` tokens: few values, so that it seldom
/// changes.
int64_t cache_capacity(int64_t tokens);

/// The state of sequences that have read state.position tokens each, with caches.
void to_caches(const model::Decoder& decoder, model::DecoderState& state, int64_t capacity);

/// Larger caches, with what the present ones hold.
void grow_caches(model::DecoderState& state, int64_t capacity);

/// Back, of sequences that have read state.position tokens each.
void from_caches(const model::Decoder& decoder, model::DecoderState& state);

}  // namespace mdn::generate

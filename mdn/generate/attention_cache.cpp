#include "mdn/generate/attention_cache.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace mdn::generate {
namespace {

constexpr int64_t kLeastCapacity = 1024;

// body(state, mixer) for every attention layer.
template <typename Body>
void each_attention(const model::Decoder& decoder, model::DecoderState& state, const Body& body) {
  const auto& blocks = decoder.weights().blocks;
  for (size_t i = 0; i < blocks.size(); ++i) {
    if (const auto* mixer = std::get_if<layers::Attention>(&blocks[i].mixer)) {
      body(std::get<layers::AttentionState>(state.layers[i]), *mixer);
    }
  }
}

// [B, heads, capacity, d] with x [B, heads, tokens, d] from place `from` on.
at::Tensor cache_with(const at::Tensor& x, int64_t from, int64_t capacity) {
  at::Tensor cache = at::zeros({x.size(0), x.size(1), capacity, x.size(3)}, x.options());
  cache.narrow(2, from, x.size(2)).copy_(x);
  return cache;
}

}  // namespace

bool has_attention(const model::Decoder& decoder) {
  const auto& blocks = decoder.weights().blocks;
  return std::any_of(blocks.begin(), blocks.end(), [](const model::Block& block) {
    return std::holds_alternative<layers::Attention>(block.mixer);
  });
}

int64_t cache_capacity(int64_t tokens) {
  int64_t capacity = kLeastCapacity;
  while (capacity < tokens) {
    capacity *= 2;
  }
  return capacity;
}

void to_caches(const model::Decoder& decoder, model::DecoderState& state, int64_t capacity) {
  each_attention(decoder, state, [&](layers::AttentionState& s, const layers::Attention& mixer) {
    for (at::Tensor* const x : {&s.k, &s.v}) {
      if (!x->defined()) {
        const auto& o = mixer.options;
        *x = at::empty({1, o.num_kv_heads, 0, o.head_dim},
                       decoder.weights().embeddings.options().dtype(decoder.compute_type()));
      }
      *x = cache_with(*x, state.position - x->size(2), capacity);
    }
  });
}

void grow_caches(model::DecoderState& state, int64_t capacity) {
  for (layers::MixerState& layer : state.layers) {
    if (auto* s = std::get_if<layers::AttentionState>(&layer)) {
      s->k = cache_with(s->k, 0, capacity);
      s->v = cache_with(s->v, 0, capacity);
    }
  }
}

void from_caches(const model::Decoder& decoder, model::DecoderState& state) {
  each_attention(decoder, state, [&](layers::AttentionState& s, const layers::Attention& mixer) {
    const auto& window = mixer.options.window_size;
    const int64_t keep = window ? std::min(state.position, *window - 1) : state.position;
    s.k = s.k.narrow(2, state.position - keep, keep).contiguous();
    s.v = s.v.narrow(2, state.position - keep, keep).contiguous();
    s.position = state.position;
  });
}

}  // namespace mdn::generate

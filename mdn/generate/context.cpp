#include "mdn/generate/context.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "mdn/core/error.h"
#include "mdn/generate/attention_cache.h"
#include "mdn/io/hash.h"

namespace mdn::generate {
namespace {

using model::DecoderState;

// A state made field by field, by body(that field of each of the states), from states of the same
// model. Undefined fields (parts that a layer does not have) stay undefined.
template <typename Body>
DecoderState map(std::span<const DecoderState* const> states, const Body& body) {
  std::vector<DecoderState> in;  // copies of handles
  for (const DecoderState* state : states) {
    in.push_back(*state);
  }
  DecoderState out = *states.front();
  for (size_t i = 0; i < out.layers.size(); ++i) {
    const auto fields = layers::state_fields(out.layers[i]);
    for (size_t f = 0; f < fields.size(); ++f) {
      std::vector<at::Tensor> tensors;
      for (DecoderState& state : in) {
        tensors.push_back(*layers::state_fields(state.layers[i])[f].second);
      }
      if (tensors.front().defined()) {
        *fields[f].second = body(tensors);
      }
    }
  }
  return out;
}

at::Tensor ids_tensor(std::span<const int64_t> ids, c10::Device device) {
  at::Tensor out = at::empty({1, static_cast<int64_t>(ids.size())}, at::kLong);
  std::copy(ids.begin(), ids.end(), out.mutable_data_ptr<int64_t>());
  return out.to(device);
}

void check_id(int64_t id, const model::Config& config, const std::string& where) {
  MDN_CHECK(id >= 0 && id < config.vocab_size,
            "{}: token id {} is not in the model's vocabulary of {} (0 to {})", where, id,
            config.vocab_size, config.vocab_size - 1);
}

const at::Tensor& first_weight(const model::Decoder& decoder) {
  return decoder.parameters().entries().front().value;
}

c10::Device device_of(const model::Decoder& decoder) {
  return first_weight(decoder).device();
}

// What tells models apart: SHA-256 over every parameter's name, dtype and elements, [32] uint8. All
// of them, for fine-tuned models may differ in a few rows; it reads the weights once, as one
// decoded token does.
at::Tensor fingerprint(const model::Decoder& decoder) {
  Sha256 hash;
  for (const model::Parameter& p : decoder.parameters().entries()) {
    hash.update(p.spec.name);
    hash.update(c10::toString(p.value.scalar_type()));
    const at::Tensor values = p.value.detach().cpu().contiguous();
    hash.update(std::span(static_cast<const std::byte*>(values.const_data_ptr()), values.nbytes()));
  }
  const auto digest = hash.digest();
  return at::tensor(at::ArrayRef<uint8_t>(digest.data(), digest.size()), at::kByte);
}

// Makes the tokens the context's own; those that its state has to read before the last of them.
std::vector<int64_t> append(const model::Decoder& decoder, Context& context,
                            std::span<const int64_t> ids) {
  for (int64_t id : ids) {
    check_id(id, decoder.config(), "prompt");
  }
  std::vector<int64_t> unread;
  if (!context.empty()) {
    unread.push_back(context.pending);
  }
  unread.insert(unread.end(), ids.begin(), ids.end() - 1);
  context.pending = ids.back();
  for (int64_t id : ids) {
    context.seen.add(id);
  }
  return unread;
}

// Tokens of contexts that have read nothing, behind each other.
struct Pack {
  std::vector<Context*> contexts;
  std::vector<int64_t> tokens;
  std::vector<int64_t> bounds = {0};

  void add(Context& context, const std::vector<int64_t>& unread) {
    contexts.push_back(&context);
    tokens.insert(tokens.end(), unread.begin(), unread.end());
    bounds.push_back(static_cast<int64_t>(tokens.size()));
  }

  // Gives each context its row of the state, and starts anew.
  void read(const model::Decoder& decoder) {
    if (tokens.empty()) {
      return;
    }
    DecoderState all = decoder.new_state();
    decoder.hidden(ids_tensor(tokens, device_of(decoder)),
                   layers::Sequences(at::tensor(bounds, at::kLong)), &all);
    const DecoderState* const source = &all;
    for (size_t n = 0; n < contexts.size(); ++n) {
      const auto row = static_cast<int64_t>(n);
      DecoderState& state = contexts[n]->state;
      state = map({&source, 1}, [&](const auto& t) { return t.front().narrow(0, row, 1); });
      state.position = bounds[n + 1] - bounds[n];
    }
    *this = {};
  }
};

}  // namespace

Context new_context(const model::Decoder& decoder, const RandomStream& random) {
  Context context;
  context.state = decoder.new_state();
  context.random = random;
  return context;
}

Context clone(const Context& context) {
  Context copy = context;
  const DecoderState* source = &context.state;
  copy.state = map({&source, 1}, [](const auto& t) { return t.front().clone(); });
  return copy;
}

DecoderState join(std::span<const DecoderState* const> states) {
  MDN_CHECK(!states.empty(), "there is no state to join");
  return map(states, [](const auto& t) { return at::cat(t, 0); });
}

DecoderState rows_of(const DecoderState& state, std::span<const int64_t> rows) {
  const at::Tensor index = at::tensor(at::ArrayRef<int64_t>(rows.data(), rows.size()), at::kLong);
  const DecoderState* source = &state;
  return map({&source, 1}, [&](const auto& t) {
    return t.front().index_select(0, index.to(t.front().device()));
  });
}

void read(const model::Decoder& decoder, Context& context, std::span<const int64_t> ids) {
  if (ids.empty()) {
    return;
  }
  const at::NoGradGuard no_grad;
  const std::vector<int64_t> unread = append(decoder, context, ids);
  const std::span<const int64_t> all(unread);
  for (size_t from = 0; from < all.size(); from += kReadTokens) {
    const auto part = all.subspan(from, std::min<size_t>(kReadTokens, all.size() - from));
    decoder.hidden(ids_tensor(part, device_of(decoder)), {}, &context.state);
  }
}

void read_together(const model::Decoder& decoder, std::span<Context* const> contexts,
                   std::span<const std::span<const int64_t>> ids) {
  const bool packs = !has_attention(decoder);
  const at::NoGradGuard no_grad;
  Pack pack;
  for (size_t i = 0; i < contexts.size(); ++i) {
    Context& context = *contexts[i];
    const auto count = static_cast<int64_t>(ids[i].size());
    if (!packs || !context.empty() || count < 2 || count > kReadTokens) {
      read(decoder, context, ids[i]);
      continue;
    }
    if (static_cast<int64_t>(pack.tokens.size()) + count > kPackedTokens) {
      pack.read(decoder);
    }
    pack.add(context, append(decoder, context, ids[i]));
  }
  pack.read(decoder);
}

namespace {

// Names of what a state file carries beside the decoder's state.
constexpr const char* kModel = "context.model";      // [32] uint8: fingerprint of the weights
constexpr const char* kPending = "context.pending";  // [1] int64
constexpr const char* kSeen = "context.seen";        // [tokens] int32
constexpr const char* kRandom = "context.random";    // [3] int64: seed, stream, drawn

}  // namespace

void save_context(const std::filesystem::path& path, const Context& context,
                  const model::Decoder& decoder) {
  MDN_CHECK(!context.empty(), "{}: nothing to save: no token was read yet", path.string());
  const std::vector<int32_t>& seen = context.seen.ids();
  at::Tensor ids = at::empty({static_cast<int64_t>(seen.size())}, at::kInt);
  std::copy(seen.begin(), seen.end(), ids.mutable_data_ptr<int32_t>());
  const std::vector<int64_t> random = {static_cast<int64_t>(context.random.seed),
                                       static_cast<int64_t>(context.random.stream),
                                       static_cast<int64_t>(context.random.drawn)};
  const std::vector<int64_t> pending = {context.pending};
  model::save_state(path, context.state, decoder.config(),
                    {{kModel, fingerprint(decoder)},
                     {kPending, at::tensor(pending, at::kLong)},
                     {kSeen, ids},
                     {kRandom, at::tensor(random, at::kLong)}});
}

Context load_context(const std::filesystem::path& path, const model::Decoder& decoder) {
  model::ExtraTensors extra;
  Context context;
  context.state = model::load_state(path, decoder.config(), device_of(decoder), &extra);
  const auto take = [&](const char* name, at::ScalarType type, int64_t size) {
    const auto found = extra.find(name);
    MDN_CHECK(found != extra.end(), "{}: a state without '{}': not written by mdn generate",
              path.string(), name);
    MDN_CHECK(found->second.scalar_type() == type && found->second.dim() == 1 &&
                  (size < 0 || found->second.size(0) == size),
              "{}: '{}' has another type or shape than mdn generate writes", path.string(), name);
    return found->second;
  };
  const std::string where = path.string();
  MDN_CHECK(at::equal(take(kModel, at::kByte, 32), fingerprint(decoder)),
            "{}: the state of a model with other weights (or in another --dtype); it can only be "
            "continued by the model that made it",
            where);
  context.pending = take(kPending, at::kLong, 1).const_data_ptr<int64_t>()[0];
  check_id(context.pending, decoder.config(), where);
  const at::Tensor seen = take(kSeen, at::kInt, -1);
  for (int64_t i = 0; i < seen.numel(); ++i) {
    const int64_t id = seen.const_data_ptr<int32_t>()[i];
    check_id(id, decoder.config(), where);
    context.seen.add(id);
  }
  const at::Tensor random = take(kRandom, at::kLong, 3);
  const int64_t* r = random.const_data_ptr<int64_t>();
  context.random = {static_cast<uint64_t>(r[0]), static_cast<uint64_t>(r[1]),
                    static_cast<uint64_t>(r[2])};
  return context;
}

}  // namespace mdn::generate

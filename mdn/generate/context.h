// What one sequence carries while it is read and continued, in memory and on disk.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>

#include "mdn/generate/sampler.h"
#include "mdn/model/decoder.h"

namespace mdn::generate {

/// A sequence of n tokens: `state` has read the first n-1, `pending` is the last. Every next token
/// is thus sampled after a single-token step that reads `pending`, whether the sequence was just
/// read, carried on, or loaded from a file: a continuation has the same bits in all three cases.
struct Context {
  model::DecoderState state;  // of one sequence (B = 1)
  int64_t pending = -1;       // -1: nothing read yet
  SeenTokens seen;            // for the repetition penalty
  RandomStream random;

  bool empty() const { return pending < 0; }
};

/// A context that has read nothing.
Context new_context(const model::Decoder& decoder, const RandomStream& random = {});

/// Tensors of its own: steps update states in place, so a shared start must be copied.
Context clone(const Context& context);

/// Appends tokens by the chunkwise form, `kReadTokens` at most in one call of the model, so that
/// memory does not grow with the length. Throws for an id outside the vocabulary.
void read(const model::Decoder& decoder, Context& context, std::span<const int64_t> ids);
inline constexpr int64_t kReadTokens = 4096;

/// The same for several contexts and the tokens of each. Where the model has no attention layers,
/// contexts that have read nothing are read as packed sequences, `kPackedTokens` in one call, which
/// takes as many launches as one of them; states are then rows of one tensor. Results may differ
/// from those of read() by the rounding of sums and products.
void read_together(const model::Decoder& decoder, std::span<Context* const> contexts,
                   std::span<const std::span<const int64_t>> ids);
inline constexpr int64_t kPackedTokens = 16384;

/// A state file (model::save_state) with the rest of the context in it. Throws for an empty
/// context; loading for the file of another configuration, of other weights or another dtype (told
/// by a hash of all weights), and for one that has no context or token ids outside the vocabulary.
void save_context(const std::filesystem::path& path, const Context& context,
                  const model::Decoder& decoder);
Context load_context(const std::filesystem::path& path, const model::Decoder& decoder);

/// Rows of several states of one batch each, joined along the batch; positions must be equal where
/// the model has attention layers. And one row of a batch, with its own tensors.
model::DecoderState join(std::span<const model::DecoderState* const> states);
model::DecoderState rows_of(const model::DecoderState& state, std::span<const int64_t> rows);

}  // namespace mdn::generate

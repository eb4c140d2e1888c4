// A tokenizer for data that has no text.
#pragma once

#include <cstdint>
#include <memory>

#include "mdn/tokenizer/tokenizer.h"

namespace mdn::evaluate {

/// At least `vocab` ids: those of bytes up to 256, above that "<256>", "<257>", ..., which no text
/// is encoded to, so that a model over them has a tokenizer.json like any other.
std::unique_ptr<Tokenizer> numbered_tokenizer(int64_t vocab);

}  // namespace mdn::evaluate

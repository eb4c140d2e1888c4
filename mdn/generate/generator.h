// Continues token sequences with a model: prefill by the chunkwise form, then steps of constant
// memory and time, many sequences in a batch.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "mdn/generate/context.h"
#include "mdn/generate/cuda_stepper.h"
#include "mdn/generate/sampler.h"
#include "mdn/generate/stepper.h"

namespace mdn::generate {

/// One sequence to continue.
struct Request {
  std::vector<int64_t> prompt;     // appended first; may be empty only when `start` has read some
  const Context* start = nullptr;  // continued (a copy of it), null: nothing read before
  SamplerOptions sampler;
  std::optional<RandomStream> random;  // absent: the start's own, where it was
  int64_t max_tokens = 256;            // >= 0
  std::vector<int64_t> end_tokens;     // such a token is read no further and not reported
};

enum class Finish {
  kLength,       // max_tokens were made
  kEndToken,     // one of end_tokens was drawn
  kStopped,      // on_token said so
  kInterrupted,  // the interrupt flag was set
};

const char* name_of(Finish finish);

struct Passage {
  std::vector<int64_t> tokens;  // made, without an end token
  Finish finish = Finish::kInterrupted;
  Context context;  // with `keep_contexts`: to be continued or saved
};

/// Work and time, summed over calls.
struct Timing {
  int64_t prefill_tokens = 0;  // read by the chunkwise form
  double prefill_seconds = 0;
  int64_t decode_tokens = 0;  // single-token steps, each making a token
  double decode_seconds = 0;
};

struct GeneratorOptions {
  int64_t batch = 16;          // sequences decoded together, >= 1
  bool keep_contexts = false;  // each as large as a state
};

class Generator {
 public:
  /// The decoder must outlive the generator.
  explicit Generator(const model::Decoder& decoder, GeneratorOptions options = {});

  /// Called for every token made, in order within a request; false ends that passage.
  using OnToken = std::function<bool(size_t request, int64_t token)>;

  /// Continues every request and returns their passages in the same order. On the CPU a prompt is
  /// read alone, and where a Stepper runs (float32, no attention layers) its steps do not depend on
  /// the company either: the same bits as one by one. Elsewhere what is read and stepped together
  /// may differ from what is alone by the rounding of sums and products. On CUDA a CudaStepper runs
  /// where it can. A set `interrupt` ends all passages before their next
  /// token. Throws for an empty prompt without start, ids outside the vocabulary, bad options:
  /// before anything is read.
  std::vector<Passage> run(const std::vector<Request>& requests, const OnToken& on_token = {},
                           const std::atomic<bool>* interrupt = nullptr);

  const Timing& timing() const { return timing_; }

 private:
  struct Sequence;
  struct Group;
  class Run;

  at::Tensor step(const std::vector<int64_t>& ids, model::DecoderState& state);

  const model::Decoder& decoder_;
  std::optional<Stepper> stepper_;           // where the model is float32 on the CPU
  std::optional<CudaStepper> cuda_stepper_;  // where that supports it
  GeneratorOptions options_;
  Timing timing_;
};

}  // namespace mdn::generate

#include "mdn/generate/generator.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <iterator>
#include <list>

#include "mdn/core/error.h"
#include "mdn/core/threads.h"
#include "mdn/generate/attention_cache.h"

namespace mdn::generate {
namespace {

// Adds the time of its scope.
class Stopwatch {
 public:
  explicit Stopwatch(double& seconds) : seconds_(seconds) {}
  ~Stopwatch() {
    seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  double& seconds_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

void check_request(const Request& request, size_t index, const model::Config& config) {
  check(request.sampler);
  MDN_CHECK(request.max_tokens >= 0, "max tokens is {}; it must be 0 or more", request.max_tokens);
  MDN_CHECK(!request.prompt.empty() || (request.start && !request.start->empty()),
            "prompt {} is empty and there is no state to continue; give at least one token "
            "(for example the model's bos token, or a newline)",
            index + 1);
  for (int64_t id : request.prompt) {
    MDN_CHECK(id >= 0 && id < config.vocab_size,
              "prompt {}: token id {} is not in the model's vocabulary of {} (0 to {})", index + 1,
              id, config.vocab_size, config.vocab_size - 1);
  }
}

}  // namespace

const char* name_of(Finish finish) {
  switch (finish) {
    case Finish::kLength:
      return "length";
    case Finish::kEndToken:
      return "end-token";
    case Finish::kStopped:
      return "stop";
    case Finish::kInterrupted:
      return "interrupted";
  }
  return "?";
}

// A request on its way. While it is in a group its state is a row of the group's.
struct Generator::Sequence {
  size_t index;
  const Request* request;
  Context context;
  Sampler sampler;
  std::vector<int64_t> tokens;
  std::optional<Finish> finish;
};

// Sequences whose states are one batch. Attention layers of a decoder need one position for all
// rows; the momentum layers know no position, and caches one for each row: then there is one group.
struct Generator::Group {
  model::DecoderState state;
  std::vector<Sequence> rows;
};

// One call of Generator::run.
class Generator::Run {
 public:
  Run(Generator& generator, const std::vector<Request>& requests, const OnToken& on_token,
      const std::atomic<bool>* interrupt)
      : generator_(generator),
        requests_(requests),
        on_token_(on_token),
        interrupt_(interrupt),
        passages_(requests.size()),
        attention_(has_attention(generator.decoder_)),
        caches_(attention_ && generator.cuda_stepper_) {}

  std::vector<Passage> operator()() {
    size_t next = 0;
    int64_t active = 0;
    while (active > 0 || next < requests_.size()) {
      while (next < requests_.size() && active < generator_.options_.batch) {
        // On a GPU all at once: what they take there is launches.
        const auto room = static_cast<size_t>(generator_.options_.batch - active);
        const size_t count = generator_.cuda_stepper_ ? room : 1;
        const size_t end = std::min(next + count, requests_.size());
        admit(next, end);
        next = end;
        active = this->count();
      }
      for (auto group = groups_.begin(); group != groups_.end();) {
        if (caches_) {
          make_room(1 + longest(*group));
        }
        advance(*group, false);
        group = group->rows.empty() ? groups_.erase(group) : std::next(group);
      }
      active = count();
    }
    return std::move(passages_);
  }

 private:
  bool interrupted() const { return interrupt_ && interrupt_->load(std::memory_order_relaxed); }

  int64_t count() const {
    size_t rows = 0;
    for (const Group& group : groups_) {
      rows += group.rows.size();
    }
    return static_cast<int64_t>(rows);
  }

  Sequence sequence_of(size_t index) const {
    const Request& request = requests_[index];
    Sequence sequence{
        .index = index,
        .request = &request,
        .context = request.start ? clone(*request.start) : new_context(generator_.decoder_),
        .sampler = Sampler(request.sampler),
        .tokens = {},
        .finish = std::nullopt};
    if (request.random) {
      sequence.context.random = *request.random;
    }
    return sequence;
  }

  void read_prompts(std::vector<Sequence>& sequences) {
    std::vector<Context*> contexts;
    std::vector<std::span<const int64_t>> prompts;
    int64_t before = 0, after = 0;
    for (Sequence& sequence : sequences) {
      contexts.push_back(&sequence.context);
      prompts.emplace_back(sequence.request->prompt);
      before += sequence.context.state.position;
    }
    const Stopwatch stopwatch(generator_.timing_.prefill_seconds);
    if (sequences.size() == 1) {
      read(generator_.decoder_, *contexts.front(), prompts.front());
    } else {
      read_together(generator_.decoder_, contexts, prompts);
    }
    for (const Context* context : contexts) {
      after += context->state.position;
    }
    generator_.timing_.prefill_tokens += after - before;
  }

  // Reads prompts, and the sequences join their groups; before that each makes its first token
  // alone, but on a GPU, where it is no faster so.
  void admit(size_t first, size_t end) {
    std::vector<Sequence> sequences;
    for (size_t index = first; index < end; ++index) {
      sequences.push_back(sequence_of(index));
    }
    const bool stopped = interrupted();
    if (!stopped) {
      read_prompts(sequences);
    }
    if (caches_) {
      for (const Sequence& sequence : sequences) {
        make_room(sequence.context.state.position + 1);
      }
    }
    std::vector<Group> arrived;
    for (Sequence& sequence : sequences) {
      if (stopped || sequence.request->max_tokens == 0) {
        sequence.finish = stopped ? Finish::kInterrupted : Finish::kLength;
        leave(std::move(sequence));
        continue;
      }
      Group alone;
      alone.state = std::move(sequence.context.state);
      if (caches_) {
        to_caches(generator_.decoder_, alone.state, capacity_);
      }
      alone.rows.push_back(std::move(sequence));
      // What has read nothing has no state that could be joined.
      if (!generator_.cuda_stepper_ || alone.state.position == 0) {
        advance(alone, true);
      }
      if (!alone.rows.empty()) {
        arrived.push_back(std::move(alone));
      }
    }
    join_groups(std::move(arrived));
  }

  // Caches for sequences of so many tokens.
  void make_room(int64_t tokens) {
    if (tokens <= capacity_) {
      return;
    }
    capacity_ = cache_capacity(tokens);
    for (Group& group : groups_) {
      grow_caches(group.state, capacity_);
    }
  }

  void join_groups(std::vector<Group> arrived) {
    while (!arrived.empty()) {
      const auto apart = [&, position = arrived.front().state.position](const Group& group) {
        return attention_ && !caches_ && group.state.position != position;
      };
      const auto rest = std::stable_partition(arrived.begin(), arrived.end(), std::not_fn(apart));
      std::list<Group> together;
      const auto host = std::find_if_not(groups_.begin(), groups_.end(), apart);
      if (host != groups_.end()) {
        together.splice(together.end(), groups_, host);
      }
      together.insert(together.end(), std::move_iterator(arrived.begin()),
                      std::move_iterator(rest));
      arrived.erase(arrived.begin(), rest);
      groups_.push_back(joined(std::move(together)));
    }
  }

  static Group joined(std::list<Group> groups) {
    if (groups.size() > 1) {
      std::vector<const model::DecoderState*> states;
      for (const Group& group : groups) {
        states.push_back(&group.state);
      }
      groups.front().state = join(states);
    }
    Group all = std::move(groups.front());
    groups.pop_front();
    for (Group& group : groups) {
      std::move(group.rows.begin(), group.rows.end(), std::back_inserter(all.rows));
    }
    return all;
  }

  static int64_t longest(const Group& group) {
    int64_t position = 0;
    for (const Sequence& row : group.rows) {
      position = std::max(position, row.context.state.position);
    }
    return position;
  }

  // One token for every row; rows that are done leave. `alone`: a sequence before it joins.
  void advance(Group& group, bool alone) {
    if (interrupted()) {
      for (Sequence& row : group.rows) {
        row.finish = Finish::kInterrupted;
      }
    } else {
      const Stopwatch stopwatch(generator_.timing_.decode_seconds);
      const std::vector<int64_t> ids = draw(group, alone);
      for (size_t r = 0; r < group.rows.size(); ++r) {
        Sequence& row = group.rows[r];
        row.context.state.position += 1;  // its own; the group's counts for the whole batch
        accept(row, ids[r]);
      }
      generator_.timing_.decode_tokens += static_cast<int64_t>(group.rows.size());
    }
    remove_finished(group);
  }

  // The next token of every row.
  std::vector<int64_t> draw(Group& group, bool alone) {
    std::vector<int64_t> ids, positions;
    for (const Sequence& row : group.rows) {
      ids.push_back(row.context.pending);
      positions.push_back(row.context.state.position);
    }
    at::Tensor logits;
    if (generator_.cuda_stepper_) {
      CudaStepper& stepper = *generator_.cuda_stepper_;
      const auto drawing = drawing_of(group);
      CudaStepper::Next next =
          alone
              ? stepper.step_alone(ids[0], positions[0], group.state, drawing ? &*drawing : nullptr)
              : stepper.step(ids, positions, group.state, drawing ? &*drawing : nullptr);
      if (drawing) {
        std::for_each(next.largest.begin(), next.largest.end(), check_largest_logit);
        return std::move(next.ids);
      }
      logits = next.logits;
    } else {
      logits = generator_.step(ids, group.state);
    }
    const auto vocab = static_cast<size_t>(logits.size(1));
    const float* data = logits.const_data_ptr<float>();
    parallel_for(static_cast<int64_t>(ids.size()), [&](int64_t index, int) {
      const auto r = static_cast<size_t>(index);
      Sequence& row = group.rows[r];
      ids[r] = row.sampler.next({data + r * vocab, vocab}, row.context.seen, row.context.random);
    });
    return ids;
  }

  // How all rows can be drawn from on the device, with the next number of each.
  static std::optional<CudaStepper::Drawing> drawing_of(Group& group) {
    CudaStepper::Drawing drawing{group.rows.front().sampler.options(), {}};
    for (const Sequence& row : group.rows) {
      if (row.sampler.options() != drawing.options || drawing.options.repetition_penalty != 1) {
        return std::nullopt;
      }
    }
    if (drawing.options.temperature > 0) {
      for (Sequence& row : group.rows) {
        drawing.uniform.push_back(row.context.random.next());
      }
    }
    return drawing;
  }

  void accept(Sequence& row, int64_t id) {
    row.context.pending = id;
    row.context.seen.add(id);
    const auto& ends = row.request->end_tokens;
    if (std::find(ends.begin(), ends.end(), id) != ends.end()) {
      row.finish = Finish::kEndToken;
      return;
    }
    row.tokens.push_back(id);
    if (on_token_ && !on_token_(row.index, id)) {
      row.finish = Finish::kStopped;
    } else if (static_cast<int64_t>(row.tokens.size()) >= row.request->max_tokens) {
      row.finish = Finish::kLength;
    }
  }

  void remove_finished(Group& group) {
    std::vector<int64_t> stay;
    std::vector<Sequence> rows;
    for (size_t r = 0; r < group.rows.size(); ++r) {
      Sequence& row = group.rows[r];
      if (!row.finish) {
        stay.push_back(static_cast<int64_t>(r));
        rows.push_back(std::move(row));
        continue;
      }
      if (generator_.options_.keep_contexts) {
        const int64_t position = row.context.state.position;
        const int64_t index = static_cast<int64_t>(r);
        row.context.state = rows_of(group.state, {&index, 1});
        row.context.state.position = position;
        if (caches_) {
          from_caches(generator_.decoder_, row.context.state);
        }
      }
      leave(std::move(row));
    }
    if (!stay.empty() && stay.size() < group.rows.size()) {
      group.state = rows_of(group.state, stay);
    }
    group.rows = std::move(rows);
  }

  void leave(Sequence sequence) {
    Passage& passage = passages_[sequence.index];
    passage.tokens = std::move(sequence.tokens);
    passage.finish = *sequence.finish;
    if (generator_.options_.keep_contexts) {
      passage.context = std::move(sequence.context);
    }
  }

  Generator& generator_;
  const std::vector<Request>& requests_;
  const OnToken& on_token_;
  const std::atomic<bool>* interrupt_;
  std::vector<Passage> passages_;
  const bool attention_;  // in any layer
  const bool caches_;     // the groups' states have caches
  int64_t capacity_ = 0;  // theirs
  std::list<Group> groups_;
};

Generator::Generator(const model::Decoder& decoder, GeneratorOptions options)
    : decoder_(decoder), options_(options) {
  MDN_CHECK(options_.batch >= 1, "batch is {}; it must be at least 1", options_.batch);
  if (Stepper::supports(decoder)) {
    stepper_.emplace(decoder);
  } else if (CudaStepper::supports(decoder)) {
    cuda_stepper_.emplace(decoder);
  }
}

// Reads one token a row; the logits that follow, [B, vocab] float32 on the CPU.
at::Tensor Generator::step(const std::vector<int64_t>& ids, model::DecoderState& state) {
  if (stepper_) {
    return stepper_->step(ids, state);
  }
  at::Tensor input = at::empty({static_cast<int64_t>(ids.size()), 1}, at::kLong);
  std::copy(ids.begin(), ids.end(), input.mutable_data_ptr<int64_t>());
  input = input.to(decoder_.parameters().entries().front().value.device());
  const at::Tensor logits = decoder_.logits(decoder_.hidden(input, {}, &state).squeeze(1));
  return logits.to(at::kCPU, at::kFloat).contiguous();
}

std::vector<Passage> Generator::run(const std::vector<Request>& requests, const OnToken& on_token,
                                    const std::atomic<bool>* interrupt) {
  for (size_t i = 0; i < requests.size(); ++i) {
    check_request(requests[i], i, decoder_.config());
  }
  const c10::InferenceMode inference;
  return Run(*this, requests, on_token, interrupt)();
}

}  // namespace mdn::generate

// Checkpoints of a run: folders step-00001000 that are whole or absent.
//
//   config.json, model.safetensors, tokenizer.json    the model, as other tools read it
//   optimizer.safetensors    exp_avg.NAME and exp_avg_sq.NAME of every weight, and rng.cpu, the
//                            state of torch's generator
//   trainer.json             everything else, see TrainerState
//
// A checkpoint is written to a hidden folder beside its place, every file and the folder forced to
// the disk, and then renamed. Removal renames to a hidden name first. So at any moment, whatever
// kills the process or the machine, a folder called step-N is complete; hidden leftovers are
// removed when the next run starts.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "mdn/data/batches.h"
#include "mdn/io/json.h"

namespace mdn::train {

inline constexpr const char* kOptimizerFile = "optimizer.safetensors";
inline constexpr const char* kTrainerFile = "trainer.json";
inline constexpr int kTrainerFormat = 1;

/// trainer.json: what a run needs besides tensors to go on as if it had never stopped.
struct TrainerState {
  int64_t step = 0;            // batches taken from the data, skipped ones too
  int64_t optimizer_step = 0;  // updates made
  int64_t tokens = 0;          // trained on
  double seconds = 0;          // spent training, over all the run's processes
  int skips_in_row = 0;        // non-finite steps just before this point
  double loss_sum = 0;         // of the steps since the last line of metrics
  int64_t loss_count = 0;
  double best_loss = 0;  // lowest held-out loss; of no meaning while best_step < 0
  int64_t best_step = -1;
  data::Position position;                     // of the next row
  OrderedJson config = OrderedJson::object();  // the run's keys, for people and for comparison

  OrderedJson to_json() const;
  /// Throws on another format and on missing or wrong values.
  static TrainerState from_json(const JsonObject& json);
};

struct Checkpoint {
  int64_t step = 0;
  std::filesystem::path path;
};

/// "step-00001000"
std::string checkpoint_name(int64_t step);

/// The checkpoints in a run's folder, oldest first. Names that are not of the form are passed over.
std::vector<Checkpoint> find_checkpoints(const std::filesystem::path& out);

/// Makes OUT/step-N: calls `write` with a hidden folder to fill, syncs it, renames it. Replaces a
/// checkpoint of the same step. When anything throws, the hidden folder is removed, the error
/// passes on, and other checkpoints are untouched.
Checkpoint write_checkpoint(const std::filesystem::path& out, int64_t step,
                            const std::function<void(const std::filesystem::path&)>& write);

/// Removes all but the newest `keep`, to be called once the newest is durable.
void prune_checkpoints(const std::filesystem::path& out, int64_t keep);

/// Removes what killed processes left: hidden checkpoint folders and temporaries of AtomicFile.
/// Only for the process that holds the run's lock.
void clean_leftovers(const std::filesystem::path& out);

/// Holds OUT/.lock while alive, so that two runs never share a folder; a killed process lets go of
/// it. Throws when another process holds it.
class RunLock {
 public:
  explicit RunLock(const std::filesystem::path& out);
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;
  ~RunLock();

 private:
  int fd_ = -1;
};

}  // namespace mdn::train

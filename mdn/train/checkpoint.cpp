#include "mdn/train/checkpoint.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <optional>
#include <system_error>

#include "mdn/core/error.h"
#include "mdn/io/file.h"

namespace mdn::train {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "step-";
constexpr std::string_view kHiddenPrefix = ".step-";

std::optional<int64_t> step_of_name(const std::string& name) {
  if (!name.starts_with(kPrefix)) {
    return std::nullopt;
  }
  int64_t step = 0;
  const char* begin = name.data() + kPrefix.size();
  const char* end = name.data() + name.size();
  const auto [stop, error] = std::from_chars(begin, end, step);
  // Only the name that we would give: step-7 and step-+7 are somebody else's.
  if (error != std::errc() || stop != end || step < 0 || name != checkpoint_name(step)) {
    return std::nullopt;
  }
  return step;
}

fs::path hidden_path(const fs::path& out, int64_t step, const char* purpose) {
  return out / fmt::format(".{}.{}.{}", checkpoint_name(step), purpose, ::getpid());
}

void remove_checkpoint(const fs::path& out, const Checkpoint& checkpoint) {
  const fs::path hidden = hidden_path(out, checkpoint.step, "removed");
  fs::rename(checkpoint.path, hidden);
  fs::remove_all(hidden);
}

}  // namespace

OrderedJson TrainerState::to_json() const {
  OrderedJson json;
  json["format"] = kTrainerFormat;
  json["step"] = step;
  json["optimizer_step"] = optimizer_step;
  json["tokens"] = tokens;
  json["seconds"] = seconds;
  json["skips_in_row"] = skips_in_row;
  json["loss_sum"] = loss_sum;
  json["loss_count"] = loss_count;
  json["best_loss"] = best_loss;
  json["best_step"] = best_step;
  json["position"] = position.to_json();
  json["config"] = config;
  return json;
}

TrainerState TrainerState::from_json(const JsonObject& json) {
  const int64_t format = json.integer("format");
  MDN_CHECK(format == kTrainerFormat, "{}: format {}; this program reads {}", json.place(), format,
            kTrainerFormat);
  TrainerState state;
  state.step = json.integer("step", 0);
  state.optimizer_step = json.integer("optimizer_step", 0);
  state.tokens = json.integer("tokens", 0);
  state.seconds = json.real("seconds", 0);
  state.skips_in_row = static_cast<int>(json.integer("skips_in_row", 0, 1'000'000'000));
  state.loss_sum = json.real("loss_sum");
  state.loss_count = json.integer("loss_count", 0);
  state.best_loss = json.real("best_loss");
  state.best_step = json.integer("best_step", -1);
  state.position = data::Position::from_json(json.object("position"));
  state.config = json.object("config").json();
  return state;
}

std::string checkpoint_name(int64_t step) {
  return fmt::format("{}{:08}", kPrefix, step);
}

std::vector<Checkpoint> find_checkpoints(const fs::path& out) {
  std::vector<Checkpoint> found;
  if (!fs::is_directory(out)) {
    return found;
  }
  for (const auto& entry : fs::directory_iterator(out)) {
    const auto step = step_of_name(entry.path().filename().string());
    if (step && entry.is_directory()) {
      found.push_back({*step, entry.path()});
    }
  }
  std::sort(found.begin(), found.end(),
            [](const Checkpoint& a, const Checkpoint& b) { return a.step < b.step; });
  return found;
}

Checkpoint write_checkpoint(const fs::path& out, int64_t step,
                            const std::function<void(const fs::path&)>& write) {
  const fs::path target = out / checkpoint_name(step);
  const fs::path hidden = hidden_path(out, step, "tmp");
  try {
    fs::remove_all(hidden);
    fs::create_directory(hidden);
    write(hidden);
    sync_folder(hidden);
    const bool replaces = fs::exists(target);
    if (replaces &&
        ::renameat2(AT_FDCWD, hidden.c_str(), AT_FDCWD, target.c_str(), RENAME_EXCHANGE) == 0) {
      sync_folder(out);
      fs::remove_all(hidden);  // the old one, now
      return {step, target};
    }
    if (replaces) {  // a file system that cannot exchange names
      remove_checkpoint(out, {step, target});
    }
    fs::rename(hidden, target);
    sync_folder(out);
  } catch (const fs::filesystem_error& error) {
    std::error_code ignored;
    fs::remove_all(hidden, ignored);
    MDN_THROW("checkpoint {}: {}: {}", target.string(), error.path1().string(),
              error.code().message());
  } catch (...) {
    std::error_code ignored;
    fs::remove_all(hidden, ignored);
    throw;
  }
  return {step, target};
}

void prune_checkpoints(const fs::path& out, int64_t keep) {
  const std::vector<Checkpoint> all = find_checkpoints(out);
  const auto excess = static_cast<int64_t>(all.size()) - std::max<int64_t>(keep, 1);
  for (int64_t i = 0; i < excess; ++i) {
    remove_checkpoint(out, all[static_cast<size_t>(i)]);
  }
}

void clean_leftovers(const fs::path& out) {
  std::vector<fs::path> leftovers;
  for (const auto& entry : fs::directory_iterator(out)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(kHiddenPrefix) || is_temporary_name(name)) {
      leftovers.push_back(entry.path());
    }
  }
  for (const fs::path& path : leftovers) {
    fs::remove_all(path);
  }
}

RunLock::RunLock(const fs::path& out) {
  const fs::path path = out / ".lock";
  fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  MDN_CHECK(fd_ >= 0, "{}: cannot be opened: {}", path.string(), std::strerror(errno));
  if (::flock(fd_, LOCK_EX | LOCK_NB) != 0) {
    const int reason = errno;
    ::close(fd_);
    MDN_CHECK(reason != EWOULDBLOCK, "{}: another process is training into this folder",
              out.string());
    MDN_THROW("{}: cannot be locked: {}", path.string(), std::strerror(reason));
  }
}

RunLock::~RunLock() {
  ::close(fd_);
}

}  // namespace mdn::train

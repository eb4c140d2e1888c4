// TensorBoard event files: TFRecords of Event messages, the few fields that scalars need encoded by
// hand (a protobuf library would be a dependency for five of them).
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "mdn/train/append_file.h"

namespace mdn::train {

/// CRC-32C (Castagnoli, reflected, as in iSCSI) of the bytes.
uint32_t crc32c(std::string_view bytes);

class EventWriter {
 public:
  /// Makes a new file events.out.tfevents.SECONDS.mdn.PID[.N] in the folder, which is made if
  /// missing. `first_step`: readers drop what older files hold of this step and later ones, which a
  /// resumed run writes again.
  EventWriter(const std::filesystem::path& folder, int64_t first_step);

  /// One event with any number of scalars, (tag, value).
  void add(int64_t step, const std::vector<std::pair<std::string, double>>& scalars);

  const std::filesystem::path& path() const { return file_.path(); }

 private:
  void write(const std::string& event);

  AppendFile file_;
};

}  // namespace mdn::train

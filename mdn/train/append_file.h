// A file that grows by whole records.
#pragma once

#include <filesystem>
#include <span>
#include <string_view>

#include "mdn/io/file.h"

namespace mdn::train {

/// Opened for appending, made if missing. A record is written by one call; when that fails half-way
/// (a full disk) the file is cut back to the record before, so it holds whole records only, also
/// when the process is killed later.
class AppendFile {
 public:
  explicit AppendFile(std::filesystem::path path);
  AppendFile(const AppendFile&) = delete;
  AppendFile& operator=(const AppendFile&) = delete;
  ~AppendFile();

  /// Throws an error that names the path, the bytes written and the bytes wanted.
  void append(std::span<const std::byte> record);
  void append(std::string_view record) { append(as_bytes(record)); }
  /// Forces what was appended to the disk.
  void sync();

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  int fd_ = -1;
};

}  // namespace mdn::train

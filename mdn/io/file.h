// Files: read-only mappings, and writes that are either whole or absent.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace mdn {

/// The bytes of a string, for the functions below.
inline std::span<const std::byte> as_bytes(std::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

/// The bytes as text; no check that they are UTF-8.
inline std::string_view as_text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// A whole regular file mapped read-only and shared, so that processes reading the same file use
/// one copy of it. Move-only. An empty file maps to an empty span. The mapping outlives a rename or
/// removal of the file; truncating it in place while it is mapped ends the process with SIGBUS, as
/// with every mapping, which is why this project replaces files (AtomicFile) and never rewrites
/// them.
class MappedFile {
 public:
  MappedFile() = default;
  /// Throws when the path cannot be opened, is no regular file, or cannot be mapped.
  explicit MappedFile(const std::filesystem::path& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }  // bytes
  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

/// Writes a file so that readers, and a machine that loses power, see the old content or the new
/// one and nothing between. Bytes go to a temporary `.NAME.tmp.PID.N` in the target's folder;
/// commit() forces them to the disk and renames. The destructor removes a temporary that was not
/// committed; a process that is killed leaves it, see is_temporary_name. A target that is a
/// symbolic link is replaced by a file. Permissions follow the umask, as for any new file.
class AtomicFile {
 public:
  /// Throws when the folder is missing or not writable.
  explicit AtomicFile(std::filesystem::path path);
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile();

  /// Appends. When the disk is full or the write fails otherwise, throws an error that names the
  /// path, the bytes written and the bytes wanted, and removes the temporary.
  void write(std::span<const std::byte> bytes);
  void write(std::string_view text) { write(as_bytes(text)); }

  /// Flushes, syncs the file, renames it over the target, syncs the folder. Once; nothing may be
  /// written afterwards. On failure the target keeps its old content.
  void commit();

  uint64_t size() const { return size_; }  // bytes given to write() so far
  const std::filesystem::path& path() const { return path_; }

 private:
  void flush();
  void write_through(std::span<const std::byte> bytes);
  void discard() noexcept;

  std::filesystem::path path_;
  std::filesystem::path temporary_;
  std::vector<std::byte> buffer_;
  uint64_t size_ = 0;
  uint64_t on_disk_ = 0;
  int fd_ = -1;
};

/// AtomicFile in one call.
void write_file_atomically(const std::filesystem::path& path, std::span<const std::byte> bytes);
inline void write_file_atomically(const std::filesystem::path& path, std::string_view text) {
  write_file_atomically(path, as_bytes(text));
}

/// The whole content of a file or pipe.
std::string read_file(const std::filesystem::path& path);

/// Makes renames, new files and removals in a folder durable.
void sync_folder(const std::filesystem::path& folder);

/// Whether a file name (no folder) is one that AtomicFile gives its temporaries, so that leftovers
/// of a killed process can be recognised and removed.
bool is_temporary_name(std::string_view name);

}  // namespace mdn

// The safetensors format: 8 bytes of header length (little-endian), a JSON header that gives each
// tensor's dtype, shape and byte range, then the bytes. Row major, little-endian.
//
// Readers trust nothing: the header's length, JSON and keys, the agreement of shape, dtype and
// byte range (overflow included), and that the ranges cover the data exactly, without holes or
// overlap, are checked when a file is opened. Data is mapped, not read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "mdn/io/file.h"

namespace mdn {

/// Element types of files. Those that arithmetic happens in are mdn::DType.
enum class FileDType : uint8_t {
  kF64,
  kF32,
  kF16,
  kBF16,
  kF8E5M2,
  kF8E4M3,
  kI64,
  kI32,
  kI16,
  kI8,
  kU64,
  kU32,
  kU16,
  kU8,
  kBool
};

/// Bytes of one element.
size_t size_of(FileDType dtype);
/// The format's word: "F64", "BF16", "BOOL", ...
const char* name_of(FileDType dtype);
/// The inverse; throws listing the words. `place` opens the message.
FileDType file_dtype_from_name(std::string_view name, const std::string& place);

/// Name, dtype and shape of a tensor. A shape of no dimensions is a scalar.
struct TensorInfo {
  std::string name;
  FileDType dtype = FileDType::kF32;
  std::vector<int64_t> shape;
};

/// Product of the dimensions; throws when one is negative or the product passes 2^63 - 1.
int64_t element_count(const TensorInfo& info);
/// element_count times the element's size, with the same checks.
uint64_t byte_count(const TensorInfo& info);

/// A tensor whose bytes are in memory or in a mapping. Data in a mapping may be unaligned for its
/// dtype: copy it out (memcpy) unless the address was checked.
struct TensorView : TensorInfo {
  std::span<const std::byte> data;
};

using Metadata = std::map<std::string, std::string>;

/// Largest header accepted, as the format's own reader has it.
inline constexpr uint64_t kMaxSafetensorsHeader = 100'000'000;

/// One file, mapped. Move-only; views live as long as it does.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path);

  /// Sorted by position in the file.
  const std::vector<TensorView>& tensors() const { return tensors_; }
  /// Null when there is none of that name.
  const TensorView* find(std::string_view name) const;
  /// find(), or an error that names the file and the tensor.
  const TensorView& at(std::string_view name) const;
  const Metadata& metadata() const { return metadata_; }
  const std::filesystem::path& path() const { return file_.path(); }

 private:
  MappedFile file_;
  Metadata metadata_;  // before tensors_, whose initialisation fills it
  std::vector<TensorView> tensors_;
  std::unordered_map<std::string_view, size_t> by_name_;
};

/// What SafetensorsFile checks, over bytes in memory. Views point into `bytes`; `name` opens every
/// message.
std::vector<TensorView> parse_safetensors(std::span<const std::byte> bytes, const std::string& name,
                                          Metadata* metadata);

inline constexpr const char* kModelFile = "model.safetensors";
inline constexpr const char* kModelIndexFile = "model.safetensors.index.json";

/// The tensors of a model: `model.safetensors`, or `model.safetensors.index.json` and the shards it
/// names. Every tensor must be in the shard that the index says, in no other, and every shard named
/// in it must be complete.
class SafetensorsSet {
 public:
  /// A folder with one of the two, or one of the two files (any .safetensors or .index.json).
  /// A folder with both is ambiguous and an error.
  explicit SafetensorsSet(const std::filesystem::path& path);

  /// All tensors: shards in the order of their names, each in file order.
  const std::vector<const TensorView*>& tensors() const { return tensors_; }
  const TensorView* find(std::string_view name) const;
  const TensorView& at(std::string_view name) const;
  /// Of the single file, or of the first shard.
  const Metadata& metadata() const { return files_.front()->metadata(); }
  const std::vector<std::unique_ptr<SafetensorsFile>>& files() const { return files_; }

 private:
  void open_index(const std::filesystem::path& index);
  void add(std::unique_ptr<SafetensorsFile> file);

  std::filesystem::path path_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::vector<const TensorView*> tensors_;
  std::unordered_map<std::string_view, const TensorView*> by_name_;
};

/// Gives a tensor's bytes when its turn comes, so that a writer never holds more than one tensor
/// that had to be converted or copied from a device. They must stay valid until the next call.
using TensorBytes = std::function<std::span<const std::byte>(const TensorInfo&)>;

/// Writes one file atomically (AtomicFile). Tensors are laid out by element size, largest first,
/// and then in the order given, so that each is aligned for its dtype; the data starts at a
/// multiple of 64 bytes. Throws on duplicate or reserved names and on bytes that do not fit the
/// shape.
void write_safetensors(const std::filesystem::path& path, const std::vector<TensorInfo>& tensors,
                       const TensorBytes& bytes_of, const Metadata& metadata = {{"format", "pt"}});
void write_safetensors(const std::filesystem::path& path, const std::vector<TensorView>& tensors,
                       const Metadata& metadata = {{"format", "pt"}});

/// Hugging Face's default.
inline constexpr uint64_t kDefaultShardBytes = 5'000'000'000;

/// Writes a model into a folder that exists: `model.safetensors` when all tensors fit into
/// `max_shard_bytes`, else `model-00001-of-0000N.safetensors`, filled in the order given, and then
/// the index. A tensor larger than that has a shard of its own. Model files of an earlier save in
/// the folder that the new one does not overwrite are removed last. Each file is atomic; the set is
/// not, so a checkpoint that must survive a crash is written to a new folder and renamed. Returns
/// the names of the files written, the index last.
std::vector<std::string> write_model_safetensors(const std::filesystem::path& folder,
                                                 const std::vector<TensorInfo>& tensors,
                                                 const TensorBytes& bytes_of,
                                                 uint64_t max_shard_bytes = kDefaultShardBytes,
                                                 const Metadata& metadata = {{"format", "pt"}});

}  // namespace mdn

#include "mdn/io/safetensors.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <unordered_set>

#include "mdn/core/error.h"
#include "mdn/io/json.h"

namespace mdn {
namespace {

constexpr const char* kMetadataKey = "__metadata__";
constexpr size_t kLengthBytes = 8;
constexpr size_t kDataAlignment = 64;  // a cache line, and any SIMD register

struct DTypeEntry {
  FileDType dtype;
  size_t size;
  const char* name;
};
constexpr DTypeEntry kDTypes[] = {
    {FileDType::kF64, 8, "F64"},        {FileDType::kF32, 4, "F32"},
    {FileDType::kF16, 2, "F16"},        {FileDType::kBF16, 2, "BF16"},
    {FileDType::kF8E5M2, 1, "F8_E5M2"}, {FileDType::kF8E4M3, 1, "F8_E4M3"},
    {FileDType::kI64, 8, "I64"},        {FileDType::kI32, 4, "I32"},
    {FileDType::kI16, 2, "I16"},        {FileDType::kI8, 1, "I8"},
    {FileDType::kU64, 8, "U64"},        {FileDType::kU32, 4, "U32"},
    {FileDType::kU16, 2, "U16"},        {FileDType::kU8, 1, "U8"},
    {FileDType::kBool, 1, "BOOL"},
};

const DTypeEntry& entry_of(FileDType dtype) {
  for (const DTypeEntry& entry : kDTypes) {
    if (entry.dtype == dtype) {
      return entry;
    }
  }
  MDN_THROW("file dtype {} does not exist", static_cast<int>(dtype));
}

static_assert(std::endian::native == std::endian::little,
              "safetensors data is little-endian and used in place");

uint64_t read_length(std::span<const std::byte> bytes) {
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), kLengthBytes);
  return length;
}

Metadata parse_metadata(const Json& value, const std::string& name) {
  const JsonObject object(value, name + ": " + kMetadataKey);
  Metadata metadata;
  for (const auto& [key, entry] : value.items()) {
    metadata[key] = object.string(key);
  }
  return metadata;
}

/// One header entry, checked against the `data` part of the file.
TensorView parse_entry(const std::string& tensor, const Json& value, const std::string& name,
                       std::span<const std::byte> data) {
  const std::string place = fmt::format("{}: tensor {}", name, brief_json(tensor));
  const JsonObject entry(value, place);
  entry.check_keys({"dtype", "shape", "data_offsets"});
  TensorView view;
  view.name = tensor;
  view.dtype = file_dtype_from_name(entry.string("dtype"), place);
  view.shape = entry.integers("shape", 0);
  const std::vector<int64_t> offsets = entry.integers("data_offsets", 0);
  MDN_CHECK(offsets.size() == 2, "{}: \"data_offsets\" has {} entries; it must be [begin, end]",
            place, offsets.size());
  const auto begin = static_cast<uint64_t>(offsets[0]);
  const auto end = static_cast<uint64_t>(offsets[1]);
  MDN_CHECK(begin <= end, "{}: \"data_offsets\" is [{}, {}]; it must not end before it begins",
            place, begin, end);
  MDN_CHECK(end <= data.size(),
            "{}: \"data_offsets\" is [{}, {}], but the file has only {} bytes of data (truncated?)",
            place, begin, end, data.size());
  uint64_t bytes = 0;
  try {
    bytes = byte_count(view);
  } catch (const Error& error) {
    MDN_THROW("{}: {}", name, error.what());
  }
  MDN_CHECK(bytes == end - begin, "{}: {} [{}] takes {} bytes, but \"data_offsets\" spans {}",
            place, name_of(view.dtype), fmt::join(view.shape, ", "), bytes, end - begin);
  view.data = data.subspan(begin, bytes);
  return view;
}

/// Tensors sorted by position must tile the data.
void check_tiling(const std::vector<TensorView>& tensors, std::span<const std::byte> data,
                  const std::string& name) {
  const std::byte* expected = data.data();
  for (const TensorView& tensor : tensors) {
    MDN_CHECK(tensor.data.data() >= expected,
              "{}: tensor {} begins at byte {}, inside the tensor before it, which ends at {}",
              name, brief_json(tensor.name), tensor.data.data() - data.data(),
              expected - data.data());
    MDN_CHECK(tensor.data.data() == expected,
              "{}: bytes {} to {} of the data, before tensor {}, belong to no tensor", name,
              expected - data.data(), tensor.data.data() - data.data(), brief_json(tensor.name));
    expected += tensor.data.size();
  }
  const auto used = static_cast<size_t>(expected - data.data());
  MDN_CHECK(used == data.size(), "{}: {} bytes at the end belong to no tensor", name,
            data.size() - used);
}

}  // namespace

size_t size_of(FileDType dtype) {
  return entry_of(dtype).size;
}

const char* name_of(FileDType dtype) {
  return entry_of(dtype).name;
}

FileDType file_dtype_from_name(std::string_view name, const std::string& place) {
  std::string words;
  for (const DTypeEntry& entry : kDTypes) {
    if (name == entry.name) {
      return entry.dtype;
    }
    words += (words.empty() ? "" : ", ") + std::string(entry.name);
  }
  MDN_THROW("{}: dtype {} is not supported; supported are {}", place, brief_json(std::string(name)),
            words);
}

int64_t element_count(const TensorInfo& info) {
  int64_t count = 1;
  bool overflow = false;
  bool empty = false;
  for (const int64_t dim : info.shape) {
    MDN_CHECK(dim >= 0, "tensor {}: dimension {} is negative", brief_json(info.name), dim);
    empty = empty || dim == 0;
    overflow = overflow || __builtin_mul_overflow(count, dim, &count);
  }
  MDN_CHECK(!overflow || empty, "tensor {}: shape [{}] has more than 2^63 - 1 elements",
            brief_json(info.name), fmt::join(info.shape, ", "));
  return empty ? 0 : count;
}

uint64_t byte_count(const TensorInfo& info) {
  uint64_t bytes = 0;
  MDN_CHECK(!__builtin_mul_overflow(static_cast<uint64_t>(element_count(info)),
                                    uint64_t{size_of(info.dtype)}, &bytes) &&
                bytes <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max()),
            "tensor {}: shape [{}] of {} takes more than 2^63 - 1 bytes", brief_json(info.name),
            fmt::join(info.shape, ", "), name_of(info.dtype));
  return bytes;
}

std::vector<TensorView> parse_safetensors(std::span<const std::byte> bytes, const std::string& name,
                                          Metadata* metadata) {
  MDN_CHECK(bytes.size() >= kLengthBytes,
            "{}: has {} bytes; a safetensors file begins with {} bytes of header length", name,
            bytes.size(), kLengthBytes);
  const uint64_t header_bytes = read_length(bytes);
  MDN_CHECK(header_bytes <= kMaxSafetensorsHeader,
            "{}: the header's length is given as {}; at most {} is allowed (is it a safetensors "
            "file?)",
            name, header_bytes, kMaxSafetensorsHeader);
  MDN_CHECK(header_bytes <= bytes.size() - kLengthBytes,
            "{}: the header's length is given as {}, but only {} bytes follow (truncated?)", name,
            header_bytes, bytes.size() - kLengthBytes);
  const std::string_view text = as_text(bytes.subspan(kLengthBytes, header_bytes));
  MDN_CHECK(!text.empty() && text.front() == '{', "{}: the header must begin with '{{'", name);
  const std::span<const std::byte> data = bytes.subspan(kLengthBytes + header_bytes);

  const Json header = parse_json(text, name + " (header)");
  std::vector<TensorView> tensors;
  for (const auto& [key, value] : header.items()) {
    if (key != kMetadataKey) {
      tensors.push_back(parse_entry(key, value, name, data));
      continue;
    }
    Metadata given = parse_metadata(value, name);  // checked even when it is not wanted
    if (metadata != nullptr) {
      *metadata = std::move(given);
    }
  }
  // Empty tensors come before the tensor that begins where they stand.
  std::stable_sort(tensors.begin(), tensors.end(), [](const TensorView& a, const TensorView& b) {
    return std::pair(a.data.data(), a.data.size()) < std::pair(b.data.data(), b.data.size());
  });
  check_tiling(tensors, data, name);
  return tensors;
}

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path)
    : file_(path), tensors_(parse_safetensors(file_.bytes(), path.string(), &metadata_)) {
  for (size_t i = 0; i < tensors_.size(); ++i) {
    by_name_.emplace(tensors_[i].name, i);
  }
}

const TensorView* SafetensorsFile::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : &tensors_[found->second];
}

const TensorView& SafetensorsFile::at(std::string_view name) const {
  const TensorView* found = find(name);
  MDN_CHECK(found != nullptr, "{}: has no tensor \"{}\" among its {}", path().string(), name,
            tensors_.size());
  return *found;
}

SafetensorsSet::SafetensorsSet(const std::filesystem::path& path) : path_(path) {
  if (!std::filesystem::is_directory(path)) {
    if (path.extension() == ".json") {
      open_index(path);
    } else {
      add(std::make_unique<SafetensorsFile>(path));
    }
    return;
  }
  const bool single = std::filesystem::exists(path / kModelFile);
  const bool sharded = std::filesystem::exists(path / kModelIndexFile);
  MDN_CHECK(single || sharded, "{}: holds neither {} nor {}", path.string(), kModelFile,
            kModelIndexFile);
  MDN_CHECK(!(single && sharded),
            "{}: holds both {} and {}, perhaps of two saves; remove the one that is not meant",
            path.string(), kModelFile, kModelIndexFile);
  if (single) {
    add(std::make_unique<SafetensorsFile>(path / kModelFile));
  } else {
    open_index(path / kModelIndexFile);
  }
}

void SafetensorsSet::open_index(const std::filesystem::path& index) {
  const Json json = read_json(index);
  const JsonObject map = JsonObject(json, index.string()).object("weight_map");
  std::map<std::string, size_t> expected;  // shard: tensors it must hold
  for (const auto& [tensor, shard] : map.json().items()) {
    const std::string file = map.string(tensor);
    // Only plain names: an index must not reach outside its folder.
    MDN_CHECK(!file.empty() && file != "." && file != ".." && file.find('/') == std::string::npos &&
                  file.find('\0') == std::string::npos,
              "{}: tensor {} is in file {}; a plain file name is needed", index.string(),
              brief_json(tensor), brief_json(file));
    ++expected[file];
  }
  MDN_CHECK(!expected.empty(), "{}: \"weight_map\" names no tensor", index.string());
  for (const auto& [file, count] : expected) {
    add(std::make_unique<SafetensorsFile>(index.parent_path() / file));
    for (const TensorView& tensor : files_.back()->tensors()) {
      const auto entry = map.json().find(tensor.name);
      MDN_CHECK(entry != map.json().end(), "{}: holds tensor {}, which {} does not name",
                files_.back()->path().string(), brief_json(tensor.name), index.string());
      MDN_CHECK(*entry == file, "{}: holds tensor {}, which {} places in {}",
                files_.back()->path().string(), brief_json(tensor.name), index.string(),
                brief_json(*entry));
    }
    if (files_.back()->tensors().size() != count) {
      for (const auto& [tensor, shard] : map.json().items()) {
        MDN_CHECK(shard != file || files_.back()->find(tensor) != nullptr,
                  "{}: lacks tensor {}, which {} places there", files_.back()->path().string(),
                  brief_json(tensor), index.string());
      }
    }
  }
}

void SafetensorsSet::add(std::unique_ptr<SafetensorsFile> file) {
  for (const TensorView& tensor : file->tensors()) {
    MDN_CHECK(by_name_.emplace(tensor.name, &tensor).second, "{}: tensor {} stands in two shards",
              path_.string(), brief_json(tensor.name));
    tensors_.push_back(&tensor);
  }
  files_.push_back(std::move(file));
}

const TensorView* SafetensorsSet::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : found->second;
}

const TensorView& SafetensorsSet::at(std::string_view name) const {
  const TensorView* found = find(name);
  MDN_CHECK(found != nullptr, "{}: has no tensor \"{}\" among its {}", path_.string(), name,
            tensors_.size());
  return *found;
}

namespace {

void check_names(const std::vector<TensorInfo>& tensors, const std::filesystem::path& path) {
  std::unordered_set<std::string_view> names;
  for (const TensorInfo& tensor : tensors) {
    MDN_CHECK(tensor.name != kMetadataKey, "{}: a tensor cannot be called \"{}\"", path.string(),
              kMetadataKey);
    MDN_CHECK(names.insert(tensor.name).second, "{}: two tensors are called {}", path.string(),
              brief_json(tensor.name));
  }
}

/// Removes what an earlier save left: readers would take it for part of this one.
void remove_stale(const std::filesystem::path& folder, const std::vector<std::string>& written) {
  const std::set<std::string> keep(written.begin(), written.end());
  std::vector<std::filesystem::path> stale;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    unsigned shard = 0;
    unsigned shards = 0;
    int length = 0;
    const bool is_shard = std::sscanf(name.c_str(), "model-%5u-of-%5u.safetensors%n", &shard,
                                      &shards, &length) == 2 &&
                          length > 0 && static_cast<size_t>(length) == name.size();
    if ((is_shard || name == kModelFile || name == kModelIndexFile) && !keep.contains(name)) {
      stale.push_back(entry.path());
    }
  }
  for (const std::filesystem::path& path : stale) {
    std::filesystem::remove(path);
  }
}

}  // namespace

void write_safetensors(const std::filesystem::path& path, const std::vector<TensorInfo>& tensors,
                       const TensorBytes& bytes_of, const Metadata& metadata) {
  check_names(tensors, path);
  std::vector<const TensorInfo*> order;
  order.reserve(tensors.size());
  for (const TensorInfo& tensor : tensors) {
    order.push_back(&tensor);
  }
  std::stable_sort(order.begin(), order.end(), [](const TensorInfo* a, const TensorInfo* b) {
    return size_of(a->dtype) > size_of(b->dtype);
  });

  OrderedJson header = OrderedJson::object();
  if (!metadata.empty()) {
    header[kMetadataKey] = metadata;
  }
  uint64_t offset = 0;
  for (const TensorInfo* tensor : order) {
    uint64_t end = 0;
    MDN_CHECK(!__builtin_add_overflow(offset, byte_count(*tensor), &end),
              "{}: more than 2^64 bytes of tensors", path.string());
    header[tensor->name] = {{"dtype", name_of(tensor->dtype)},
                            {"shape", tensor->shape},
                            {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const OrderedJson::type_error& error) {
    MDN_THROW("{}: a tensor's name or the metadata is not UTF-8: {}", path.string(), error.what());
  }
  text.resize((kLengthBytes + text.size() + kDataAlignment - 1) / kDataAlignment * kDataAlignment -
                  kLengthBytes,
              ' ');
  MDN_CHECK(text.size() <= kMaxSafetensorsHeader, "{}: a header of {} bytes; at most {} is allowed",
            path.string(), text.size(), kMaxSafetensorsHeader);

  AtomicFile file(path);
  const uint64_t length = text.size();
  file.write(std::as_bytes(std::span(&length, 1)));
  file.write(text);
  for (const TensorInfo* tensor : order) {
    const std::span<const std::byte> bytes = bytes_of(*tensor);
    MDN_CHECK(bytes.size() == byte_count(*tensor),
              "{}: tensor {} of {} [{}] takes {} bytes, not {}", path.string(),
              brief_json(tensor->name), name_of(tensor->dtype), fmt::join(tensor->shape, ", "),
              byte_count(*tensor), bytes.size());
    file.write(bytes);
  }
  file.commit();
}

void write_safetensors(const std::filesystem::path& path, const std::vector<TensorView>& tensors,
                       const Metadata& metadata) {
  std::vector<TensorInfo> infos(tensors.begin(), tensors.end());
  std::unordered_map<std::string_view, std::span<const std::byte>> bytes;
  for (const TensorView& tensor : tensors) {
    bytes.emplace(tensor.name, tensor.data);
  }
  write_safetensors(
      path, infos, [&](const TensorInfo& info) { return bytes.at(info.name); }, metadata);
}

std::vector<std::string> write_model_safetensors(const std::filesystem::path& folder,
                                                 const std::vector<TensorInfo>& tensors,
                                                 const TensorBytes& bytes_of,
                                                 uint64_t max_shard_bytes,
                                                 const Metadata& metadata) {
  check_names(tensors, folder);
  std::vector<std::vector<TensorInfo>> shards(1);
  uint64_t shard_bytes = 0;
  uint64_t total_bytes = 0;
  for (const TensorInfo& tensor : tensors) {
    const uint64_t bytes = byte_count(tensor);
    if (!shards.back().empty() && shard_bytes + bytes > max_shard_bytes) {
      shards.emplace_back();
      shard_bytes = 0;
    }
    shards.back().push_back(tensor);
    shard_bytes += bytes;
    total_bytes += bytes;
  }

  std::vector<std::string> written;
  if (shards.size() == 1) {
    write_safetensors(folder / kModelFile, shards.front(), bytes_of, metadata);
    written.push_back(kModelFile);
  } else {
    MDN_CHECK(shards.size() <= 99999,
              "{}: {} shards of {} bytes; the names allow 99999, so choose larger ones",
              folder.string(), shards.size(), max_shard_bytes);
    Json index = {{"metadata", {{"total_size", total_bytes}}}, {"weight_map", Json::object()}};
    for (size_t i = 0; i < shards.size(); ++i) {
      const std::string name =
          fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
      write_safetensors(folder / name, shards[i], bytes_of, metadata);
      written.push_back(name);
      for (const TensorInfo& tensor : shards[i]) {
        index["weight_map"][tensor.name] = name;
      }
    }
    write_file_atomically(folder / kModelIndexFile, index.dump(2) + "\n");
    written.push_back(kModelIndexFile);
  }
  remove_stale(folder, written);
  return written;
}

}  // namespace mdn

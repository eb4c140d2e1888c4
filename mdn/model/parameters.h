// A model's parameters: the weight table with tensors in it.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "mdn/io/safetensors.h"
#include "mdn/model/config.h"
#include "mdn/model/weights.h"

namespace mdn::model {

struct Parameter {
  WeightSpec spec;
  at::Tensor value;
};

/// Every parameter in table order, found by its published name.
class Parameters {
 public:
  /// Drawn as published (docs of each Init), in float32 on the CPU from one generator, then
  /// converted: the same seed gives the same values on every device and thread count.
  static Parameters initialise(const Config& config, uint64_t seed,
                               at::ScalarType type = at::kFloat, c10::Device device = at::kCPU);

  /// From a model folder (config's table against its safetensors files) or one .safetensors file.
  /// Converted to `type`. Missing tensors, tensors the table does not know and wrong shapes are
  /// errors that name them; a stored copy of a tied head must equal the embeddings.
  static Parameters load(const Config& config, const std::filesystem::path& path,
                         at::ScalarType type = at::kFloat, c10::Device device = at::kCPU);

  /// Writes model.safetensors (sharded above `max_shard_bytes`) in the parameters' own dtype into a
  /// folder that exists.
  void save(const std::filesystem::path& folder,
            uint64_t max_shard_bytes = kDefaultShardBytes) const;

  const std::vector<Parameter>& entries() const { return entries_; }
  std::vector<Parameter>& entries() { return entries_; }
  bool has(std::string_view name) const { return index_.count(std::string(name)) != 0; }
  /// Throws when there is none of that name.
  const at::Tensor& at(std::string_view name) const;

  /// Turns gradients on or off for all.
  void set_requires_grad(bool value);
  int64_t count() const;  // elements

 private:
  void add(WeightSpec spec, at::Tensor value);

  std::vector<Parameter> entries_;
  std::unordered_map<std::string, size_t> index_;
};

/// A stored tensor as a torch tensor of its own memory on the CPU.
at::Tensor to_tensor(const TensorView& view);

/// A contiguous CPU tensor's bytes, and its description, for the safetensors writer.
std::span<const std::byte> bytes_of(const at::Tensor& tensor);
TensorInfo info_of(const std::string& name, const at::Tensor& tensor);

}  // namespace mdn::model

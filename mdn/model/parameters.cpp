#include "mdn/model/parameters.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <cmath>
#include <cstring>

#include "mdn/core/error.h"

namespace mdn::model {
namespace {

at::Tensor draw(const WeightSpec& spec, const Config& config, const at::Tensor& previous,
                const at::Generator& generator) {
  const auto options = at::TensorOptions().dtype(at::kFloat);
  const auto uniform = [&] { return at::rand(spec.shape, generator, options); };
  switch (spec.init) {
    case Init::kNormal:
      return at::randn(spec.shape, generator, options) * config.initializer_range;
    case Init::kZeros:
      return at::zeros(spec.shape, options);
    case Init::kOnes:
      return at::ones(spec.shape, options);
    case Init::kLogUniform:
      // 1 - u lies in (0, 1]: the logarithm is finite
      return (spec.init_low + (1 - uniform()) * (spec.init_high - spec.init_low)).log();
    case Init::kDt: {
      // dt = max(exp(u (ln high - ln low) + ln low), floor); stored as dt + ln(-expm1(-dt))
      const double low = std::log(spec.init_low), high = std::log(spec.init_high);
      const at::Tensor dt = (uniform() * (high - low) + low).exp().clamp_min(spec.init_floor);
      return dt + (-at::expm1(-dt)).log();
    }
    case Init::kUniform:
      return spec.init_low + uniform() * (spec.init_high - spec.init_low);
    case Init::kSame:
      return previous.clone();
  }
  return {};
}

at::ScalarType scalar_type_of(const TensorView& view) {
  switch (view.dtype) {
    case FileDType::kF64:
      return at::kDouble;
    case FileDType::kF32:
      return at::kFloat;
    case FileDType::kF16:
      return at::kHalf;
    case FileDType::kBF16:
      return at::kBFloat16;
    case FileDType::kI64:
      return at::kLong;
    case FileDType::kI32:
      return at::kInt;
    case FileDType::kI16:
      return at::kShort;
    case FileDType::kI8:
      return at::kChar;
    case FileDType::kU8:
      return at::kByte;
    case FileDType::kBool:
      return at::kBool;
    default:
      MDN_THROW("tensor '{}' has dtype {}, which is not supported here", view.name,
                name_of(view.dtype));
  }
}

FileDType file_dtype_of(at::ScalarType type) {
  switch (type) {
    case at::kDouble:
      return FileDType::kF64;
    case at::kFloat:
      return FileDType::kF32;
    case at::kHalf:
      return FileDType::kF16;
    case at::kBFloat16:
      return FileDType::kBF16;
    case at::kLong:
      return FileDType::kI64;
    case at::kInt:
      return FileDType::kI32;
    case at::kByte:
      return FileDType::kU8;
    case at::kBool:
      return FileDType::kBool;
    default:
      MDN_THROW("a tensor of dtype {} cannot be saved", c10::toString(type));
  }
}

std::string list(const std::vector<std::string>& names) {
  constexpr size_t kShown = 8;
  const std::vector<std::string> shown(names.begin(),
                                       names.begin() + std::min(names.size(), kShown));
  return fmt::format(
      "{}{}", fmt::join(shown, ", "),
      names.size() > kShown ? fmt::format(" and {} more", names.size() - kShown) : "");
}

}  // namespace

at::Tensor to_tensor(const TensorView& view) {
  at::Tensor tensor = at::empty(view.shape, scalar_type_of(view));
  if (!view.data.empty()) {
    std::memcpy(tensor.mutable_data_ptr(), view.data.data(), view.data.size());
  }
  return tensor;
}

std::span<const std::byte> bytes_of(const at::Tensor& tensor) {
  MDN_CHECK(tensor.is_cpu() && tensor.is_contiguous(),
            "bytes_of: the tensor must be contiguous on "
            "the CPU");
  return {static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()};
}

TensorInfo info_of(const std::string& name, const at::Tensor& tensor) {
  return {name, file_dtype_of(tensor.scalar_type()), tensor.sizes().vec()};
}

Parameters Parameters::initialise(const Config& config, uint64_t seed, at::ScalarType type,
                                  c10::Device device) {
  const at::Generator generator = at::detail::createCPUGenerator(seed);
  Parameters parameters;
  at::Tensor previous;
  for (WeightSpec& spec : weight_table(config)) {
    previous = draw(spec, config, previous, generator);
    parameters.add(std::move(spec), previous.to(device, type));
  }
  return parameters;
}

Parameters Parameters::load(const Config& config, const std::filesystem::path& path,
                            at::ScalarType type, c10::Device device) {
  const SafetensorsSet files(path);
  Parameters parameters;
  std::vector<std::string> missing, unknown;
  for (WeightSpec& spec : weight_table(config)) {
    const TensorView* view = files.find(spec.name);
    if (!view) {
      missing.push_back(spec.name);
      continue;
    }
    MDN_CHECK(view->shape == spec.shape, "{}: '{}' has shape [{}]; the config makes it [{}]",
              path.string(), spec.name, fmt::join(view->shape, ", "), fmt::join(spec.shape, ", "));
    const at::Tensor value = to_tensor(*view);
    MDN_CHECK(at::isFloatingType(value.scalar_type()), "{}: '{}' has dtype {}; weights are floats",
              path.string(), spec.name, name_of(view->dtype));
    parameters.add(std::move(spec), value.to(device, type));
  }
  for (const TensorView* view : files.tensors()) {
    if (parameters.has(view->name)) {
      continue;
    }
    const std::string shared = embeddings_name(config);
    if (config.tie_word_embeddings && view->name == "lm_head.weight" && parameters.has(shared)) {
      const TensorView& embeddings = files.at(shared);
      MDN_CHECK(view->dtype == embeddings.dtype && view->data.size() == embeddings.data.size() &&
                    std::memcmp(view->data.data(), embeddings.data.data(), view->data.size()) == 0,
                "{}: the config ties lm_head.weight to {}, but the file has a different "
                "lm_head.weight",
                path.string(), shared);
      continue;
    }
    unknown.push_back(view->name);
  }
  MDN_CHECK(missing.empty(), "{}: missing weights: {}", path.string(), list(missing));
  MDN_CHECK(unknown.empty(), "{}: weights that the config does not have: {}", path.string(),
            list(unknown));
  return parameters;
}

void Parameters::save(const std::filesystem::path& folder, uint64_t max_shard_bytes) const {
  std::vector<TensorInfo> infos;
  for (const Parameter& p : entries_) {
    infos.push_back(info_of(p.spec.name, p.value));
  }
  at::Tensor current;  // keeps the bytes alive until the writer asks for the next tensor
  write_model_safetensors(
      folder, infos,
      [&](const TensorInfo& info) {
        current = at(info.name).detach().to(at::kCPU).contiguous();
        return bytes_of(current);
      },
      max_shard_bytes);
}

const at::Tensor& Parameters::at(std::string_view name) const {
  const auto found = index_.find(std::string(name));
  MDN_CHECK(found != index_.end(), "the model has no parameter '{}'", name);
  return entries_[found->second].value;
}

void Parameters::set_requires_grad(bool value) {
  for (Parameter& p : entries_) {
    p.value.requires_grad_(value);
  }
}

int64_t Parameters::count() const {
  int64_t n = 0;
  for (const Parameter& p : entries_) {
    n += p.value.numel();
  }
  return n;
}

void Parameters::add(WeightSpec spec, at::Tensor value) {
  index_.emplace(spec.name, entries_.size());
  entries_.push_back({std::move(spec), std::move(value)});
}

}  // namespace mdn::model

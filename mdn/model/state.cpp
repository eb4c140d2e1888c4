// Saving and loading of decoder states.
#include <ATen/ATen.h>

#include <charconv>

#include "mdn/core/error.h"
#include "mdn/kernels/momentum_delta_rule.h"
#include "mdn/model/decoder.h"

namespace mdn::model {
namespace {

constexpr std::string_view kLayerPrefix = "layers.";

std::string name_of_field(size_t layer, const char* field) {
  return fmt::format("{}{}.{}", kLayerPrefix, layer, field);
}

}  // namespace

void save_state(const std::filesystem::path& path, const DecoderState& state, const Config& config,
                const ExtraTensors& extra) {
  DecoderState copy = state;  // tensors are shared; only the handles are copied
  std::vector<at::Tensor> tensors;
  std::vector<TensorView> views;
  const auto add = [&](const std::string& name, const at::Tensor& tensor) {
    tensors.push_back(tensor.detach().to(at::kCPU).contiguous());
    TensorView view;
    static_cast<TensorInfo&>(view) = info_of(name, tensors.back());
    view.data = bytes_of(tensors.back());
    views.push_back(std::move(view));
  };
  for (size_t i = 0; i < copy.layers.size(); ++i) {
    for (const auto& [field, tensor] : layers::state_fields(copy.layers[i])) {
      if (tensor->defined()) {
        add(name_of_field(i, field), *tensor);
      }
    }
  }
  MDN_CHECK(!views.empty(), "{}: the state is empty; read some tokens first", path.string());
  for (const auto& [name, tensor] : extra) {
    MDN_CHECK(!name.starts_with(kLayerPrefix), "{}: '{}' is a name of the state's own tensors",
              path.string(), name);
    add(name, tensor);
  }
  write_safetensors(path, views,
                    {{"format", "mdn-state"},
                     {"layout_version", std::to_string(kernels::kStateLayoutVersion)},
                     {"model_type", config.model_type},
                     {"position", std::to_string(state.position)}});
}

DecoderState load_state(const std::filesystem::path& path, const Config& config, c10::Device device,
                        ExtraTensors* extra) {
  const SafetensorsFile file(path);
  const auto meta = [&](const char* key) -> std::string {
    const auto found = file.metadata().find(key);
    MDN_CHECK(found != file.metadata().end(), "{}: not a saved state: its metadata has no '{}'",
              path.string(), key);
    return found->second;
  };
  MDN_CHECK(meta("format") == "mdn-state", "{}: not a saved state: its format is '{}'",
            path.string(), meta("format"));
  MDN_CHECK(meta("layout_version") == std::to_string(kernels::kStateLayoutVersion),
            "{}: state layout version {}; this program reads {}", path.string(),
            meta("layout_version"), kernels::kStateLayoutVersion);
  MDN_CHECK(meta("model_type") == config.model_type, "{}: state of a {} model; this is a {}",
            path.string(), meta("model_type"), config.model_type);
  DecoderState state;
  const std::string position = meta("position");
  const auto [end, error] =
      std::from_chars(position.data(), position.data() + position.size(), state.position);
  MDN_CHECK(error == std::errc() && end == position.data() + position.size() && state.position > 0,
            "{}: position '{}' must be a positive integer", path.string(), position);

  int64_t B = -1;
  size_t used = 0;
  const std::vector<Block> blocks = outline(config);
  for (size_t i = 0; i < blocks.size(); ++i) {
    state.layers.push_back(layers::new_state(blocks[i].mixer));
    if (auto* attention = std::get_if<layers::AttentionState>(&state.layers[i])) {
      attention->position = state.position;
    }
    for (const auto& [field, tensor] : layers::state_fields(state.layers[i])) {
      if (layers::state_shape(blocks[i].mixer, field, 1).empty()) {
        continue;
      }
      const TensorView& view = file.at(name_of_field(i, field));
      if (B < 0 && !view.shape.empty()) {
        B = view.shape[0];
      }
      const std::vector<int64_t> want = layers::state_shape(blocks[i].mixer, field, B);
      bool fits = view.shape.size() == want.size();
      for (size_t d = 0; fits && d < want.size(); ++d) {
        fits = want[d] == -1 || want[d] == view.shape[d];
      }
      MDN_CHECK(fits, "{}: '{}' has shape [{}]; this model needs [{}]", path.string(), view.name,
                fmt::join(view.shape, ", "), fmt::join(want, ", "));
      *tensor = to_tensor(view).to(device);
      ++used;
    }
  }
  if (extra) {
    extra->clear();
    for (const TensorView& view : file.tensors()) {
      if (!view.name.starts_with(kLayerPrefix)) {
        (*extra)[view.name] = to_tensor(view);
        ++used;
      }
    }
  }
  MDN_CHECK(used == file.tensors().size(),
            "{}: {} tensors, of which this model has {}: the state of another model", path.string(),
            file.tensors().size(), used);
  return state;
}

}  // namespace mdn::model

// The decoder: embeddings, blocks of mixer and MLP, final norm, head. One for every family; which
// mixer a layer has is data (Config::layers).
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <optional>
#include <vector>

#include "mdn/layers/sequences.h"
#include "mdn/model/blocks.h"
#include "mdn/model/config.h"
#include "mdn/model/parameters.h"

namespace mdn::model {

/// What B sequences carry from call to call, one entry a layer; made by Decoder::new_state.
/// Memory is constant but for attention layers without a window.
struct DecoderState {
  std::vector<layers::MixerState> layers;
  int64_t position = 0;  // tokens read so far
};

/// Called before each layer with its index and the residual stream [B, T, D] that it reads.
using LayerObserver = std::function<void(size_t layer, const at::Tensor& x)>;

class Decoder {
 public:
  /// Binds the parameters by name; tensors are shared, so an optimiser that updates them in place
  /// updates the model. Activations are of `compute_type`, by default the parameters' own: float32
  /// parameters with bfloat16 activations are mixed precision, with float32 gradients.
  Decoder(Config config, Parameters parameters,
          std::optional<at::ScalarType> compute_type = std::nullopt);

  /// Token ids [B, T] int64 -> final hidden states [B, T, D], normalised. With a state the tokens
  /// continue it (inference only); packed sequences need a fresh one, which becomes that of all of
  /// them, [N, ...], and a model without attention layers. `observe` sees each layer's input.
  at::Tensor hidden(const at::Tensor& ids, const layers::Sequences& sequences = {},
                    DecoderState* state = nullptr, const LayerObserver& observe = {}) const;

  /// Hidden states [..., D] -> logits [..., vocab], in the model's dtype.
  at::Tensor logits(const at::Tensor& hidden) const;

  /// Mean cross-entropy in nats over the targets that are not -100; ids, targets [B, T] int64,
  /// where targets[b, t] is the token that should follow ids[b, t]. Computed in float32 (float64
  /// models: float64); a scalar.
  at::Tensor loss(const at::Tensor& ids, const at::Tensor& targets,
                  const layers::Sequences& sequences = {}) const;

  /// A fresh start; tensors are made when the first tokens come.
  DecoderState new_state() const;

  const Config& config() const { return config_; }
  const Parameters& parameters() const { return parameters_; }
  Parameters& parameters() { return parameters_; }

  /// What the model computes with, for programs that run it in another way (generate/stepper.h).
  const DecoderWeights& weights() const { return weights_; }
  at::ScalarType compute_type() const { return compute_type_; }

 private:
  Config config_;
  Parameters parameters_;
  DecoderWeights weights_;
  at::ScalarType compute_type_;
};

/// Further tensors that a state file carries, by names that no layer uses ("layers." is taken).
using ExtraTensors = std::map<std::string, at::Tensor>;

/// Writes a state with its tensors (safetensors; metadata: state layout version, model type,
/// position) and reads it back for the same config; any mismatch is an error that names it. Extra
/// tensors (on the CPU) are kept as they are; when loading without a place for them, a file that
/// has some is refused.
void save_state(const std::filesystem::path& path, const DecoderState& state, const Config& config,
                const ExtraTensors& extra = {});
DecoderState load_state(const std::filesystem::path& path, const Config& config,
                        c10::Device device = at::kCPU, ExtraTensors* extra = nullptr);

/// Reads config.json and the weights of a model folder.
Decoder load_decoder(const std::filesystem::path& folder, at::ScalarType type = at::kFloat,
                     c10::Device device = at::kCPU);

}  // namespace mdn::model

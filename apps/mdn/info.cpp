// mdn info: what a configuration amounts to, without allocating it.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <map>

#include "apps/mdn/commands.h"
#include "mdn/core/error.h"
#include "mdn/model/blocks.h"
#include "mdn/model/config.h"
#include "mdn/model/weights.h"

namespace mdn::app {
namespace {

using model::Config;

struct InfoOptions {
  std::string config;
  int64_t batch = 1;
  int64_t length = 4096;
  bool weights = false;
};

// 417,537,012
std::string grouped(int64_t n) {
  const std::string digits = std::to_string(n);
  std::string text;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) {
      text += ',';
    }
    text += digits[i];
  }
  return text;
}

std::string size_text(double bytes) {
  const char* units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  size_t unit = 0;
  while (bytes >= 1024 && unit + 1 < std::size(units)) {
    bytes /= 1024;
    ++unit;
  }
  return fmt::format("{:.1f} {}", bytes, units[unit]);
}

// Elements that a token leaves for the backward pass in a mixer, counted as the layer is written:
// projections keep their input, the operator q, k, v, o and the gates.
int64_t activations(const layers::HeadOptions& o, int64_t gates) {
  const int64_t inputs = 3 * (2 * o.keys() + o.values());  // projections, convolutions, silu
  return inputs + 4 * o.values() + gates;                  // o, gate, norm, product; gates
}
int64_t activations(const layers::MomentumDeltaNet& m) {
  return activations(m.options, 16 * m.options.num_value_heads);
}
int64_t activations(const layers::GatedDeltaNet& m) {
  return activations(m.options, 8 * m.options.num_value_heads);
}
int64_t activations(const layers::Comba& m) {
  return activations(m.options, 12 * m.options.num_value_heads);
}
int64_t activations(const layers::KimiDeltaAttention& m) {
  // decay, its product and the step size have a number a key channel
  return activations(m.options, 4 * m.options.keys() + 8 * m.options.num_value_heads);
}
int64_t activations(const layers::Mamba2& m) {
  // projection, convolution and silu; then x dt, o, gate, norm and product; decay and step size
  return 3 * m.options.convolved() + 6 * m.options.inner() + 8 * m.options.num_heads;
}
int64_t activations(const layers::Attention& m) {
  return (3 * m.options.num_heads + 4 * m.options.num_kv_heads) * m.options.head_dim;
}

int64_t activations_per_token(const Config& c, const std::vector<model::Block>& blocks) {
  const int64_t D = c.hidden_size, I = c.intermediate_size;
  int64_t total = 2 * D + c.vocab_size;  // embeddings, final norm, logits
  for (const model::Block& block : blocks) {
    total += 2 * D + 2 * D + 4 * I;  // residuals, norms, the MLP's gate, up, silu and product
    total += std::visit([](const auto& mixer) { return activations(mixer); }, block.mixer);
  }
  return total;
}

// Elements that a token leaves in a mixer on a GPU. Where the block makes the rest again in the
// backward pass (mdn/ops/residual_mixer.h) they are the projections; the published momentum block
// keeps o and what its operator saves, 292 bytes a head in 16-bit types, besides.
int64_t kept_on_gpu(const layers::MomentumDeltaNet& m) {
  const auto& o = m.options;
  const bool full = o.gate == layers::GateKind::kFull;
  if (o.published_rule() && full && o.use_short_conv) {
    return 2 * o.keys() + 3 * o.values() + (4 + 292 / 2) * o.num_value_heads;
  }
  if (!m.parts()) {
    return activations(m);
  }
  const int64_t gate = full ? o.values() : o.gate == layers::GateKind::kLowRank ? o.gate_rank : 0;
  const int64_t gates = o.momentum == layers::MomentumKind::kNone ? 3 : 4;
  return 2 * o.keys() + o.values() + gate + gates * o.num_value_heads;
}
int64_t delta_projections(const layers::HeadOptions& o, bool gate) {
  return 2 * o.keys() + (gate ? 2 : 1) * o.values() + 2 * o.num_value_heads;
}
int64_t kept_on_gpu(const layers::GatedDeltaNet& m) {
  return delta_projections(m.options, m.options.gate);
}
int64_t kept_on_gpu(const layers::Comba& m) {
  return delta_projections(m.options, m.options.gate);
}
int64_t kept_on_gpu(const layers::KimiDeltaAttention& m) {
  const auto& o = m.options;
  return 2 * o.keys() + o.values() + 2 * o.value_dim + o.num_value_heads;
}
int64_t kept_on_gpu(const layers::Mamba2& m) {
  const auto& o = m.options;
  return o.bias ? activations(m) : o.inner() + o.convolved() + o.num_heads;
}
int64_t kept_on_gpu(const layers::Attention& m) {
  return activations(m);
}

int64_t kept_per_token_on_gpu(const Config& c, const std::vector<model::Block>& blocks) {
  const int64_t D = c.hidden_size, I = c.intermediate_size;
  const int64_t residual = c.residual_in_fp32 ? 2 * D : D;  // in 16-bit elements
  int64_t total = 2 * D;                                    // final norm; logits are not kept
  for (const model::Block& block : blocks) {
    total += residual + (I > 0 ? D + 2 * I : 0);
    total += std::visit([](const auto& mixer) { return kept_on_gpu(mixer); }, block.mixer);
  }
  return total;
}

// Bytes that one sequence carries: states in float32, what convolutions and attention keep in the
// model's type.
struct StateBytes {
  double fixed = 0;  // states of linear-attention layers
  double conv = 0;   // elements of convolutions' inputs
  double kv = 0;     // elements of the KV cache
};

StateBytes state_bytes(const std::vector<model::Block>& blocks, int64_t length) {
  StateBytes bytes;
  for (const model::Block& block : blocks) {
    layers::MixerState state = layers::new_state(block.mixer);
    for (const auto& [field, tensor] : layers::state_fields(state)) {
      double size = layers::state_shape(block.mixer, field, 1).empty() ? 0 : 1;
      for (int64_t n : layers::state_shape(block.mixer, field, 1)) {
        size *= static_cast<double>(std::abs(n));  // -1, of attention: times the tokens kept
      }
      if (const auto* attention = std::get_if<layers::Attention>(&block.mixer)) {
        const int64_t window = attention->options.window_size.value_or(length);
        bytes.kv += size * static_cast<double>(std::min(length, window));
      } else if (std::string_view(field).starts_with("conv")) {
        bytes.conv += size;
      } else {
        bytes.fixed += 4 * size;
      }
    }
  }
  return bytes;
}

// One line for each kind of layer.
std::string describe(const layers::HeadOptions& o) {
  return fmt::format("{} query/key heads of {}, {} value heads of {}", o.num_heads, o.head_dim,
                     o.num_value_heads, o.value_dim);
}
std::string describe(const layers::Mamba2Options& o) {
  return fmt::format("{} heads of {}, states of {}, {} groups", o.num_heads, o.head_dim,
                     o.state_size, o.num_groups);
}
std::string describe(const layers::AttentionOptions& o) {
  return fmt::format("{} query heads of {}, {} key/value heads{}", o.num_heads, o.head_dim,
                     o.num_kv_heads,
                     o.window_size ? fmt::format(", window {}", *o.window_size) : "");
}

// Checks that sizes in bytes fit their integers.
void check_countable(const std::vector<model::WeightSpec>& table, const std::string& name) {
  double parameters = 0;
  for (const model::WeightSpec& spec : table) {
    double count = 1;
    for (int64_t n : spec.shape) {
      count *= static_cast<double>(n);
    }
    parameters += count;
  }
  MDN_CHECK(parameters < 0x1p55, "{}: {:.3g} parameters; sizes of up to 2^55 are counted", name,
            parameters);
}

void run_info(const InfoOptions& options) {
  const Config c = model::read_config(options.config);
  const std::vector<model::WeightSpec> table = model::weight_table(c);
  check_countable(table, options.config);
  std::map<std::string, int64_t> parts;
  int64_t parameters = 0, decayed = 0;
  for (const model::WeightSpec& spec : table) {
    if (options.weights) {
      fmt::print("{:<60} [{}]{}\n", spec.name, fmt::join(spec.shape, ", "),
                 spec.decay ? "" : "  no decay");
    }
    parts[spec.part] += spec.numel();
    parameters += spec.numel();
    decayed += spec.decay ? spec.numel() : 0;
  }
  const std::vector<model::Block> blocks = model::outline(c);
  fmt::print("{}: {}, {} layers, width {}, MLP {}, vocabulary {}{}\n", options.config, c.model_type,
             blocks.size(), c.hidden_size, c.intermediate_size, c.vocab_size,
             c.tie_word_embeddings ? ", tied head" : "");
  std::map<std::string, int64_t> kinds;
  for (size_t i = 0; i < blocks.size(); ++i) {
    const auto line =
        std::visit([](const auto& m) { return describe(m.options); }, blocks[i].mixer);
    kinds[fmt::format("{}: {}", model::name_of(c.layers[i]), line)] += 1;
  }
  for (const auto& [kind, count] : kinds) {
    fmt::print("{} x {}\n", count, kind);
  }
  fmt::print("\n");

  fmt::print("parameters          {:>16}\n", grouped(parameters));
  for (const auto& [part, count] : parts) {
    fmt::print("  {:<18}{:>16}  {:5.1f}%\n", part, grouped(count),
               100.0 * static_cast<double>(count) / static_cast<double>(parameters));
  }
  fmt::print("  with weight decay {:>16}\n\n", grouped(decayed));

  const auto P = static_cast<double>(parameters);
  const double tokens = static_cast<double>(options.batch * options.length);
  const StateBytes state = state_bytes(blocks, options.length);
  fmt::print("memory                        float32     bfloat16\n");
  fmt::print("  weights                 {:>11}  {:>11}\n", size_text(4 * P), size_text(2 * P));
  fmt::print("  gradients               {:>11}  {:>11}\n", size_text(4 * P), size_text(4 * P));
  fmt::print("  AdamW, float32          {:>11}  {:>11}  (bfloat16: and float32 weights, {})\n",
             size_text(8 * P), size_text(8 * P), size_text(4 * P));
  const double activations = static_cast<double>(activations_per_token(c, blocks)) * tokens;
  const double kept = static_cast<double>(kept_per_token_on_gpu(c, blocks)) * tokens;
  fmt::print("  activations, {} x {}, estimated\n", options.batch, options.length);
  fmt::print("    on a CPU              {:>11}  {:>11}\n", size_text(4 * activations),
             size_text(2 * activations));
  fmt::print("    on a GPU              {:>11}  {:>11}  (the rest is made again)\n",
             size_text(4 * kept), size_text(2 * kept));
  if (state.fixed > 0) {
    fmt::print("  state of a sequence     {:>11}  {:>11}  (S, M: float32 always; any length)\n",
               size_text(state.fixed + 4 * state.conv), size_text(state.fixed + 2 * state.conv));
  }
  if (state.kv > 0) {
    fmt::print("  KV cache at {:<6}      {:>11}  {:>11}\n", options.length, size_text(4 * state.kv),
               size_text(2 * state.kv));
  }
}

}  // namespace

void add_info(CLI::App& program) {
  auto options = std::make_shared<InfoOptions>();
  CLI::App* command = program.add_subcommand(
      "info",
      "Parameters by part and memory of weights, optimiser, activations and states of a\n"
      "configuration. Nothing of that size is allocated.");
  command->add_option("CONFIG", options->config, "a config.json, or a folder with one")
      ->required()
      ->check(CLI::ExistingPath);
  command->add_option("--batch", options->batch, "rows, for the activations")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--length", options->length, "tokens a row")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_flag("--weights", options->weights, "list every parameter with its shape");
  command->footer("Example: mdn info configs/mdn_400m.json --batch 8");
  command->callback([options] { run_info(*options); });
}

}  // namespace mdn::app

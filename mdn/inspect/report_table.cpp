#include <cmath>

#include "mdn/core/error.h"
#include "mdn/inspect/report.h"

namespace mdn::inspect {
namespace {

std::string range_text(const Distribution& d) {
  return fmt::format("{:.2f} [{:.2f} {:.2f}]", d.median(), d.quantiles[1], d.quantiles[5]);
}

std::string life_cell(const Distribution& d) {
  if (d.count == 0) {
    return "-";
  }
  return std::isfinite(d.median()) ? fmt::format("{:.3g}", d.median()) : "inf";
}

const Distribution* find(const HeadReport& head, const std::string& name) {
  for (const auto& [key, values] : head.gates) {
    if (key == name) {
      return &values;
    }
  }
  return nullptr;
}

}  // namespace

std::string report_table(const Report& report) {
  const Source& s = report.source;
  std::string out = fmt::format(
      "{}: {}, {} tokens of {}, {:.3f} nats a token\n"
      "gates: median [5% 95%] over tokens; half-lives in tokens, medians (docs/inspect.md)\n\n",
      s.model, s.model_type, s.tokens, s.text, s.loss);
  const auto line = [&](const std::string& layer, const std::string& head,
                        const std::vector<std::string>& gates,
                        const std::vector<std::string>& rest) {
    out += fmt::format("{:>5} {:>4}", layer, head);
    for (const std::string& text : gates) {
      out += fmt::format("  {:<16}", text);
    }
    for (const std::string& text : rest) {
      out += fmt::format(" {:>7}", text);
    }
    out += '\n';
  };
  bool mixed = false;
  for (const LayerReport& layer : report.layers) {
    for (const HeadReport& head : layer.heads) {
      mixed = mixed || find(head, "nu") != nullptr;
    }
  }
  std::vector<std::string> names = {"alpha", "mu", "beta", "eta"};
  if (mixed) {
    names.push_back("nu");
  }
  line("layer", "head", names, {"S", "M", "write", "key", "|root|", "complex", "outside"});
  for (const LayerReport& layer : report.layers) {
    if (layer.heads.empty()) {
      out += fmt::format("{:>5}       {}: no gates\n", layer.layer, layer.kind);
    }
    for (size_t i = 0; i < layer.heads.size(); ++i) {
      const HeadReport& head = layer.heads[i];
      std::vector<std::string> gates;
      for (const std::string& name : names) {
        const Distribution* values = find(head, name);
        gates.push_back(values ? range_text(*values) : "-");
      }
      line(std::to_string(layer.layer), std::to_string(i), gates,
           {life_cell(head.half_life.S), life_cell(head.half_life.M),
            life_cell(head.half_life.write), life_cell(head.half_life.key),
            fmt::format("{:.3f}", head.radius.median()),
            fmt::format("{:.1f}%", 100 * head.share_complex),
            fmt::format("{:.2f}%", 100 * head.share_outside)});
    }
  }
  return out;
}

}  // namespace mdn::inspect

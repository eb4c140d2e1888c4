#include "mdn/inspect/report.h"

#include <cmath>
#include <map>

#include "mdn/core/error.h"

namespace mdn::inspect {
namespace {

constexpr int kBins = 40;

Histogram gate_bins(const std::string& name) {
  return {0, name == "eta" ? 2.0 : 1.0, kBins, false};
}

// Half-lives from a tenth of a token to ten thousand.
Histogram life_bins() {
  return {0.1, 1e4, kBins, true};
}

void check_finite(const LayerGates& layer, size_t head, const std::string& name,
                  const std::vector<double>& values) {
  for (size_t t = 0; t < values.size(); ++t) {
    MDN_CHECK(std::isfinite(values[t]),
              "layer {} head {}: {} is {} at token {}: the model is broken", layer.layer, head,
              name, values[t], t);
  }
}

HeadReport make_head(const LayerGates& layer, size_t head) {
  const HeadGates& g = layer.heads[head];
  HeadReport report;
  const std::pair<const char*, const std::vector<double>*> gates[] = {
      {"alpha", &g.alpha}, {"mu", &g.mu}, {"beta", &g.beta}, {"eta", &g.eta}, {"nu", &g.nu}};
  for (const auto& [name, values] : gates) {
    if (!values->empty()) {
      check_finite(layer, head, name, *values);
      Histogram bins = gate_bins(name);
      for (const double value : *values) {
        bins.high = value > bins.high ? 2 : bins.high;  // beta with negative eigenvalues
      }
      report.gates.emplace_back(name, distribution(*values, bins));
    }
  }
  std::vector<double> S, M, key, radius;
  int64_t complex = 0, outside = 0;
  for (int64_t t = 0; t < g.tokens(); ++t) {
    const auto at = static_cast<size_t>(t);
    const auto lambda = eigenvalues(g, t);
    const size_t many = g.momentum() ? 2 : 1;
    double largest = 0;
    for (size_t i = 0; i < many; ++i) {
      report.plane.add(lambda[i]);
      largest = std::max(largest, std::abs(lambda[i]));
    }
    complex += lambda[0].imag() != 0 ? 1 : 0;
    outside += largest > kOutside ? 1 : 0;
    radius.push_back(largest);
    key.push_back(half_life(largest));
    S.push_back(half_life(g.alpha[at]));
    if (g.momentum()) {
      M.push_back(half_life(g.mu[at]));
    }
  }
  report.share_complex = double(complex) / double(g.tokens());
  report.share_outside = double(outside) / double(g.tokens());
  report.radius = distribution(radius, {0, Plane::kLimit, kBins, false});
  report.half_life = {.S = distribution(S, life_bins()),
                      .M = distribution(M, life_bins()),
                      .write = distribution(write_half_lives(g), life_bins()),
                      .key = distribution(key, life_bins())};
  return report;
}

}  // namespace

Report make_report(const Source& source, const std::vector<LayerGates>& layers) {
  Report report{.source = source, .layers = {}};
  std::map<std::string, int64_t> without;
  bool any = false;
  for (const LayerGates& layer : layers) {
    LayerReport& out = report.layers.emplace_back();
    out.layer = layer.layer;
    out.kind = layer.kind;
    out.rule = layer.rule;
    for (size_t head = 0; head < layer.heads.size(); ++head) {
      out.momentum = layer.heads[head].momentum();
      out.heads.push_back(make_head(layer, head));
      any = true;
    }
    without[layer.kind] += layer.heads.empty() ? 1 : 0;
  }
  std::string kinds;
  for (const auto& [kind, count] : without) {
    kinds += fmt::format("{}{} {}", kinds.empty() ? "" : ", ", count, kind);
  }
  MDN_CHECK(any,
            "{}: no layer has gates to show (a decay and a step size for each head and token, as "
            "momentum_deltanet, gated_deltanet and comba have them); its layers: {}",
            source.model, kinds);
  return report;
}

}  // namespace mdn::inspect

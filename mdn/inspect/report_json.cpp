#include <fmt/format.h>

#include <cmath>

#include "mdn/inspect/report.h"

namespace mdn::inspect {
namespace {

// JSON has no infinity: "inf" in its place, so that it is not taken for a missing number.
OrderedJson json_number(double value) {
  return std::isfinite(value) ? OrderedJson(value) : OrderedJson("inf");
}

OrderedJson json_of(const Distribution& d) {
  OrderedJson quantiles;
  for (size_t i = 0; i < kProbabilities.size(); ++i) {
    quantiles[fmt::format("{}", kProbabilities[i])] = json_number(d.quantiles[i]);
  }
  const Histogram& h = d.histogram;
  return {{"count", d.count},
          {"mean", json_number(d.mean)},
          {"quantiles", quantiles},
          {"histogram",
           {{"low", h.low},
            {"high", h.high},
            {"scale", h.logarithmic ? "logarithmic" : "linear"},
            {"below", h.below},
            {"above", h.above},
            {"counts", h.counts}}}};
}

OrderedJson json_of(const Plane& plane) {
  OrderedJson cells = OrderedJson::array();
  for (const auto& [cell, count] : plane.cells) {
    cells.push_back({cell.first, cell.second, count});
  }
  return {{"low", -Plane::kLimit},
          {"high", Plane::kLimit},
          {"cells_a_side", Plane::kCells},
          {"beyond", plane.beyond},
          {"counts", cells}};
}

OrderedJson json_of(const HeadReport& head, size_t index, bool momentum) {
  OrderedJson out = {{"head", index}};
  for (const auto& [name, values] : head.gates) {
    out[name] = json_of(values);
  }
  out["half_life"] = {{"S", json_of(head.half_life.S)}};
  if (momentum) {
    out["half_life"]["M"] = json_of(head.half_life.M);
  }
  out["half_life"]["write"] = json_of(head.half_life.write);
  out["half_life"]["key"] = json_of(head.half_life.key);
  out["eigenvalues"] = {{"radius", json_of(head.radius)},
                        {"share_complex", head.share_complex},
                        {"share_outside", head.share_outside},
                        {"plane", json_of(head.plane)}};
  return out;
}

}  // namespace

OrderedJson report_json(const Report& report) {
  const Source& s = report.source;
  OrderedJson layers = OrderedJson::array();
  for (const LayerReport& layer : report.layers) {
    OrderedJson heads = OrderedJson::array();
    for (size_t i = 0; i < layer.heads.size(); ++i) {
      heads.push_back(json_of(layer.heads[i], i, layer.momentum));
    }
    layers.push_back(
        {{"layer", layer.layer}, {"kind", layer.kind}, {"rule", layer.rule}, {"heads", heads}});
  }
  return {{"format", "mdn-inspect"},
          {"version", 1},
          {"model", {{"folder", s.model}, {"model_type", s.model_type}}},
          {"text", {{"file", s.text}, {"sha256", s.sha256}, {"tokens", s.tokens}}},
          {"arithmetic", {{"device", s.device}, {"dtype", s.dtype}}},
          {"loss", s.loss},
          {"layers", layers}};
}

}  // namespace mdn::inspect

#include <algorithm>

#include "mdn/core/error.h"
#include "mdn/inspect/report.h"
#include "mdn/inspect/svg.h"

namespace mdn::inspect {

std::string report_plane_svg(const Report& report) {
  constexpr double kSide = 210, kGap = 26, kTop = 64, kCaption = 34, kLeft = 24;
  std::vector<const LayerReport*> shown;
  for (const LayerReport& layer : report.layers) {
    if (!layer.heads.empty()) {
      shown.push_back(&layer);
    }
  }
  const size_t columns = std::min<size_t>(4, shown.size());
  const size_t rows = (shown.size() + columns - 1) / columns;
  const double width = std::max(2 * kLeft + double(columns) * (kSide + kGap) - kGap, 470.0);
  Svg svg(width, kTop + double(rows) * (kSide + kCaption) + 30);
  svg.text(
      kLeft, 26, "start",
      fmt::format("Eigenvalues along k, {} ({})", report.source.model, report.source.model_type),
      "font-size=\"15\" font-weight=\"600\"");
  svg.text(kLeft, 46, "start",
           fmt::format("{} tokens; every token and head of a layer; darker: more, by the logarithm",
                       report.source.tokens),
           fmt::format("fill=\"{}\"", kFaint));
  for (size_t i = 0; i < shown.size(); ++i) {
    const LayerReport& layer = *shown[i];
    const double x = kLeft + double(i % columns) * (kSide + kGap);
    const double y = kTop + double(i / columns) * (kSide + kCaption);
    Plane all;
    double outside = 0;
    for (const HeadReport& head : layer.heads) {
      all.add(head.plane);
      outside += head.share_outside / double(layer.heads.size());
    }
    draw_plane(svg, all, x, y, kSide);
    for (const double tick : {-1.0, 0.0, 1.0}) {
      svg.text(x + kSide * (tick + Plane::kLimit) / (2 * Plane::kLimit), y + kSide - 4, "middle",
               fmt::format("{:g}", tick), fmt::format("font-size=\"9\" fill=\"{}\"", kFaint));
    }
    svg.text(x, y + kSide + 16, "start",
             fmt::format("layer {}: {:.2f}% of tokens outside", layer.layer, 100 * outside),
             outside > 0 ? fmt::format("fill=\"{}\"", kUnstable) : "");
  }
  svg.text(kLeft, kTop + double(rows) * (kSide + kCaption) + 14, "start",
           "circle: |eigenvalue| = 1, inside of which a state dies out; red: outside",
           fmt::format("fill=\"{}\"", kFaint));
  return svg.str();
}

}  // namespace mdn::inspect

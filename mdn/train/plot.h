// The loss curve as a picture: an SVG that browsers, editors and web pages show as it is.
#pragma once

#include <string>

#include "mdn/train/metrics.h"

namespace mdn::train {

struct PlotOptions {
  std::string title;
  double width = 880, height = 500;  // CSS pixels
};

/// Training and held-out loss (nats a token) over steps. Long training curves are drawn as means
/// over neighbouring points, at most a few hundred of them. The vertical axis leaves out the first
/// few percent of a run where the loss falls from its start, if they would flatten the rest.
std::string loss_curve_svg(const LossCurves& curves, const PlotOptions& options);

/// Round numbers that divide [low, high] into about `wanted` parts: steps of 1, 2 or 5 times a
/// power of ten, all inside the range.
std::vector<double> axis_ticks(double low, double high, int wanted);

}  // namespace mdn::train

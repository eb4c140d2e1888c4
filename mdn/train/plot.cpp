#include "mdn/train/plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "mdn/io/markup.h"

namespace mdn::train {
namespace {

constexpr double kLeft = 64, kRight = 24, kTop = 52, kBottom = 52;  // margins, pixels
constexpr size_t kMostPoints = 400;
constexpr const char* kTrainColour = "#7aa6d8";
constexpr const char* kHeldOutColour = "#c4422b";

// Means of neighbours, so that noise does not become a solid band.
std::vector<MetricPoint> thinned(const std::vector<MetricPoint>& points) {
  if (points.size() <= kMostPoints) {
    return points;
  }
  std::vector<MetricPoint> out;
  for (size_t i = 0; i < kMostPoints; ++i) {
    const size_t begin = i * points.size() / kMostPoints;
    const size_t end = (i + 1) * points.size() / kMostPoints;
    MetricPoint mean = points[(begin + end - 1) / 2];
    mean.loss = 0;
    for (size_t j = begin; j < end; ++j) {
      mean.loss += points[j].loss / static_cast<double>(end - begin);
    }
    out.push_back(mean);
  }
  return out;
}

struct Range {
  double low = 0, high = 1;
};

struct Axes {
  Range x, y;
  double width, height;

  double px(double step) const {
    return kLeft + (step - x.low) / (x.high - x.low) * (width - kLeft - kRight);
  }
  double py(double loss) const {
    return height - kBottom - (loss - y.low) / (y.high - y.low) * (height - kTop - kBottom);
  }
};

// The losses from the lowest to the highest after the first twentieth of the run, with air.
Range loss_range(const LossCurves& curves, double last_step) {
  double low = INFINITY, high = -INFINITY;
  for (const double from : {0.05 * last_step, 0.0}) {
    for (const auto* points : {&curves.train, &curves.held_out}) {
      for (const MetricPoint& p : *points) {
        if (static_cast<double>(p.step) >= from) {
          low = std::min(low, p.loss);
          high = std::max(high, p.loss);
        }
      }
    }
    if (low < high) {
      break;  // otherwise too few points: take them all
    }
  }
  if (!(low <= high)) {
    return {0, 1};
  }
  const double air = high > low ? 0.06 * (high - low) : std::max(0.05, 0.05 * std::abs(high));
  return {low - air, high + air};
}

std::string polyline(const std::vector<MetricPoint>& points, const Axes& axes, const char* colour,
                     double width) {
  if (points.empty()) {
    return "";
  }
  std::string out = fmt::format(
      "<polyline fill=\"none\" stroke=\"{}\" stroke-width=\"{}\" "
      "stroke-linejoin=\"round\" clip-path=\"url(#inside)\" points=\"",
      colour, width);
  for (const MetricPoint& p : points) {
    out += fmt::format("{:.1f},{:.1f} ", axes.px(static_cast<double>(p.step)), axes.py(p.loss));
  }
  out.back() = '"';
  return out + "/>\n";
}

std::string text(double x, double y, const char* anchor, const std::string& words,
                 const char* more = "") {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\"{}>{}</text>\n", x, y,
                     anchor, more, escape_markup(words));
}

std::string count_text(double value) {
  const auto shortened = [](double v, const char* unit) {
    std::string number = fmt::format("{:.6g}", v);
    return number + unit;
  };
  if (value >= 1e6) {
    return shortened(value / 1e6, "M");
  }
  return value >= 1e4 ? shortened(value / 1e3, "k") : shortened(value, "");
}

}  // namespace

std::vector<double> axis_ticks(double low, double high, int wanted) {
  const double raw = (high - low) / std::max(wanted, 1);
  if (!(raw > 0) || !std::isfinite(raw)) {
    return {low};
  }
  const double power = std::pow(10.0, std::floor(std::log10(raw)));
  double step = 10 * power;
  for (const double multiple : {1.0, 2.0, 5.0}) {
    if (multiple * power >= raw) {
      step = multiple * power;
      break;
    }
  }
  std::vector<double> ticks;
  for (double i = std::ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; ++i) {
    ticks.push_back(i * step + 0.0);  // -0 becomes 0
  }
  return ticks;
}

std::string loss_curve_svg(const LossCurves& curves, const PlotOptions& options) {
  double last = 1;
  for (const auto* points : {&curves.train, &curves.held_out}) {
    if (!points->empty()) {
      last = std::max(last, static_cast<double>(points->back().step));
    }
  }
  const Axes axes{{0, last}, loss_range(curves, last), options.width, options.height};
  const double right = options.width - kRight, bottom = options.height - kBottom;

  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" viewBox=\"0 0 {0} "
      "{1}\" font-family=\"sans-serif\" font-size=\"13\" fill=\"#333\">\n"
      "<rect width=\"{0}\" height=\"{1}\" fill=\"#fff\"/>\n"
      "<clipPath id=\"inside\"><rect x=\"{2}\" y=\"{3}\" width=\"{4}\" "
      "height=\"{5}\"/></clipPath>\n",
      options.width, options.height, kLeft, kTop, right - kLeft, bottom - kTop);
  svg += text(kLeft, 26, "start", options.title, " font-size=\"16\" font-weight=\"bold\"");

  const std::vector<double> losses = axis_ticks(axes.y.low, axes.y.high, 7);
  const double spacing = losses.size() > 1 ? losses[1] - losses[0] : 1;
  const int digits = std::clamp(static_cast<int>(std::ceil(-std::log10(spacing) - 1e-9)), 1, 6);
  for (const double loss : losses) {
    const double y = axes.py(loss);
    svg += fmt::format(
        "<line x1=\"{:.1f}\" x2=\"{:.1f}\" y1=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"#e4e4e4\"/>\n",
        kLeft, right, y, y);
    svg += text(kLeft - 8, y + 4.5, "end", fmt::format("{:.{}f}", loss, digits));
  }
  for (const double step : axis_ticks(0, last, 8)) {
    const double x = axes.px(step);
    svg += fmt::format(
        "<line x1=\"{:.1f}\" x2=\"{:.1f}\" y1=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"#888\"/>\n", x, x,
        bottom, bottom + 5);
    svg += text(x, bottom + 20, "middle", count_text(step));
  }
  svg += fmt::format("<path d=\"M{:.1f} {:.1f}V{:.1f}H{:.1f}\" fill=\"none\" stroke=\"#888\"/>\n",
                     kLeft, kTop, bottom, right);
  svg += text((kLeft + right) / 2, options.height - 12, "middle", "step");
  svg += text(
      0, 0, "middle", "loss, nats a token",
      fmt::format(" transform=\"translate(18 {:.1f}) rotate(-90)\"", (kTop + bottom) / 2).c_str());

  svg += polyline(thinned(curves.train), axes, kTrainColour, 1.3);
  svg += polyline(curves.held_out, axes, kHeldOutColour, 2.2);
  if (!curves.held_out.empty()) {
    const MetricPoint& end = curves.held_out.back();
    svg += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3.5\" fill=\"{}\"/>\n",
                       axes.px(static_cast<double>(end.step)), axes.py(end.loss), kHeldOutColour);
  }
  double y = kTop + 16;  // the legend, in the corner that a falling curve leaves free
  const auto legend = [&](const char* name, const std::vector<MetricPoint>& points,
                          const char* colour) {
    if (points.empty()) {
      return;
    }
    svg += fmt::format(
        "<line x1=\"{0:.1f}\" x2=\"{1:.1f}\" y1=\"{2:.1f}\" y2=\"{2:.1f}\" stroke=\"{3}\" "
        "stroke-width=\"3\"/>\n",
        right - 210, right - 182, y - 4.5, colour);
    svg += text(right - 174, y, "start",
                fmt::format("{}: {:.4f} at the end", name, points.back().loss));
    y += 20;
  };
  legend("held-out", curves.held_out, kHeldOutColour);
  legend("training", curves.train, kTrainColour);
  return svg + "</svg>\n";
}

}  // namespace mdn::train

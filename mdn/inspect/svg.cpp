#include "mdn/inspect/svg.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "mdn/io/markup.h"

namespace mdn::inspect {
namespace {

// Between two colours by parts in 255, as #rrggbb.
std::string blend(const int (&from)[3], const int (&to)[3], double share) {
  const auto part = [&](int i) {
    return static_cast<int>(std::lround(from[i] + (to[i] - from[i]) * share));
  };
  return fmt::format("#{:02x}{:02x}{:02x}", part(0), part(1), part(2));
}

constexpr int kPaleBlue[3] = {0xcf, 0xdf, 0xf2}, kDeepBlue[3] = {0x12, 0x3c, 0x7c};
constexpr int kPaleRed[3] = {0xf5, 0xc1, 0xba}, kDeepRed[3] = {0xa3, 0x1c, 0x16};

}  // namespace

Svg::Svg(double width, double height) {
  body_ = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:g}\" height=\"{1:g}\" "
      "viewBox=\"0 0 {0:g} {1:g}\" font-family=\"system-ui, sans-serif\" font-size=\"11\" "
      "fill=\"{2}\">\n<rect width=\"{0:g}\" height=\"{1:g}\" fill=\"#fff\"/>\n",
      width, height, kInk);
}

void Svg::rect(double x, double y, double width, double height, const std::string& fill) {
  body_ += fmt::format(
      "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.2f}\" height=\"{:.2f}\" "
      "fill=\"{}\"/>\n",
      x, y, width, height, fill);
}

void Svg::line(double x1, double y1, double x2, double y2, const std::string& stroke,
               double width) {
  body_ += fmt::format(
      "<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" "
      "stroke=\"{}\" stroke-width=\"{:g}\"/>\n",
      x1, y1, x2, y2, stroke, width);
}

void Svg::circle(double x, double y, double radius, const std::string& stroke, double width) {
  body_ += fmt::format(
      "<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"{:.1f}\" fill=\"none\" "
      "stroke=\"{}\" stroke-width=\"{:g}\"/>\n",
      x, y, radius, stroke, width);
}

void Svg::area(const std::string& path, const std::string& fill) {
  body_ += fmt::format("<path d=\"{}\" fill=\"{}\"/>\n", path, fill);
}

void Svg::text(double x, double y, const std::string& anchor, const std::string& words,
               const std::string& more) {
  body_ += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\"{}{}>{}</text>\n", x, y,
                       anchor, more.empty() ? "" : " ", more, escape_markup(words));
}

void Svg::title(const std::string& words) {
  body_ += fmt::format("<title>{}</title>\n", escape_markup(words));
}

void draw_histogram(Svg& svg, const Distribution& d, double x, double y, double width,
                    double height, const std::string& fill) {
  const Histogram& h = d.histogram;
  const double floor = y + height;
  svg.line(x, floor, x + width, floor, kGrid);
  if (d.count == 0) {
    return;
  }
  const int64_t most = std::max<int64_t>(1, *std::max_element(h.counts.begin(), h.counts.end()));
  const double bin = width / double(h.counts.size());
  std::string path = fmt::format("M{:.1f} {:.1f}", x, floor);
  for (size_t i = 0; i < h.counts.size(); ++i) {
    path += fmt::format("V{:.1f}H{:.1f}", floor - height * double(h.counts[i]) / double(most),
                        x + bin * double(i + 1));
  }
  svg.area(path + fmt::format("V{:.1f}Z", floor), fill);
  const auto position = [&](double v) { return h.logarithmic ? std::log(v) : v; };
  const double median = std::clamp(d.median(), h.low, h.high);
  const double at =
      x + width * (position(median) - position(h.low)) / (position(h.high) - position(h.low));
  svg.line(at, y, at, floor, kInk, 1.2);
}

void draw_plane(Svg& svg, const Plane& plane, double x, double y, double side) {
  const double cell = side / Plane::kCells, half = side / 2;
  svg.rect(x, y, side, side, "#fafbfc");
  svg.line(x, y + half, x + side, y + half, kGrid);
  svg.line(x + half, y, x + half, y + side, kGrid);
  int64_t most = 1;
  for (const auto& [at, count] : plane.cells) {
    most = std::max(most, count);
  }
  for (const auto& [at, count] : plane.cells) {
    const auto middle = [](int i) {
      return (double(i) + 0.5) * 2 * Plane::kLimit / Plane::kCells - Plane::kLimit;
    };
    const bool outside = std::hypot(middle(at.first), middle(at.second)) >
                         1 + Plane::kLimit / Plane::kCells;  // by more than half a cell
    const double share = most > 1 ? std::log(double(count)) / std::log(double(most)) : 1;
    svg.rect(x + cell * at.first, y + side - cell * (at.second + 1), cell + 0.1, cell + 0.1,
             outside ? blend(kPaleRed, kDeepRed, share) : blend(kPaleBlue, kDeepBlue, share));
  }
  svg.circle(x + half, y + half, half / Plane::kLimit, kInk, 1.2);
}

}  // namespace mdn::inspect

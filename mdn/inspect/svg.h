// Drawing: a few shapes as SVG text, and the pictures that pages and files share.
#pragma once

#include <string>

#include "mdn/inspect/measures.h"

namespace mdn::inspect {

inline constexpr const char* kInk = "#2b2f36";
inline constexpr const char* kFaint = "#8a909b";
inline constexpr const char* kGrid = "#e3e6eb";
inline constexpr const char* kUnstable = "#c4322b";

/// Shapes in CSS pixels, y downwards.
class Svg {
 public:
  Svg(double width, double height);

  void rect(double x, double y, double width, double height, const std::string& fill);
  void line(double x1, double y1, double x2, double y2, const std::string& stroke,
            double width = 1);
  void circle(double x, double y, double radius, const std::string& stroke, double width = 1);
  /// `path` in SVG's own notation, filled.
  void area(const std::string& path, const std::string& fill);
  /// anchor: start, middle or end; `more`: further attributes.
  void text(double x, double y, const std::string& anchor, const std::string& words,
            const std::string& more = "");
  /// A tooltip of the whole picture.
  void title(const std::string& words);

  std::string str() const { return body_ + "</svg>\n"; }

 private:
  std::string body_;
};

/// A distribution's histogram standing on y + height, with a line at the median.
void draw_histogram(Svg& svg, const Distribution& d, double x, double y, double width,
                    double height, const std::string& fill);

/// The complex plane in a square with (x, y) as its upper left corner: cells by the logarithm of
/// their counts, blue inside the unit circle and red outside, the circle, the axes.
void draw_plane(Svg& svg, const Plane& plane, double x, double y, double side);

}  // namespace mdn::inspect

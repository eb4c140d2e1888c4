#include <algorithm>
#include <cmath>

#include "mdn/core/error.h"
#include "mdn/inspect/report.h"
#include "mdn/inspect/svg.h"
#include "mdn/io/markup.h"

namespace mdn::inspect {
namespace {

// A layer's picture: a row a head, a column a gate, the half-lives, the plane.
constexpr double kLabel = 62, kColumn = 132, kGap = 22, kLives = 210, kPlane = 104;
constexpr double kRow = 112, kHeader = 30, kFooter = 26;

const char* colour_of(const std::string& gate) {
  return gate == "alpha"  ? "#4a7fc1"
         : gate == "mu"   ? "#2f9e8f"
         : gate == "beta" ? "#d08a2e"
         : gate == "eta"  ? "#8467b0"
                          : "#7d8794";
}

const char* explained(const std::string& gate) {
  return gate == "alpha"  ? "alpha: decay of S"
         : gate == "mu"   ? "mu: decay of M"
         : gate == "beta" ? "beta: of M into S"
         : gate == "eta"  ? "eta: step size"
                          : "nu: share of momentum";
}

std::string number(double value) {
  return std::isfinite(value) ? fmt::format("{:.3g}", value) : "∞";
}

std::string life_text(const Distribution& d) {
  return d.count == 0 ? "–" : number(d.median());
}

void draw_axis(Svg& svg, const Histogram& bins, double x, double y, double width) {
  const auto tick = [&](double share, const std::string& words) {
    svg.text(x + share * width, y, "middle", words,
             fmt::format("font-size=\"9\" fill=\"{}\"", kFaint));
  };
  if (!bins.logarithmic) {
    for (const double share : {0.0, 0.5, 1.0}) {
      tick(share, fmt::format("{:g}", bins.low + share * (bins.high - bins.low)));
    }
    return;
  }
  const double decades = std::log10(bins.high / bins.low);
  for (double d = 0; d <= decades + 1e-9; ++d) {
    const double value = bins.low * std::pow(10, d);
    tick(d / decades,
         value >= 1e3 ? fmt::format("{:g}k", value / 1e3) : fmt::format("{:g}", value));
  }
}

// Half-lives of a head, one above the other.
void draw_lives(Svg& svg, const HalfLives& lives, double x, double y) {
  const std::pair<const char*, const Distribution*> rows[] = {
      {"S", &lives.S}, {"M", &lives.M}, {"write", &lives.write}, {"key", &lives.key}};
  constexpr double kHeight = 17, kStep = 23, kName = 64;
  double top = y;
  for (const auto& [name, values] : rows) {
    if (values->count > 0) {
      draw_histogram(svg, *values, x + kName, top, kLives - kName, kHeight, "#9db4cf");
      svg.text(x + kName - 6, top + kHeight - 2, "end",
               fmt::format("{} {}", name, life_text(*values)), "font-size=\"10\"");
    }
    top += kStep;
  }
}

std::string layer_svg(const LayerReport& layer) {
  const auto& gates = layer.heads.front().gates;
  const double lives_at = kLabel + double(gates.size()) * (kColumn + kGap);
  const double plane_at = lives_at + kLives + kGap;
  Svg svg(plane_at + kPlane + 8, kHeader + double(layer.heads.size()) * kRow + kFooter);
  svg.title(fmt::format("layer {}", layer.layer));
  const std::string bold = "font-weight=\"600\"";
  for (size_t i = 0; i < gates.size(); ++i) {
    svg.text(kLabel + double(i) * (kColumn + kGap), 16, "start", explained(gates[i].first), bold);
  }
  svg.text(lives_at, 16, "start", "half-life, tokens (median)", bold);
  svg.text(plane_at, 16, "start", "eigenvalues", bold);
  for (size_t h = 0; h < layer.heads.size(); ++h) {
    const HeadReport& head = layer.heads[h];
    const double y = kHeader + double(h) * kRow;
    svg.text(0, y + 40, "start", fmt::format("head {}", h), bold);
    svg.text(
        0, y + 56, "start", fmt::format("{:.1f}% out", 100 * head.share_outside),
        fmt::format("font-size=\"10\" fill=\"{}\"", head.share_outside > 0 ? kUnstable : kFaint));
    for (size_t i = 0; i < head.gates.size(); ++i) {
      const auto& [name, values] = head.gates[i];
      const double x = kLabel + double(i) * (kColumn + kGap);
      draw_histogram(svg, values, x, y + 14, kColumn, kRow - 46, colour_of(name));
      svg.text(x + kColumn, y + 8, "end",
               fmt::format("{:.2f}–{:.2f}", values.quantiles[1], values.quantiles[5]),
               fmt::format("font-size=\"9\" fill=\"{}\"", kFaint));
      draw_axis(svg, values.histogram, x, y + kRow - 20, kColumn);
    }
    draw_lives(svg, head.half_life, lives_at, y + 2);
    draw_axis(svg, head.half_life.S.histogram, lives_at + 64, y + kRow - 8, kLives - 64);
    draw_plane(svg, head.plane, plane_at, y, kPlane);
  }
  return svg.str();
}

std::string overview(const Report& report) {
  std::string rows;
  for (const LayerReport& layer : report.layers) {
    if (layer.heads.empty()) {
      rows +=
          fmt::format("<tr><td>{}</td><td colspan=\"13\" class=\"left\">{}: no gates</td></tr>\n",
                      layer.layer, escape_markup(layer.kind));
    }
    for (size_t h = 0; h < layer.heads.size(); ++h) {
      const HeadReport& head = layer.heads[h];
      rows += fmt::format("<tr><td>{}</td><td>{}</td>", layer.layer, h);
      for (const char* name : {"alpha", "mu", "beta", "eta", "nu"}) {
        const auto found = std::find_if(head.gates.begin(), head.gates.end(),
                                        [&](const auto& gate) { return gate.first == name; });
        rows += found == head.gates.end() ? "<td>–</td>"
                                          : fmt::format("<td>{:.3f}</td>", found->second.median());
      }
      rows += fmt::format(
          "<td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{:.3f}</td>"
          "<td>{:.1f}%</td><td{}>{:.2f}%</td></tr>\n",
          life_text(head.half_life.S), life_text(head.half_life.M), life_text(head.half_life.write),
          life_text(head.half_life.key), head.radius.median(), 100 * head.share_complex,
          head.share_outside > 0 ? " class=\"bad\"" : "", 100 * head.share_outside);
    }
  }
  return "<table><thead><tr><th>layer</th><th>head</th><th>alpha</th><th>mu</th><th>beta</th>"
         "<th>eta</th><th>nu</th><th>S</th><th>M</th><th>write</th><th>key</th>"
         "<th>|eigenvalue|</th><th>complex</th><th>outside</th></tr></thead>\n<tbody>\n" +
         rows + "</tbody></table>\n";
}

constexpr const char* kStyle =
    "body{font:15px/1.5 system-ui,sans-serif;color:#2b2f36;background:#fff;max-width:1180px;"
    "margin:2rem auto;padding:0 1rem}h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}"
    "table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums}"
    "td,th{padding:2px 10px;text-align:right;border-bottom:1px solid #e3e6eb}"
    "th{position:sticky;top:0;background:#fff}.left{text-align:left}.bad{color:#c4322b}"
    ".wide{overflow-x:auto}dt{font-weight:600}dd{margin:0 0 .4rem 1.2rem}"
    "summary{cursor:pointer;font-weight:600;margin:.6rem 0}.faint{color:#6b727d}";

constexpr const char* kHowToRead =
    "<dl>\n"
    "<dt>Gates</dt><dd>Histograms over the tokens of the text, each as high as its largest bin; "
    "the "
    "line is the median, the numbers are where 5% and 95% lie.</dd>\n"
    "<dt>Half-life of S and of M</dt><dd>ln 2 / −ln alpha and ln 2 / −ln mu of each token: how "
    "long the state would keep half of itself under that token's gate.</dd>\n"
    "<dt>write</dt><dd>What the two states do together: tokens until the share that a token's "
    "write "
    "has in S (coming by M, it first grows) is for good below half of its largest, with the gates "
    "as the text has them and no key meeting it again.</dd>\n"
    "<dt>key</dt><dd>ln 2 / −ln of the larger eigenvalue: the same along the key itself, where "
    "each "
    "step also corrects what S holds.</dd>\n"
    "<dt>Eigenvalues</dt><dd>Of one token's map of (Sᵀk, Mᵀk) to itself; axes −1.5 to 1.5, the "
    "circle is |eigenvalue| = 1. Inside, a state met by that token again and again dies out; "
    "outside (red) it grows. Off the real axis it swings.</dd>\n"
    "</dl>\n";

}  // namespace

std::string report_html(const Report& report) {
  const Source& s = report.source;
  Plane all;
  for (const LayerReport& layer : report.layers) {
    for (const HeadReport& head : layer.heads) {
      all.add(head.plane);
    }
  }
  std::string page = fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width\">\n"
      "<title>Gates of {0}</title>\n<style>{1}</style></head><body>\n"
      "<h1>Gates of {0}</h1>\n"
      "<p>{2}, {3} layers, read over {4} tokens of {5}; {6:.4f} nats a token. "
      "<span class=\"faint\">{7} on {8}.</span></p>\n",
      escape_markup(s.model), kStyle, escape_markup(s.model_type), report.layers.size(), s.tokens,
      escape_markup(s.text), s.loss, s.dtype, s.device);
  Svg plane(380, 380);
  plane.title("eigenvalues of all layers");
  draw_plane(plane, all, 10, 10, 360);
  for (const double tick : {-1.0, 1.0}) {
    plane.text(10 + 360 * (tick + Plane::kLimit) / (2 * Plane::kLimit), 186, "middle",
               fmt::format("{:g}", tick), fmt::format("font-size=\"10\" fill=\"{}\"", kFaint));
  }
  page += "<h2>How to read it</h2>\n";
  page += kHowToRead;
  page += "<h2>All layers: eigenvalues along k</h2>\n" + plane.str();
  if (all.beyond > 0) {
    page += fmt::format("<p class=\"bad\">{} of {} lie beyond the picture.</p>\n", all.beyond,
                        all.total);
  }
  page += "<h2>Medians</h2>\n<div class=\"wide\">\n" + overview(report) + "</div>\n";
  page += "<h2>Layer by layer</h2>\n";
  for (const LayerReport& layer : report.layers) {
    if (!layer.heads.empty()) {
      page +=
          fmt::format("<details open><summary>Layer {}: {}, {}</summary>\n<div class=\"wide\">\n",
                      layer.layer, escape_markup(layer.kind), escape_markup(layer.rule));
      page += layer_svg(layer) + "</div></details>\n";
    }
  }
  return page + "</body></html>\n";
}

}  // namespace mdn::inspect

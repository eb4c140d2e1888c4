// A reading of a model's gates as numbers, and the forms in which they are shown.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "mdn/inspect/measures.h"
#include "mdn/io/json.h"

namespace mdn::inspect {

/// A layer's gates over a text: `heads` is empty where the kind of layer has none of this form.
struct LayerGates {
  int64_t layer = 0;
  std::string kind;  // momentum_deltanet, ...
  std::string rule;  // what its step is: "heavy ball", "no momentum", ...
  std::vector<HeadGates> heads;
};

/// Where the numbers come from.
struct Source {
  std::string model, model_type;
  std::string text;    // the file
  std::string sha256;  // of the bytes that were read
  int64_t tokens = 0;
  double loss = 0;  // of the model on the tokens, nats a token
  std::string device, dtype;
};

struct HalfLives {
  Distribution S;      // of S under alpha, token by token
  Distribution M;      // of M under mu; empty without momentum
  Distribution write;  // of a write's share in S, over the text: write_half_lives
  Distribution key;    // of both along the token's own key: ln 2 / -ln of the spectral radius
};

struct HeadReport {
  std::vector<std::pair<std::string, Distribution>>
      gates;  // alpha, mu, beta, eta, nu: those it has
  HalfLives half_life;
  Distribution radius;       // the larger |eigenvalue| of each token
  double share_complex = 0;  // of tokens: with a pair of complex eigenvalues
  double share_outside = 0;  // of tokens: with an eigenvalue outside the unit circle
  Plane plane;
};

struct LayerReport {
  int64_t layer = 0;
  std::string kind, rule;
  bool momentum = false;
  std::vector<HeadReport> heads;  // empty: no such gates
};

struct Report {
  Source source;
  std::vector<LayerReport> layers;
};

/// Throws mdn::Error naming layer, head and token for a gate that is not finite, and where no layer
/// has gates.
Report make_report(const Source& source, const std::vector<LayerGates>& layers);

/// Every number, for programs: docs/inspect.md lists the keys.
OrderedJson report_json(const Report& report);

/// One page that needs nothing else: no script, no font, no address.
std::string report_html(const Report& report);

/// The complex plane of every layer, as one SVG.
std::string report_plane_svg(const Report& report);

/// A line a head, for a terminal.
std::string report_table(const Report& report);

}  // namespace mdn::inspect

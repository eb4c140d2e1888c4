// A model's gates over a text.
#pragma once

#include <span>
#include <vector>

#include "mdn/inspect/report.h"
#include "mdn/model/decoder.h"

namespace mdn::inspect {

struct Reading {
  std::vector<LayerGates> layers;  // one a layer of the model
  double loss = 0;                 // nats a token
};

/// Reads the ids as one sequence and keeps what the layers' own gate functions give for each token.
/// At least two ids; throws for one outside the vocabulary. kda's and mamba2's layers, whose states
/// follow another form, and attention have no heads here.
Reading read_gates(const model::Decoder& decoder, std::span<const int32_t> ids);

}  // namespace mdn::inspect

// The weight table: name, shape and initial value of every parameter, made from the config alone.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "mdn/model/config.h"

namespace mdn::model {

/// How a parameter starts.
enum class Init {
  kNormal,  // N(0, initializer_range)
  kZeros,
  kOnes,
  kLogUniform,  // ln of uniform(init_low, init_high]
  kDt,          // inverse softplus of exp(uniform(ln init_low, ln init_high)), at least init_floor
  kUniform,     // uniform(init_low, init_high)
  kSame,        // the values of the parameter before it in the table
};

struct WeightSpec {
  std::string name;            // the published safetensors name
  std::vector<int64_t> shape;  // linears are [out, in]
  Init init = Init::kNormal;
  double init_low = 0, init_high = 0, init_floor = 0;
  bool decay = true;      // takes weight decay: matrices and convolutions do
  std::string part = {};  // for people: embeddings, mixer, mlp, norms, head

  int64_t numel() const;
};

/// Every parameter in the order of the published state dict. A tied head has no entry of its own.
std::vector<WeightSpec> weight_table(const Config& config);

/// The name of the embeddings, which a tied head shares.
std::string embeddings_name(const Config& config);

}  // namespace mdn::model

#include "mdn/model/weights.h"

#include "mdn/model/blocks.h"

namespace mdn::model {

int64_t WeightSpec::numel() const {
  int64_t n = 1;
  for (int64_t size : shape) {
    n *= size;
  }
  return n;
}

std::vector<WeightSpec> weight_table(const Config& config) {
  std::vector<WeightSpec> table;
  walk_weights(config, [&](WeightSpec spec) {
    table.push_back(std::move(spec));
    return at::Tensor();
  });
  return table;
}

std::string embeddings_name(const Config& config) {
  return names_of(config).root + "embeddings.weight";
}

}  // namespace mdn::model

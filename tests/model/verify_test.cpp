// The golden models of the published code: logits, loss, gradients, prefill + decode.
#include "mdn/model/verify.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

namespace mdn::model {
namespace {

class Goldens : public testing::TestWithParam<std::tuple<const char*, at::ScalarType>> {};

TEST_P(Goldens, Agree) {
  const auto [name, type] = GetParam();
  const auto entries = verify(std::string(MDN_TEST_DATA "/goldens/") + name, type, at::kCPU);
  EXPECT_GT(entries.size(), 20u);
  for (const VerifyEntry& entry : entries) {
    EXPECT_LE(entry.error, entry.allowed) << entry.name;
  }
}

std::string test_name(const testing::TestParamInfo<Goldens::ParamType>& info) {
  return std::string(std::get<0>(info.param)) + "_" + c10::toString(std::get<1>(info.param));
}

INSTANTIATE_TEST_SUITE_P(Families, Goldens,
                         testing::Combine(testing::Values("mdn", "mdn_plain", "mdn_lora",
                                                          "mdn_hybrid", "gdn", "comba", "kda",
                                                          "mamba2", "transformer"),
                                          testing::Values(at::kDouble, at::kFloat, at::kBFloat16)),
                         test_name);

TEST(Verify, NoticesAWrongWeight) {
  // float64 against float32 goldens errs by 1e-7: anything that this accepts is a real agreement
  const auto entries = verify(MDN_TEST_DATA "/goldens/mdn", at::kDouble, at::kCPU,
                              {.logits = 1e-12, .gradients = 1e-12});
  EXPECT_FALSE(entries.front().ok());
}

}  // namespace
}  // namespace mdn::model

#include "mdn/core/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace mdn {
namespace {

float widen(uint16_t bits) {
  BFloat16 value;
  value.bits = bits;
  return static_cast<float>(value);
}

TEST(DType, SizesAndRoundoffs) {
  EXPECT_EQ(size_of(DType::kFloat64), 8u);
  EXPECT_EQ(size_of(DType::kFloat32), 4u);
  EXPECT_EQ(size_of(DType::kFloat16), 2u);
  EXPECT_EQ(size_of(DType::kBFloat16), 2u);
  EXPECT_STREQ(name_of(DType::kBFloat16), "bfloat16");
  // Half the distance from 1 to the next number.
  EXPECT_EQ(unit_roundoff(DType::kFloat64), std::numeric_limits<double>::epsilon() / 2);
  EXPECT_EQ(unit_roundoff(DType::kFloat32), std::numeric_limits<float>::epsilon() / 2);
  EXPECT_EQ(unit_roundoff(DType::kBFloat16), (widen(0x3F81) - 1.0) / 2);
}

TEST(BFloat16, EveryValueSurvivesTheWayToFloatAndBack) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = widen(static_cast<uint16_t>(bits));
    const BFloat16 back(value);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(static_cast<float>(back))) << bits;
    } else {
      EXPECT_EQ(back.bits, bits);
    }
  }
}

TEST(BFloat16, RoundsToNearestAndTiesToEven) {
  std::mt19937 rng(1);
  for (int i = 0; i < 200000; ++i) {
    const auto value = std::bit_cast<float>(static_cast<uint32_t>(rng()));
    if (!std::isfinite(value) || std::fabs(value) > widen(0x7F7F)) {
      continue;
    }
    const uint16_t bits = BFloat16(value).bits;
    const double chosen = std::fabs(static_cast<double>(widen(bits)) - value);
    for (const int step : {-1, 1}) {
      const double other =
          std::fabs(static_cast<double>(widen(static_cast<uint16_t>(bits + step))) - value);
      EXPECT_FALSE(other < chosen) << value;
      if (other == chosen) {
        EXPECT_EQ(bits & 1, 0) << value;
      }
    }
  }
  EXPECT_EQ(BFloat16(std::bit_cast<float>(0x3F808000u)).bits, 0x3F80);  // ties to even, down
  EXPECT_EQ(BFloat16(std::bit_cast<float>(0x3F818000u)).bits, 0x3F82);  // and up
  EXPECT_EQ(BFloat16(std::numeric_limits<float>::max()).bits, 0x7F80);  // beyond the largest
  EXPECT_EQ(BFloat16(-0.0f).bits, 0x8000);
}

}  // namespace
}  // namespace mdn

#include "mdn/train/schedule.h"

#include <gtest/gtest.h>

#include "mdn/core/error.h"

namespace mdn::train {
namespace {

TEST(Schedule, CosineWarmsUpPeaksAndEndsAtTheFloor) {
  const Schedule s{.kind = Schedule::Kind::kCosine, .total = 100, .warmup = 10, .floor = 0.1};
  EXPECT_DOUBLE_EQ(s.factor(0), 0.0);
  EXPECT_DOUBLE_EQ(s.factor(1), 0.1);
  EXPECT_DOUBLE_EQ(s.factor(10), 1.0);
  EXPECT_DOUBLE_EQ(s.factor(55), 0.55);  // half-way: between 1 and the floor
  EXPECT_DOUBLE_EQ(s.factor(100), 0.1);
  EXPECT_DOUBLE_EQ(s.factor(150), 0.1);  // past the end it stays
  for (int i = 11; i <= 100; ++i) {
    EXPECT_LT(s.factor(i), s.factor(i - 1));
  }
}

TEST(Schedule, WsdHoldsThenFallsInALine) {
  const Schedule s{
      .kind = Schedule::Kind::kWsd, .total = 100, .warmup = 10, .decay = 20, .floor = 0.0};
  EXPECT_DOUBLE_EQ(s.factor(5), 0.5);
  EXPECT_DOUBLE_EQ(s.factor(10), 1.0);
  EXPECT_DOUBLE_EQ(s.factor(80), 1.0);
  EXPECT_DOUBLE_EQ(s.factor(85), 0.75);
  EXPECT_DOUBLE_EQ(s.factor(100), 0.0);
}

TEST(Schedule, ConstantAndDegenerateRuns) {
  const Schedule constant{
      .kind = Schedule::Kind::kConstant, .total = 10, .warmup = 4, .floor = 0.1};
  EXPECT_DOUBLE_EQ(constant.factor(2), 0.5);
  EXPECT_DOUBLE_EQ(constant.factor(10), 1.0);
  const Schedule all_warmup{.kind = Schedule::Kind::kCosine, .total = 8, .warmup = 8};
  EXPECT_DOUBLE_EQ(all_warmup.factor(8), 1.0);
  const Schedule no_decay{.kind = Schedule::Kind::kWsd, .total = 8, .decay = 0};
  EXPECT_DOUBLE_EQ(no_decay.factor(8), 1.0);
}

TEST(Schedule, NamesAreChecked) {
  EXPECT_EQ(schedule_kind_from_name("wsd"), Schedule::Kind::kWsd);
  EXPECT_THROW(schedule_kind_from_name("linear"), Error);
}

}  // namespace
}  // namespace mdn::train

#include "mdn/train/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "mdn/core/error.h"
#include "mdn/train/plot.h"
#include "mdn/train/progress.h"
#include "mdn/train/tensorboard.h"
#include "tests/train/support.h"

namespace mdn::train {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string line(int step, const char* kind, const char* loss = "2.5") {
  return fmt::format("{{\"step\":{},\"kind\":\"{}\",\"loss\":{},\"seconds\":1.5}}\n", step, kind,
                     loss);
}

TEST(Metrics, TruncationDropsLaterStepsAndAnUnfinishedLine) {
  const Scratch scratch;
  const auto path = scratch / "metrics.jsonl";
  truncate_metrics(path, 3);  // a missing file stays missing
  EXPECT_FALSE(std::filesystem::exists(path));
  const std::string head = line(1, "train") + line(2, "train") + line(2, "eval");
  write_file_atomically(path, head + line(3, "train") + R"({"step":4,"ki)");
  truncate_metrics(path, 2);
  EXPECT_EQ(read_file(path), head);
  truncate_metrics(path, 2);
  EXPECT_EQ(read_file(path), head);
  truncate_metrics(path, -1);
  EXPECT_EQ(read_file(path), "");
}

TEST(Metrics, CurvesAreReadBack) {
  const Scratch scratch;
  const auto path = scratch / "metrics.jsonl";
  write_file_atomically(path, line(1, "train", "5.5") + line(2, "skip", "null") +
                                  line(3, "train", "null") + line(4, "eval", "3.25"));
  const LossCurves curves = read_loss_curves(path);
  ASSERT_EQ(curves.train.size(), 1u);
  EXPECT_EQ(curves.train[0].loss, 5.5);
  ASSERT_EQ(curves.held_out.size(), 1u);
  EXPECT_EQ(curves.held_out[0].step, 4);
}

TEST(Metrics, AppendedRecordsAreWhole) {
  const Scratch scratch;
  AppendFile file(scratch / "a");
  file.append("one\n");
  file.append("two\n");
  file.sync();
  AppendFile again(scratch / "a");
  again.append("three\n");
  EXPECT_EQ(read_file(scratch / "a"), "one\ntwo\nthree\n");
  EXPECT_THROW(AppendFile(scratch / "no" / "where"), Error);
  // /dev/full accepts nothing: the message names the path and the bytes.
  try {
    AppendFile("/dev/full").append("12345");
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), testing::AllOf(HasSubstr("/dev/full"), HasSubstr("0 of 5 bytes")));
  }
}

TEST(TensorBoard, Crc32c) {
  EXPECT_EQ(crc32c(""), 0u);
  EXPECT_EQ(crc32c("123456789"), 0xe3069283u);            // the catalogue's check value
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aau);  // RFC 3720, B.4
}

TEST(Plot, TicksAreRoundAndInside) {
  EXPECT_THAT(axis_ticks(0, 100, 5), ElementsAre(0, 20, 40, 60, 80, 100));
  EXPECT_THAT(axis_ticks(1.2, 2.1, 4), ElementsAre(1.5, 2.0));
  EXPECT_EQ(axis_ticks(3, 3, 4).size(), 1u);
}

TEST(Plot, DrawsBothCurvesAndEscapesTheTitle) {
  LossCurves curves;
  for (int i = 0; i <= 2000; ++i) {
    curves.train.push_back({i, 0.1 * i, 2 + 3.0 / (1 + 0.01 * i)});
  }
  curves.held_out = {{0, 0, 5.5}, {1000, 100, 2.4}, {2000, 200, 2.3}};
  const std::string svg = loss_curve_svg(curves, {.title = "a < b & \"c\""});
  EXPECT_THAT(svg, HasSubstr("a &lt; b &amp; &quot;c&quot;"));
  EXPECT_THAT(svg, HasSubstr("held-out: 2.3000 at the end"));
  EXPECT_THAT(svg, HasSubstr("training: 2.1429 at the end"));
  size_t lines = 0;
  for (size_t at = 0; (at = svg.find("<polyline", at)) != std::string::npos; ++at) {
    ++lines;
  }
  EXPECT_EQ(lines, 2u);
  EXPECT_LT(svg.size(), 20000u);  // 2001 points were thinned
  EXPECT_THAT(loss_curve_svg({}, {.title = "nothing"}), HasSubstr("</svg>"));
}

TEST(Progress, Texts) {
  EXPECT_EQ(duration_text(4.6), "0:05");
  EXPECT_EQ(duration_text(3725), "1:02:05");
  EXPECT_EQ(duration_text(INFINITY), "?");
  EXPECT_EQ(rate_text(940), "940");
  EXPECT_EQ(rate_text(41234), "41.2k");
  ProgressState state{.done = 0.5,
                      .step = 5,
                      .max_steps = 10,
                      .loss = 2,
                      .held_out = 2.5,
                      .tokens_per_second = 1500,
                      .seconds_left = 61};
  EXPECT_EQ(progress_line(state, true),
            "[##########----------]  step 5/10  loss 2.0000  held-out 2.5000  1.5k tokens/s  1:01 "
            "left");
}

}  // namespace
}  // namespace mdn::train

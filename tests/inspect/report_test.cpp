// The report's numbers, and that its pages are whole and self-contained.
#include "mdn/inspect/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "mdn/core/error.h"

namespace mdn::inspect {
namespace {

using testing::HasSubstr;
using testing::Not;
using testing::ThrowsMessage;

HeadGates head_with(double alpha, double beta) {
  const std::vector<double> zero(8, 0), a(8, alpha);
  return {.alpha = a,
          .beta = std::vector<double>(8, beta),
          .eta = std::vector<double>(8, 2),
          .mu = std::vector<double>(8, 0.5),
          .nu = {},
          .pi = std::vector<double>(8, 1),
          .kappa = std::vector<double>(8, beta * 0.5),
          .lambda = zero};
}

Source source() {
  return {.model = "a<b",
          .model_type = "momentum_deltanet",
          .text = "t&t",
          .sha256 = "",
          .tokens = 8,
          .loss = 1.5,
          .device = "cpu",
          .dtype = "float32"};
}

Report some_report() {
  // pi = 1 and beta eta = 2 leave the unit circle at small alpha; the first head does not.
  return make_report(source(), {{.layer = 0,
                                 .kind = "momentum_deltanet",
                                 .rule = "heavy ball",
                                 .heads = {head_with(0.9, 0.1), head_with(0.1, 1)}},
                                {.layer = 1, .kind = "attention", .rule = "", .heads = {}}});
}

TEST(Report, SharesOfTokens) {
  const Report report = some_report();
  ASSERT_EQ(report.layers.size(), 2u);
  EXPECT_EQ(report.layers[0].heads[0].share_outside, 0);
  EXPECT_EQ(report.layers[0].heads[1].share_outside, 1);
  EXPECT_TRUE(report.layers[1].heads.empty());
  EXPECT_NEAR(report.layers[0].heads[0].half_life.M.median(), 1, 1e-12);
  EXPECT_EQ(report.layers[0].heads[0].plane.total, 16);  // two eigenvalues a token
}

TEST(Report, JsonHasEveryHeadAndGate) {
  const OrderedJson json = report_json(some_report());
  EXPECT_EQ(json["format"], "mdn-inspect");
  EXPECT_EQ(json["layers"].size(), 2u);
  const auto& head = json["layers"][0]["heads"][1];
  for (const char* gate : {"alpha", "mu", "beta", "eta"}) {
    EXPECT_EQ(head[gate]["count"], 8) << gate;
    int64_t binned = 0;
    for (const auto& count : head[gate]["histogram"]["counts"]) {
      binned += count.get<int64_t>();
    }
    EXPECT_EQ(binned, 8) << gate;
  }
  EXPECT_EQ(head["eigenvalues"]["share_outside"], 1);
  EXPECT_EQ(json["layers"][1]["heads"].size(), 0u);
  EXPECT_NO_THROW(parse_json(json.dump(), "the report"));
}

TEST(Report, PagesNeedNothingElseAndEscapeNames) {
  const std::string page = report_html(some_report());
  EXPECT_THAT(page, HasSubstr("a&lt;b"));
  EXPECT_THAT(page, HasSubstr("t&amp;t"));
  EXPECT_THAT(page, HasSubstr("100.00%"));
  for (const char* outside : {"<script", "<link", "@import", "src=", "href=", "nan"}) {
    EXPECT_THAT(page, Not(HasSubstr(outside)));
  }
  const std::string plane = report_plane_svg(some_report());
  EXPECT_TRUE(plane.starts_with("<svg "));
  EXPECT_THAT(plane, HasSubstr("layer 0: 50.00% of tokens outside"));
  EXPECT_THAT(plane, HasSubstr("a&lt;b"));
}

TEST(Report, TableHasALineAHead) {
  const std::string table = report_table(some_report());
  EXPECT_THAT(table, HasSubstr("0.90 [0.90 0.90]"));
  EXPECT_THAT(table, HasSubstr("attention: no gates"));
  EXPECT_THAT(table, HasSubstr("100.00%"));
}

TEST(Report, BrokenAndMissingGatesAreNamed) {
  HeadGates broken = head_with(0.9, 0.1);
  broken.mu[3] = NAN;
  EXPECT_THAT(
      [&] { make_report(source(), {{.layer = 2, .kind = "x", .rule = "", .heads = {broken}}}); },
      ThrowsMessage<Error>(HasSubstr("layer 2 head 0: mu is nan at token 3")));
  EXPECT_THAT(
      [&] { make_report(source(), {{.layer = 0, .kind = "attention", .rule = "", .heads = {}}}); },
      ThrowsMessage<Error>(HasSubstr("its layers: 1 attention")));
}

}  // namespace
}  // namespace mdn::inspect

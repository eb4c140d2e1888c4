#include "mdn/core/error.h"

#include <gtest/gtest.h>

#include <string>

namespace mdn {
namespace {

TEST(Error, CheckNamesValueAndPlace) {
  const int heads = 3;
  try {
    MDN_CHECK(heads % 2 == 0, "heads is {}; it must be even", heads);
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "heads is 3; it must be even");
    EXPECT_NE(std::string(error.file()).find("error_test.cpp"), std::string::npos);
    EXPECT_GT(error.line(), 0);
  }
}

TEST(Error, CheckEvaluatesItsMessageOnlyOnFailure) {
  int evaluated = 0;
  MDN_CHECK(true, "{}", ++evaluated);
  EXPECT_EQ(evaluated, 0);
  EXPECT_THROW(MDN_CHECK(false, "{}", ++evaluated), Error);
  EXPECT_EQ(evaluated, 1);
}

}  // namespace
}  // namespace mdn

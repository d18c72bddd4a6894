// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-server/export_spec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace ibnbd {
namespace {

using testing::HasSubstr;

std::string ErrorOf(const std::string& text) {
  const auto spec = ParseExportSpec(text);
  return spec.ok() ? "" : std::string(spec.status().message());
}

TEST(ExportSpec, ReadsNameSourceAndOptions) {
  const auto plain = ParseExportSpec("vol0=/dev/sdb");
  ASSERT_TRUE(plain.ok()) << plain.status();
  EXPECT_EQ(*plain, (ExportSpec{.name = "vol0", .source = "/dev/sdb"}));
  const auto full = ParseExportSpec("a/b=/srv/x=y.img,ro,buffered,block-size=4K");
  ASSERT_TRUE(full.ok()) << full.status();
  EXPECT_EQ(*full, (ExportSpec{"a/b", "/srv/x=y.img", true, true, 4096}));
}

TEST(ExportSpec, SaysWhatIsWrongWithABadOne) {
  EXPECT_THAT(ErrorOf("vol0"), HasSubstr("expected NAME=SOURCE"));
  EXPECT_THAT(ErrorOf("=/dev/sdb"), HasSubstr("the name is empty"));
  EXPECT_THAT(ErrorOf("v="), HasSubstr("the source is empty"));
  EXPECT_THAT(ErrorOf("v=,ro"), HasSubstr("the source is empty"));
  EXPECT_THAT(ErrorOf("v=/x,rw"), HasSubstr("unknown option \"rw\""));
  EXPECT_THAT(ErrorOf("v=/x,"), HasSubstr("unknown option \"\""));
  EXPECT_THAT(ErrorOf("v=/x,block-size=1000"), HasSubstr("power of two"));
  EXPECT_THAT(ErrorOf("v=/x,block-size=256"), HasSubstr("power of two"));
  EXPECT_THAT(ErrorOf("v=/x,block-size=64K"), HasSubstr("at most 32K"));
  EXPECT_THAT(ErrorOf("v=/x,block-size=4X"), HasSubstr("size \"4X\""));
  EXPECT_THAT(ErrorOf("a\nb=/x"), HasSubstr("control character"));
  EXPECT_THAT(ErrorOf(std::string(255, 'n') + "=/x"), HasSubstr("longer than 254"));
  EXPECT_EQ(ErrorOf(std::string(254, 'n') + "=/x"), "");
}

TEST(ExportSpec, ErrorsOfTheSourceNameTheExport) {
  const ExportSpec spec{.name = "vol7", .source = "/nonexistent/a.img"};
  const auto backend = OpenExportBackend(spec, 0);
  ASSERT_FALSE(backend.ok());
  EXPECT_EQ(backend.status().message(),
            "export vol7: attach /nonexistent/a.img: open: No such file or directory");
}

}  // namespace
}  // namespace ibnbd

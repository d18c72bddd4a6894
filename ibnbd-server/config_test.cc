// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "ibnbd-server/options.h"

namespace ibnbd {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;

std::string MistakeIn(const std::string& text) {
  const auto settings = ParseConfig(text, "s.toml");
  return settings.ok() ? "" : std::string(settings.status().message());
}

TEST(Config, ReadsAllKeys) {
  const auto settings = ParseConfig(R"(
listen = ["tcp://0.0.0.0:1234", "tcp://[::1]:0"]
threads = 2
queue_depth = 64
io_size = "256K"
sessions_max = 9
invalidate = "always"
memory_max = "2G"
memory = "huge"
search_path = "/srv/%SESSNAME%"

[export.vol0]
path = "/dev/sdb"

[export."odd name"]
path = "mem:64M"
read-only = true
buffered = true
block_size = 4096
)",
                                    "s.toml");
  ASSERT_TRUE(settings.ok()) << settings.status();
  EXPECT_THAT(settings->listen, ElementsAre("tcp://0.0.0.0:1234", "tcp://[::1]:0"));
  EXPECT_EQ(settings->thread_count, 2u);
  EXPECT_EQ(settings->queue_depth, 64u);
  EXPECT_EQ(settings->io_size, 256u << 10);
  EXPECT_EQ(settings->session_count_max, 9u);
  EXPECT_EQ(settings->invalidate, true);
  EXPECT_EQ(settings->memory_max, std::uint64_t{2} << 30);
  EXPECT_EQ(settings->memory, "huge");
  EXPECT_EQ(settings->search_path, "/srv/%SESSNAME%");
  EXPECT_THAT(settings->exports,
              testing::UnorderedElementsAre(ExportSpec{.name = "vol0", .source = "/dev/sdb"},
                                            ExportSpec{"odd name", "mem:64M", true, true, 4096}));
}

TEST(Config, AnEmptyFileIsFine) { EXPECT_EQ(MistakeIn("# nothing yet\n"), ""); }

TEST(Config, MistakesHaveTheirLine) {
  EXPECT_THAT(MistakeIn("\nthis is [not TOML"), StartsWith("s.toml:2: "));
  EXPECT_THAT(MistakeIn("threads = 1\nthread = 2\n"), StartsWith("s.toml:2: thread: unknown key"));
  EXPECT_THAT(MistakeIn("threads = \"x\"\n"), StartsWith("s.toml:1: threads: size \"x\""));
  EXPECT_THAT(MistakeIn("invalidate = \"Y\"\n"),
              StartsWith("s.toml:1: invalidate: expected always or never"));
  EXPECT_THAT(MistakeIn("threads = true\n"), StartsWith("s.toml:1: threads: expected a number"));
  EXPECT_THAT(MistakeIn("threads = -1\n"), StartsWith("s.toml:1: threads: is negative"));
  EXPECT_THAT(MistakeIn("io_size = \"8G\"\n"), StartsWith("s.toml:1: io_size: is too large"));
  EXPECT_THAT(MistakeIn("listen = [1]\n"), StartsWith("s.toml:1: listen: expected a string"));
  EXPECT_THAT(MistakeIn("export = 1\n"), StartsWith("s.toml:1: export: expected tables"));
  EXPECT_THAT(MistakeIn("[export]\nv = 1\n"), StartsWith("s.toml:2: export.v: expected a table"));
  EXPECT_THAT(MistakeIn("\n[export.v]\nread_only = true\n"),
              StartsWith("s.toml:2: export.v: path is missing"));
  EXPECT_THAT(MistakeIn("[export.v]\npath = \"/x\"\nsize = 3\n"),
              StartsWith("s.toml:3: export.v.size: unknown key"));
  EXPECT_THAT(MistakeIn("[export.v]\npath = \"/x\"\nread_only = 1\n"),
              StartsWith("s.toml:3: export.v.read_only: expected true or false"));
  EXPECT_THAT(MistakeIn("[export.v]\npath = \"/x\"\nblock_size = 1000\n"),
              HasSubstr("power of two"));
  EXPECT_THAT(MistakeIn("[export.v]\npath = \"/x\"\n[export.v]\npath = \"/y\"\n"),
              StartsWith("s.toml:3: "));
}

TEST(Config, AMissingFileIsNamed) {
  const auto settings = LoadConfig("/nonexistent/s.toml");
  EXPECT_EQ(settings.status().message(), "config /nonexistent/s.toml: No such file or directory");
  EXPECT_THAT(std::string(LoadConfig("/tmp").status().message()), HasSubstr("config /tmp"));
}

}  // namespace
}  // namespace ibnbd

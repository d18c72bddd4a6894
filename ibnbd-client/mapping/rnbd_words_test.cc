// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-client/mapping/rnbd_words.h"

#include <gtest/gtest.h>

#include <vector>

#include "absl/strings/match.h"

namespace ibnbd::client {
namespace {

using Words = std::vector<std::string>;

TEST(RnbdWords, SayWhatTheKernelsClientUnderstands) {
  const auto mapping =
      ParseRnbdWords(Words{"sessname=hostA", "dest_port=4711", "path=ip:10.0.0.1",
                           "device_path=/dev/sdb", "access_mode=migration", "nr_poll_queues=0"});
  ASSERT_TRUE(mapping.ok()) << mapping.status();
  EXPECT_EQ(mapping->session_name, "hostA");
  EXPECT_EQ(mapping->access, IBNBD_MIGRATION);
  EXPECT_EQ(mapping->uri.scheme, "rdma");
  EXPECT_EQ(mapping->uri.host, "10.0.0.1");
  EXPECT_EQ(mapping->uri.port, 4711);
  EXPECT_EQ(mapping->uri.export_name, "/dev/sdb");
  // It travels to the daemon as a URI.
  const auto again = ParseUri(mapping->uri.ToString());
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->export_name, "/dev/sdb");
}

TEST(RnbdWords, DefaultsAreTheKernels) {
  const auto mapping =
      ParseRnbdWords(Words{"device_path=vol=1", "path=ip:fd77::1", "sessname=hostA"});
  ASSERT_TRUE(mapping.ok()) << mapping.status();
  EXPECT_EQ(mapping->access, IBNBD_READ_WRITE);
  EXPECT_EQ(mapping->uri.port, 1234);
  EXPECT_EQ(mapping->uri.host, "fd77::1");
  EXPECT_EQ(mapping->uri.export_name, "vol=1");
  EXPECT_EQ(ParseUri(mapping->uri.ToString())->host, "fd77::1");
}

TEST(RnbdWords, ThereMayBeSeveralPathsAndTheyMayHaveSources) {
  const auto mapping = ParseRnbdWords(
      Words{"sessname=hostA", "path=ip:10.0.0.3@ip:10.0.0.1", "path=ip:10.0.0.1", "dest_port=99",
            "path=ip:10.1.0.3,ip:10.1.0.1", "path=ip:[fd77::3]@ip:fd77::1", "device_path=vol"});
  ASSERT_TRUE(mapping.ok()) << mapping.status();
  EXPECT_EQ(mapping->uri.host, "10.0.0.1");
  EXPECT_EQ(mapping->uri.port, 99);
  EXPECT_EQ(mapping->ways.source, "10.0.0.3");
  EXPECT_EQ(mapping->ways.more, "10.0.0.1 10.1.0.3@10.1.0.1 fd77::3@fd77::1");
}

TEST(RnbdWords, WhatCannotBeDoneIsRefusedByName) {
  const struct {
    const char *word, *why;
  } kTests[] = {
      {"path=gid:fe80::1", "AF_IB"},
      {"path=gid:fe80::2@gid:fe80::1", "AF_IB"},
      {"path=10.0.0.1", "expected path=["},
      {"path=ip:", "expected path=["},
      {"path=ip:10.0.0.3@10.0.0.1", "expected path=["},
      {"path=ip:10.0.0.3@", "expected path=["},
      {"path=@ip:10.0.0.1", "expected path=["},
      {"path=ip:10.0.0.4@ip:10.0.0.3@ip:10.0.0.1", "expected path=["},
      {"path=ip:10.0.0.1:99", "dest_port="},
      {"path=ip:10.0.0.3:99@ip:10.0.0.1", "dest_port="},
      {"path=ip:10.0 10.0.0.1", "character"},
      {"dest_port=0", "a port"},
      {"dest_port=65536", "a port"},
      {"access_mode=wo", "expected ro, rw or migration"},
      {"nr_poll_queues=2", "no poll queues"},
      {"sessname=b", "said twice"},
      {"device_path=", "1 to 254"},
      {"queue_depth=3", "expected sessname="},
      {"--ro", "expected KEY=VALUE"},
  };
  for (const auto& test : kTests) {
    SCOPED_TRACE(test.word);
    const auto mapping = ParseRnbdWords(Words{"sessname=a", test.word});
    ASSERT_FALSE(mapping.ok());
    EXPECT_TRUE(absl::StartsWith(mapping.status().message(), test.word)) << mapping.status();
    EXPECT_TRUE(absl::StrContains(mapping.status().message(), test.why)) << mapping.status();
  }
  EXPECT_FALSE(ParseRnbdWords(Words{"sessname=a.b"}).ok());
  const Words twice[] = {
      {"path=ip:10.0.0.1", "path=ip:10.0.0.1"},
      {"path=ip:10.0.0.3@ip:10.0.0.1", "path=ip:10.0.0.3,ip:10.0.0.1"},
      {"dest_port=1", "dest_port=2"},
  };
  for (const Words& words : twice) {
    const auto mapping = ParseRnbdWords(words);
    EXPECT_TRUE(absl::StartsWith(mapping.status().message(), words[1])) << mapping.status();
    EXPECT_TRUE(absl::StrContains(mapping.status().message(), "said twice")) << mapping.status();
  }
}

TEST(RnbdWords, WhatIsMissingIsNamed) {
  const Words all{"sessname=a", "path=ip:10.0.0.1", "device_path=vol"};
  ASSERT_TRUE(ParseRnbdWords(all).ok());
  for (std::size_t i = 0; i < all.size(); ++i) {
    Words some = all;
    some.erase(some.begin() + static_cast<std::ptrdiff_t>(i));
    const std::string key = all[i].substr(0, all[i].find('=') + 1);
    EXPECT_TRUE(absl::StrContains(ParseRnbdWords(some).status().message(), key));
  }
}

TEST(RnbdWords, AUriIsNone) {
  EXPECT_TRUE(IsRnbdWord("path=ip:10.0.0.1"));
  EXPECT_TRUE(IsRnbdWord("device_path=a://b"));
  EXPECT_FALSE(IsRnbdWord("rdma://10.0.0.1/a=b"));
  EXPECT_FALSE(IsRnbdWord("vol"));
}

}  // namespace
}  // namespace ibnbd::client

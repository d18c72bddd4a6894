// SPDX-License-Identifier: Apache-2.0
#include "nbd-bridge/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "nbd-bridge/loss_policy.h"

namespace ibnbd::bridge {
namespace {

using ::testing::HasSubstr;

absl::StatusOr<ProgramOptions> Parse(std::vector<std::string> words) {
  words.insert(words.begin(), "nbd-bridge");
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  return ParseProgramOptions(static_cast<int>(argv.size()), argv.data());
}

TEST(OptionsTest, AVolumeIsCalledAsItsUriUnlessANameIsGiven) {
  const auto options = Parse({"--socket", "/run/s", "tcp://h/vol0", "x=tcp://h:99/vol1"});
  ASSERT_TRUE(options.ok()) << options.status();
  const auto& volumes = options->bridge.volumes.volumes;
  ASSERT_EQ(volumes.size(), 2u);
  EXPECT_EQ(volumes[0].export_name, "vol0");
  EXPECT_EQ(volumes[0].uri.port, 1234);
  EXPECT_EQ(volumes[1].export_name, "x");
  EXPECT_EQ(volumes[1].uri.export_name, "vol1");
  EXPECT_EQ(volumes[1].uri.port, 99);
  EXPECT_EQ(options->bridge.listen, std::vector<std::string>{"unix:/run/s"});
}

TEST(OptionsTest, AnEqualsSignInAVolumesNameIsNotAnExportName) {
  const auto spec = ParseVolume("tcp://h/a=b");
  ASSERT_TRUE(spec.ok());
  EXPECT_EQ(spec->export_name, "a=b");
}

TEST(OptionsTest, VolumesThatAreNoneAreRefused) {
  EXPECT_FALSE(ParseVolume("tcp://h").ok());
  EXPECT_FALSE(ParseVolume("vol0").ok());
  EXPECT_FALSE(ParseVolume("x=").ok());
  EXPECT_FALSE(ParseVolume("http://h/v").ok());
  EXPECT_FALSE(ParseVolume(std::string(5000, 'n') + "=tcp://h/v").ok());
  EXPECT_FALSE(Parse({"--socket", "/run/s"}).ok());
}

TEST(OptionsTest, BuffersAreMadeOfWhatIsAskedFor) {
  EXPECT_EQ(Parse({"tcp://h/v"})->bridge.volumes.memory, "");
  EXPECT_EQ(Parse({"--memory", "huge", "tcp://h/v"})->bridge.volumes.memory, "huge");
  EXPECT_FALSE(Parse({"--memory", "hug", "tcp://h/v"}).ok());
}

TEST(OptionsTest, TheSessionHasANameOnlyIfOneIsGiven) {
  EXPECT_EQ(Parse({"tcp://h/v"})->bridge.volumes.session_name, "");
  EXPECT_EQ(Parse({"--session-name", "web", "tcp://h/v"})->bridge.volumes.session_name, "web");
}

TEST(OptionsTest, TheLossPolicyIsHoldOrATime) {
  EXPECT_EQ(*ParseLossPolicy("hold"), -1);
  EXPECT_EQ(*ParseLossPolicy("fail-after=0"), 0);
  EXPECT_EQ(*ParseLossPolicy("fail-after=30"), 30'000);
  EXPECT_EQ(*ParseLossPolicy("fail-after=30s"), 30'000);
  EXPECT_EQ(*ParseLossPolicy("fail-after=500ms"), 500);
  EXPECT_EQ(*ParseLossPolicy("fail-after=2m"), 120'000);
  for (const char* text : {"hold", "fail-after=0s", "fail-after=30s", "fail-after=1500ms"}) {
    EXPECT_EQ(LossPolicyText(*ParseLossPolicy(text)), text);
  }
  for (const char* text : {"", "fail", "fail-after=", "fail-after=-1", "fail-after=1h", "held"}) {
    EXPECT_FALSE(ParseLossPolicy(text).ok()) << text;
  }
}

TEST(OptionsTest, PathPolicyAndPatienceAreWords) {
  const auto options =
      Parse({"--path-policy", "min-latency", "--dead-after", "1500ms", "tcp://h/v"});
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->bridge.volumes.path_policy, std::uint32_t{IBNBD_POLICY_MIN_LATENCY});
  EXPECT_EQ(options->bridge.volumes.dead_after_ms, 1500u);
  EXPECT_EQ(Parse({"tcp://h/v"})->bridge.volumes.dead_after_ms, 0u);
  EXPECT_EQ(Parse({"--dead-after", "1h", "tcp://h/v"}).ok(), false);
  for (const char* text : {"0", "999ms", "61m", "", "soon"}) {
    const auto refused = Parse({"--dead-after", text, "tcp://h/v"});
    EXPECT_THAT(std::string(refused.status().message()), HasSubstr("--dead-after")) << text;
  }
  EXPECT_THAT(std::string(Parse({"--path-policy", "best", "tcp://h/v"}).status().message()),
              HasSubstr("round-robin"));
}

TEST(OptionsTest, SizesHaveUnits) {
  EXPECT_EQ(*ParseSize("512"), 512u);
  EXPECT_EQ(*ParseSize("4K"), 4096u);
  EXPECT_EQ(*ParseSize("32M"), 32u << 20);
  EXPECT_EQ(*ParseSize("5T"), std::uint64_t{5} << 40);
  for (const char* text : {"", "K", "-1", "4X", "99999999999T"}) {
    EXPECT_FALSE(ParseSize(text).ok()) << text;
  }
}

TEST(OptionsTest, WhatIsOutOfRangeIsNamed) {
  const auto memory = Parse({"--connection-memory", "100M", "tcp://h/v"});
  EXPECT_THAT(std::string(memory.status().message()), HasSubstr("--connection-memory 100M"));
  EXPECT_FALSE(Parse({"--threads", "0", "tcp://h/v"}).ok());
  EXPECT_FALSE(Parse({"--threads", "65", "tcp://h/v"}).ok());
  EXPECT_FALSE(Parse({"--frobnicate", "tcp://h/v"}).ok());
}

TEST(OptionsTest, HelpAndVersionAreMessages) {
  EXPECT_THAT(Parse({"--help"})->message, HasSubstr("--on-loss"));
  EXPECT_THAT(Parse({"--version"})->message, HasSubstr("nbd-bridge "));
}

}  // namespace
}  // namespace ibnbd::bridge

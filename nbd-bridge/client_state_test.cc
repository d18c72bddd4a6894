// SPDX-License-Identifier: Apache-2.0
// What one process says of a client is what the next one reads; anything else is refused.
#include "nbd-bridge/client_state.h"

#include <gtest/gtest.h>

namespace ibnbd::bridge {
namespace {

ClientState Sample() {
  ClientState state;
  state.export_name = "a name\nwith 1 2 3";
  state.volume_id = 0xfedcba9876543210;
  state.structured_replies = true;
  state.limits = {
      .size = 1ull << 50, .block_size_min = 512, .payload_size_max = 32u << 20, .flags = 0x0d6d};
  state.received = std::string("\0\n%s 7", 6);
  return state;
}

TEST(ClientStateTest, IsReadAsItWasWritten) {
  const ClientState sample = Sample();
  const auto state = ParseClientState(FormatClientState(sample));
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_FALSE(state->is_new);
  EXPECT_EQ(state->export_name, sample.export_name);
  EXPECT_EQ(state->volume_id, sample.volume_id);
  EXPECT_TRUE(state->structured_replies);
  EXPECT_EQ(state->limits.size, sample.limits.size);
  EXPECT_EQ(state->limits.block_size_min, 512u);
  EXPECT_EQ(state->limits.payload_size_max, 32u << 20);
  EXPECT_EQ(state->limits.flags, 0x0d6d);
  EXPECT_EQ(state->received, sample.received);
  ClientState fresh;
  fresh.is_new = true;
  EXPECT_TRUE(ParseClientState(FormatClientState(fresh))->is_new);
}

TEST(ClientStateTest, WhatIsCutOffOrForeignIsRefused) {
  const std::string text = FormatClientState(Sample());
  for (std::size_t size = 0; size < text.size(); ++size) {
    EXPECT_FALSE(ParseClientState(std::string_view(text).substr(0, size)).ok()) << size;
  }
  EXPECT_FALSE(ParseClientState(text + "x").ok());
  for (const char* bad :
       {"nbd client 2 0 1 1 1 1 1 1 0 0\n", "nbd client 1 0 1 1 1 1 1 65536 0 0\n",
        "nbd client 1 0 1 1 1 1 1 1 18446744073709551615 1\n", "nbd client 1 0 1\n", "\n"}) {
    EXPECT_FALSE(ParseClientState(bad).ok()) << bad;
  }
}

TEST(ClientStateTest, AClientIsHeldToWhatItWasTold) {
  const proto::NbdExportLimits told = Sample().limits;
  EXPECT_EQ(WhyNotAsTold(told, told), nullptr);
  proto::NbdExportLimits now = told;
  now.size += 512;
  now.payload_size_max += 1;
  now.block_size_min = 1;
  now.flags ^= proto::kNbdSendDf;
  EXPECT_EQ(WhyNotAsTold(told, now), nullptr);
  (now = told).size -= 512;
  EXPECT_NE(WhyNotAsTold(told, now), nullptr);
  (now = told).block_size_min = 4096;
  EXPECT_NE(WhyNotAsTold(told, now), nullptr);
  (now = told).payload_size_max -= 1;
  EXPECT_NE(WhyNotAsTold(told, now), nullptr);
  (now = told).flags ^= proto::kNbdReadOnly;
  EXPECT_NE(WhyNotAsTold(told, now), nullptr);
}

}  // namespace
}  // namespace ibnbd::bridge

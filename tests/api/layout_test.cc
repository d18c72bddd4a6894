// SPDX-License-Identifier: Apache-2.0
// Sizes that are promises.  Those of public structs belong to the ABI: a change breaks every
// program that was compiled before.  Those of hot structs keep the data path in few cache lines.
#include <gtest/gtest.h>
#include <ibnbd/ibnbd.h>

#include <cstddef>

#include "capi/user_io.h"
#include "fabric/fabric.h"
#include "rnbd/client.h"
#include "rtrs/client_session.h"

namespace {

TEST(Layout, PublicStructsHaveTheSizesOfVersion01) {
  EXPECT_EQ(sizeof(ibnbd_session_options), 96u);
  EXPECT_EQ(sizeof(ibnbd_session_info), 208u);
  EXPECT_EQ(sizeof(ibnbd_path_info), 672u);
  EXPECT_EQ(sizeof(ibnbd_export_info), 320u);
  EXPECT_EQ(sizeof(ibnbd_device_options), 56u);
  EXPECT_EQ(sizeof(ibnbd_device_info), 640u);
  EXPECT_EQ(sizeof(ibnbd_io), 328u);
  EXPECT_EQ(sizeof(ibnbd_io_info), 72u);
}

TEST(Layout, PublicFieldsStayWhereTheyAre) {
  EXPECT_EQ(offsetof(ibnbd_io, offset), 8u);
  EXPECT_EQ(offsetof(ibnbd_io, data), 24u);
  EXPECT_EQ(offsetof(ibnbd_io, done), 40u);
  EXPECT_EQ(offsetof(ibnbd_io, opaque), 48u);
  EXPECT_EQ(offsetof(ibnbd_io, reserved), 56u);
  EXPECT_EQ(offsetof(ibnbd_io, internal), 72u);
  EXPECT_EQ(offsetof(ibnbd_session_options, name), 8u);
  EXPECT_EQ(offsetof(ibnbd_session_options, bounce_bytes), 36u);
  EXPECT_EQ(offsetof(ibnbd_session_options, memory), 40u);
  EXPECT_EQ(offsetof(ibnbd_session_options, dead_after_ms), 72u);
  EXPECT_EQ(offsetof(ibnbd_session_info, policy), 176u);
  EXPECT_EQ(offsetof(ibnbd_session_info, dead_after_ms), 180u);
  EXPECT_EQ(offsetof(ibnbd_device_info, size), 8u);
  EXPECT_EQ(offsetof(ibnbd_device_info, name), 64u);
}

TEST(Layout, AnIoOfTheApplicationHasRoomForOurs) {
  EXPECT_LE(sizeof(ibnbd::capi::UserIo), sizeof(ibnbd_io::internal) - sizeof(std::uint64_t));
}

TEST(Layout, HotStructsStaySmall) {
  EXPECT_LE(sizeof(ibnbd::fabric::Sge), 16u);
  EXPECT_LE(sizeof(ibnbd::fabric::SendRequest), 64u);
  EXPECT_LE(sizeof(ibnbd::fabric::Completion), 32u);
  EXPECT_LE(sizeof(ibnbd::rnbd::Io), 128u);
  EXPECT_LE(sizeof(ibnbd::rtrs::ClientRequest), 96u);
}

}  // namespace

// SPDX-License-Identifier: Apache-2.0
#include "fabric/verbs/verbs_device_events.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include "base/unique_fd.h"

namespace ibnbd::verbs {
namespace {

TEST(DeviceEventText, NamesTheDeviceAndThePort) {
  EXPECT_EQ(DeviceEventText("mlx5_0", IBV_EVENT_PORT_ERR, 2),
            "mlx5_0: port 2 is down: IO through it waits");
  EXPECT_EQ(DeviceEventText("mlx5_0", IBV_EVENT_PORT_ACTIVE, 1), "mlx5_0: port 1 is up");
  EXPECT_EQ(DeviceEventText("rxe0", IBV_EVENT_GID_CHANGE, 1), "rxe0: port 1: GID table change");
  EXPECT_EQ(DeviceEventText("rxe0", IBV_EVENT_DEVICE_FATAL, 0), "rxe0: the device has failed");
}

// Two reactors are woken by one event.  The one that comes second must not wait for the next.
TEST(DeviceEvents, ReadingWhereNothingIsLeftDoesNotWait) {
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const UniqueFd read_end(ends[0]);
  const UniqueFd write_end(ends[1]);
  ibv_context context{};
  context.async_fd = read_end.get();
  const auto fd = DeviceEventsFd(&context);
  ASSERT_TRUE(fd.ok()) << fd.status();
  EXPECT_EQ(*fd, read_end.get());
  ReadDeviceEvents(&context);
}

TEST(DeviceEventText, SaysNothingOfWhatCompletionsTell) {
  EXPECT_EQ(DeviceEventText("rxe0", IBV_EVENT_QP_FATAL, 0), "");
  EXPECT_EQ(DeviceEventText("rxe0", IBV_EVENT_COMM_EST, 0), "");
}

}  // namespace
}  // namespace ibnbd::verbs

// SPDX-License-Identifier: Apache-2.0
#include "fabric/verbs/verbs_device_events.h"

#include <gtest/gtest.h>

namespace ibnbd::verbs {
namespace {

TEST(DeviceEventText, NamesTheDeviceAndThePort) {
  EXPECT_EQ(DeviceEventText("mlx5_0", IBV_EVENT_PORT_ERR, 2),
            "mlx5_0: port 2 is down: IO through it waits");
  EXPECT_EQ(DeviceEventText("mlx5_0", IBV_EVENT_PORT_ACTIVE, 1), "mlx5_0: port 1 is up");
  EXPECT_EQ(DeviceEventText("rxe0", IBV_EVENT_GID_CHANGE, 1), "rxe0: port 1: GID table change");
  EXPECT_EQ(DeviceEventText("rxe0", IBV_EVENT_DEVICE_FATAL, 0), "rxe0: the device has failed");
}

TEST(DeviceEventText, SaysNothingOfWhatCompletionsTell) {
  EXPECT_EQ(DeviceEventText("rxe0", IBV_EVENT_QP_FATAL, 0), "");
  EXPECT_EQ(DeviceEventText("rxe0", IBV_EVENT_COMM_EST, 0), "");
}

}  // namespace
}  // namespace ibnbd::verbs

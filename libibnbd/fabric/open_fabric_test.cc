// SPDX-License-Identifier: Apache-2.0
#include "fabric/open_fabric.h"

#include <gtest/gtest.h>

#include "base/clock.h"
#include "reactor/reactor.h"

namespace ibnbd {
namespace {

TEST(OpenFabric, KnowsTcp) {
  auto fabric = OpenFabric("tcp");
  ASSERT_TRUE(fabric.ok()) << fabric.status();
  EXPECT_GE((*fabric)->private_data_size_max(), 56u);
}

TEST(OpenFabric, RdmaIsThereOrSaysWhatIsMissing) {
  auto fabric = OpenFabric("rdma");
  if (fabric.ok()) return;  // A machine with an RDMA device.
#if IBNBD_HAVE_VERBS
  EXPECT_TRUE(fabric.status().message().find("modprobe") != absl::string_view::npos)
      << fabric.status();
#else
  EXPECT_EQ(fabric.status().message(), "rdma: this build has no verbs fabric");
#endif
}

TEST(OpenFabric, NamesAnUnknownScheme) {
  auto fabric = OpenFabric("carrier-pigeon");
  EXPECT_EQ(fabric.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(fabric.status().message().find("carrier-pigeon"), absl::string_view::npos);
}

TEST(OpenFabric, APortInUseIsNamedWithItsCause) {
  MonotonicClock clock;
  auto fabric = *OpenFabric("tcp");
  auto reactor = *Reactor::Create(clock, ReactorOptions{});
  auto poller = *fabric->CreatePoller(*reactor);
  auto first = poller->Listen(*ResolveAddress("127.0.0.1", 0), 1);
  ASSERT_TRUE(first.ok()) << first.status();
  auto second = poller->Listen((*first)->local_address(), 2);
  ASSERT_FALSE(second.ok());
  const std::string text(second.status().message());
  EXPECT_NE(text.find("listen 127.0.0.1:"), std::string::npos) << text;
  EXPECT_NE(text.find("Address already in use"), std::string::npos) << text;
}

TEST(OpenFabric, APortCanBeUsedAgainAtOnceAfterItsListenerIsGone) {
  MonotonicClock clock;
  auto fabric = *OpenFabric("tcp");
  auto reactor = *Reactor::Create(clock, ReactorOptions{});
  auto poller = *fabric->CreatePoller(*reactor);
  auto first = poller->Listen(*ResolveAddress("127.0.0.1", 0), 1);
  ASSERT_TRUE(first.ok()) << first.status();
  reactor->RunTurn();
  const SocketAddress address = (*first)->local_address();
  first->reset();
  auto second = poller->Listen(address, 2);
  EXPECT_TRUE(second.ok()) << second.status();
}

}  // namespace
}  // namespace ibnbd

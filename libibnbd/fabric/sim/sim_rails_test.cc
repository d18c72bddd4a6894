// SPDX-License-Identifier: Apache-2.0
// Hosts with several addresses: each lies on a rail of its own, whose faults, delays and bandwidth
// do not concern the others.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "fabric/sim/sim_world.h"
#include "fabric/sim/test_pair.h"

namespace ibnbd::sim {
namespace {
using fabric::CmEvent;
using fabric::Opcode;
using fabric::WcStatus;
using ::testing::HasSubstr;

// A client and a server with one connection per rail, all between the same two hosts.
struct Rails {
  explicit Rails(std::uint64_t seed, std::uint32_t count = 2)
      : world(seed, FaultPlan()), client(world.AddHost("client")), server(world.AddHost("server")) {
    for (std::uint32_t rail = 0; rail < count; ++rail) {
      clients.push_back(std::make_unique<Peer>(client));
      servers.push_back(std::make_unique<Peer>(server));
      servers[rail]->listener =
          servers[rail]->poller->Listen(server.Address(1234, rail), 0).value();
      clients[rail]->connection =
          clients[rail]
              ->poller->StartConnect(server.Address(1234, rail), clients[rail]->Options(), {})
              .value();
    }
    world.RunFor(kNsPerSecond);
    for (auto& peer : servers) CHECK(peer->Saw(CmEvent::Kind::kEstablished));
  }
  ~Rails() {
    world.HealEverything();
    for (auto* peers : {&clients, &servers}) {
      for (auto& peer : *peers) {
        peer->connection->Disconnect();
        world.RunUntil([&] { return peer->connection->drained(); }, 60 * kNsPerSecond);
      }
    }
  }
  // Writes one slot on the rail; how long until its completion, at most a second.
  std::int64_t WriteNs(std::uint32_t rail) {
    const std::size_t before = clients[rail]->completions.size();
    const std::int64_t start_ns = world.now_ns();
    clients[rail]->Write(*servers[rail], 0, 0, 1);
    world.RunUntil([&] { return clients[rail]->completions.size() > before; }, kNsPerSecond);
    return world.now_ns() - start_ns;
  }
  World world;
  Host& client;
  Host& server;
  std::vector<std::unique_ptr<Peer>> clients, servers;
};

TEST(SimRailsTest, AnAddressNamesItsHostAndItsRail) {
  Rails rails(1, 3);
  EXPECT_EQ(rails.clients[0]->connection->peer_address().ToString(), "sim2:1234");
  EXPECT_EQ(rails.clients[2]->connection->peer_address().ToString(), "sim2.2:1234");
  EXPECT_EQ(rails.servers[2]->connection->local_address().ToString(), "sim2.2:1234");
  EXPECT_THAT(rails.servers[2]->connection->peer_address().ToString(), HasSubstr("sim1.2:"));
}

TEST(SimRailsTest, APartitionOfOneRailLeavesTheOthersAlone) {
  Rails rails(2);
  rails.world.Partition(rails.client, rails.server, 1);
  EXPECT_LT(rails.WriteNs(0), kNsPerMs);
  EXPECT_EQ(rails.WriteNs(1), kNsPerSecond);
  rails.world.HealPartition(rails.client, rails.server, 1);
  rails.world.RunFor(10 * kNsPerSecond);
  EXPECT_FALSE(rails.clients[0]->Saw(CmEvent::Kind::kDisconnected));
}

TEST(SimRailsTest, CuttingOneRailBreaksItsConnectionsAlone) {
  Rails rails(3);
  rails.world.CutConnections(rails.client, rails.server, 1);
  rails.world.RunFor(60 * kNsPerSecond);
  EXPECT_TRUE(rails.clients[1]->Gone() && rails.servers[1]->Gone());
  EXPECT_FALSE(rails.clients[0]->Saw(CmEvent::Kind::kDisconnected));
  EXPECT_LT(rails.WriteNs(0), kNsPerMs);
}

TEST(SimRailsTest, DelaysClogsAndBandwidthBelongToARail) {
  Rails rails(4, 4);
  rails.world.SetLinkDelay(rails.client, rails.server, {5 * kNsPerMs, 5 * kNsPerMs}, 1);
  rails.world.ClogLink(rails.client, rails.server, 20 * kNsPerMs, 2);
  // A slot of 64 bytes takes a tenth of a second.
  rails.world.SetLinkBandwidth(rails.client, rails.server, 640, 3);
  EXPECT_LT(rails.WriteNs(0), kNsPerMs);
  EXPECT_GE(rails.WriteNs(1), 10 * kNsPerMs);
  EXPECT_GE(rails.WriteNs(2), 10 * kNsPerMs);
  EXPECT_GE(rails.WriteNs(3), 100 * kNsPerMs);
  // What is sent at once queues up behind each other.
  for (std::uint32_t i = 0; i < 5; ++i) rails.clients[3]->Write(*rails.servers[3], i, i, i);
  const std::size_t before = rails.clients[3]->completions.size();
  rails.world.RunFor(450 * kNsPerMs);
  EXPECT_EQ(rails.clients[3]->completions.size(), before + 4);
}

TEST(SimRailsTest, ARailCanHaveAFaultPlanOfItsOwn) {
  Rails rails(5);
  FaultPlan plan;
  plan.cut_ppm = 1'000'000;
  rails.world.set_plan(plan, 1);
  for (std::uint32_t rail = 0; rail < 2; ++rail) {
    rails.clients[rail]->Write(*rails.servers[rail], 0, 0, 1);
  }
  rails.world.RunFor(60 * kNsPerSecond);
  EXPECT_FALSE(rails.clients[0]->Saw(CmEvent::Kind::kDisconnected));
  EXPECT_TRUE(rails.clients[1]->Saw(CmEvent::Kind::kDisconnected));
}

TEST(SimRailsTest, AListenerOnAnyAddressIsReachedOnEveryRailAndOneOnAnAddressOnThatOneOnly) {
  World world(6, FaultPlan());
  Host& client = world.AddHost("client");
  Host& server = world.AddHost("server");
  auto everywhere = std::make_unique<Peer>(server);
  everywhere->listener = everywhere->poller->Listen(Host::AnyAddress(1), 0).value();
  auto somewhere = std::make_unique<Peer>(server);
  EXPECT_FALSE(somewhere->poller->Listen(server.Address(1, 2), 0).ok());
  EXPECT_FALSE(somewhere->poller->Listen(client.Address(2), 0).ok());
  somewhere->listener = somewhere->poller->Listen(server.Address(2, 2), 0).value();
  everywhere->accept = somewhere->accept = false;
  const auto try_connect = [&](std::uint16_t port, std::uint32_t rail) {
    Peer peer(client);
    peer.connection =
        peer.poller->StartConnect(server.Address(port, rail), peer.Options(), {}).value();
    world.RunUntil(
        [&] { return !peer.kinds.empty() || everywhere->incoming || somewhere->incoming; },
        kNsPerSecond);
    const bool heard = everywhere->incoming || somewhere->incoming;
    everywhere->incoming.reset();
    somewhere->incoming.reset();
    world.RunUntil([&] { return peer.connection->drained(); }, 60 * kNsPerSecond);
    return heard;
  };
  for (std::uint32_t rail = 0; rail < kRailCount; ++rail) {
    EXPECT_TRUE(try_connect(1, rail)) << rail;
    EXPECT_EQ(try_connect(2, rail), rail == 2) << rail;
  }
  somewhere.reset();  // Its port is free again.
  everywhere->listener = everywhere->poller->Listen(server.Address(2, 2), 0).value();
}

}  // namespace
}  // namespace ibnbd::sim

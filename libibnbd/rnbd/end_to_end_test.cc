// SPDX-License-Identifier: Apache-2.0
// The real client and the real server over the simulator without faults: what one side sends, the
// other understands, and data arrives where it belongs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "rnbd/client.h"
#include "rnbd/server_fixture.h"

namespace ibnbd::rnbd {
namespace {

constexpr std::uint64_t kDiskSize = 4 << 20;
constexpr std::int64_t kSoon = 5 * kNsPerSecond;

struct TestIo final : Io {
  void OnIoDone(int result) override {
    ++done_count;
    error = result;
  }
  int done_count = 0;
  int error = 1;
};

class EndToEnd : public ::testing::Test {
 protected:
  EndToEnd()
      : world(7, sim::FaultPlan()),
        disk(std::make_shared<FakeDisk>(FakeGeometry(kDiskSize))),
        disk2(std::make_shared<FakeDisk>(FakeGeometry(kDiskSize))),
        server(world, MakeServerOptions()),
        client_host(world.AddHost("client")),
        client_ports(client_host, 3),
        memory(1 << 20) {
    vol0 = &server.exports.Add("vol0", disk, {20 * kNsPerUs, 80 * kNsPerUs});
    server.exports.Add("vol1", disk2);
    server.exports.Add("ro", disk2, {}, true);
    region = client_host.fabric().Register(memory, fabric::Access::kRemoteWrite).value();
    Client::Options options;
    options.session.name = "host-a";
    options.session.server = server.address;
    options.session.seed = 3;
    const std::vector<rtrs::Port*> ports = client_ports.all();
    client = Client::Create(options, *ports[0], std::span(ports).subspan(1)).value();
  }
  ~EndToEnd() override {
    bool closed = false;
    client->Close(kNsPerSecond, [&closed] { closed = true; });
    EXPECT_TRUE(world.RunUntil([&closed] { return closed; }, 60 * kNsPerSecond));
    client.reset();
    EXPECT_TRUE(server.Stop());
    region.reset();
    EXPECT_THAT(world.violations(), ::testing::IsEmpty());
  }

  static ServerOptions MakeServerOptions() {
    ServerOptions options;
    options.queue_depth = 32;
    options.io_size_max = 16384;
    return options;
  }
  absl::Status Start() {
    absl::Status status = absl::UnknownError("no answer");
    bool ready = false;
    client->Start(false, [&](absl::Status result) {
      status = result;
      ready = true;
    });
    world.RunUntil([&ready] { return ready; }, kSoon);
    return status;
  }
  absl::StatusOr<Device*> Open(const std::string& name, AccessMode mode) {
    absl::StatusOr<Device*> device = absl::UnknownError("no answer");
    bool done = false;
    client->OpenDevice(name, mode, {}, [&](absl::StatusOr<Device*> result) {
      device = std::move(result);
      done = true;
    });
    world.RunUntil([&done] { return done; }, kSoon);
    return device;
  }
  void CloseDevice(Device* device) {
    bool done = false;
    client->CloseDevice(device, kNsPerSecond, [&done] { done = true; });
    EXPECT_TRUE(world.RunUntil([&done] { return done; }, kSoon));
  }
  // Room for an IO: piece `slot` of 64 KiB.
  std::span<std::byte> Piece(std::size_t slot, std::size_t size) {
    return std::span(memory).subspan(slot << 16, size);
  }
  void Prepare(TestIo& io, IoOp op, std::uint64_t offset, std::uint64_t length, std::size_t slot) {
    io.op = op;
    io.offset = offset;
    io.length = length;
    if (op == IoOp::kRead || op == IoOp::kWrite) {
      io.data = Piece(slot, length);
      io.keys = &region->keys();
    }
  }
  int Finish(TestIo& io) {
    EXPECT_TRUE(world.RunUntil([&io] { return io.done_count > 0; }, 120 * kNsPerSecond));
    return io.error;
  }
  int Run(Device* device, IoOp op, std::uint64_t offset, std::uint64_t length, std::size_t lane = 0,
          bool fua = false) {
    TestIo io;
    Prepare(io, op, offset, length, lane);
    io.fua = fua;
    const int submitted = device->queue(lane).Submit(io);
    if (submitted != 0) return submitted;
    const int error = Finish(io);
    EXPECT_EQ(io.done_count, 1);
    return error;
  }
  void Fill(std::size_t slot, std::size_t size, int value) {
    std::fill_n(Piece(slot, size).begin(), size, std::byte(value));
  }

  sim::World world;
  std::shared_ptr<FakeDisk> disk, disk2;
  ServerFixture server;
  FakeBackend* vol0 = nullptr;
  sim::Host& client_host;
  SimPorts client_ports;
  std::vector<std::byte> memory;
  std::unique_ptr<fabric::Region> region;
  std::unique_ptr<Client> client;
};

TEST_F(EndToEnd, AnOpenedDeviceSaysWhatTheExportIs) {
  ASSERT_TRUE(Start().ok());
  disk->set_volume_id(77);
  const auto device = Open("vol0", AccessMode::kReadWrite);
  ASSERT_TRUE(device.ok()) << device.status();
  const DeviceInfo& info = (*device)->info();
  EXPECT_EQ(info.size_bytes, kDiskSize);
  EXPECT_EQ(info.logical_block_size, 512u);
  EXPECT_EQ(info.io_size_max, 16384u);
  EXPECT_EQ(info.write_zeroes_bytes_max, 1u << 20);
  EXPECT_TRUE(info.write_cache);
  EXPECT_TRUE(info.fua);
  EXPECT_FALSE(info.read_only);
  EXPECT_FALSE(info.secure_erase);
  EXPECT_EQ(info.volume_id, 77u);
}

TEST_F(EndToEnd, WhatIsWrittenIsReadBackOnEveryLane) {
  ASSERT_TRUE(Start().ok());
  Device* device = Open("vol0", AccessMode::kReadWrite).value();
  for (std::size_t lane = 0; lane < 2; ++lane) {
    Fill(lane, 8192, 0x40 + static_cast<int>(lane));
    ASSERT_EQ(Run(device, IoOp::kWrite, 65536 + lane * 8192, 8192, lane), 0);
    Fill(lane, 8192, 0);
    ASSERT_EQ(Run(device, IoOp::kRead, 65536 + lane * 8192, 8192, lane), 0);
    EXPECT_THAT(Piece(lane, 8192), ::testing::Each(std::byte(0x40 + lane)));
  }
  EXPECT_EQ(disk->current()[65535], std::byte{0});
  EXPECT_EQ(disk->current()[65536 + 16384], std::byte{0});
}

TEST_F(EndToEnd, AnIoLargerThanAChunkIsSplit) {
  ASSERT_TRUE(Start().ok());
  Device* device = Open("vol0", AccessMode::kReadWrite).value();
  Fill(0, 65536, 0x5a);
  ASSERT_EQ(Run(device, IoOp::kWrite, 512, 65536), 0);
  EXPECT_EQ(vol0->count(BackendOp::kWrite), 4u);
  EXPECT_THAT(disk->current().subspan(512, 65536), ::testing::Each(std::byte{0x5a}));
}

TEST_F(EndToEnd, FlushAndFuaReachTheMedium) {
  ASSERT_TRUE(Start().ok());
  Device* device = Open("vol0", AccessMode::kReadWrite).value();
  Fill(0, 4096, 0x11);
  ASSERT_EQ(Run(device, IoOp::kWrite, 0, 4096), 0);
  EXPECT_EQ(disk->stable()[0], std::byte{0});
  ASSERT_EQ(Run(device, IoOp::kWrite, 4096, 4096, 0, true), 0);
  EXPECT_EQ(disk->stable()[0], std::byte{0});
  EXPECT_EQ(disk->stable()[4096], std::byte{0x11});
  ASSERT_EQ(Run(device, IoOp::kFlush, 0, 0), 0);
  EXPECT_EQ(disk->stable()[0], std::byte{0x11});
}

TEST_F(EndToEnd, DiscardAndWriteZeroesClearTheirRange) {
  ASSERT_TRUE(Start().ok());
  Device* device = Open("vol0", AccessMode::kReadWrite).value();
  std::fill_n(disk->current().begin(), 65536, std::byte{0xff});
  ASSERT_EQ(Run(device, IoOp::kDiscard, 4096, 4096), 0);
  bool no_unmap_seen = false;
  vol0->on_submit = [&](const BackendIo& io) { no_unmap_seen = io.no_unmap; };
  TestIo zeroes;
  Prepare(zeroes, IoOp::kWriteZeroes, 16384, 8192, 0);
  zeroes.no_unmap = true;
  ASSERT_EQ(device->queue(0).Submit(zeroes), 0);
  ASSERT_EQ(Finish(zeroes), 0);
  EXPECT_TRUE(no_unmap_seen);
  EXPECT_EQ(disk->current()[4095], std::byte{0xff});
  EXPECT_THAT(disk->current().subspan(4096, 4096), ::testing::Each(std::byte{0}));
  EXPECT_THAT(disk->current().subspan(16384, 8192), ::testing::Each(std::byte{0}));
  EXPECT_EQ(disk->current()[16384 + 8192], std::byte{0xff});
}

TEST_F(EndToEnd, ErrorsOfTheBackendArriveAsThemselves) {
  ASSERT_TRUE(Start().ok());
  Device* device = Open("vol0", AccessMode::kReadWrite).value();
  disk->FailRange(8192, 512, -ENOSPC);
  EXPECT_EQ(Run(device, IoOp::kWrite, 8192, 4096), -ENOSPC);
  disk->ClearFailures();
  disk->FailRange(0, 512, -EIO);
  EXPECT_EQ(Run(device, IoOp::kRead, 0, 512), -EIO);
  EXPECT_EQ(Run(device, IoOp::kRead, 512, 512), 0);
}

TEST_F(EndToEnd, AReadOnlyDeviceIsReadableOnly) {
  ASSERT_TRUE(Start().ok());
  const auto writer = Open("ro", AccessMode::kReadWrite);
  EXPECT_EQ(writer.status().code(), absl::StatusCode::kPermissionDenied) << writer.status();
  Device* device = Open("ro", AccessMode::kReadOnly).value();
  EXPECT_TRUE(device->info().read_only);
  EXPECT_EQ(Run(device, IoOp::kRead, 0, 4096), 0);
  EXPECT_EQ(Run(device, IoOp::kWrite, 0, 4096), -EPERM);
}

TEST_F(EndToEnd, AnUnknownExportIsNamedInTheError) {
  ASSERT_TRUE(Start().ok());
  const auto device = Open("vol9", AccessMode::kReadWrite);
  EXPECT_EQ(device.status().code(), absl::StatusCode::kNotFound) << device.status();
  EXPECT_THAT(std::string(device.status().message()), ::testing::HasSubstr("vol9"));
}

TEST_F(EndToEnd, TwoDevicesOfOneSessionDoNotMix) {
  ASSERT_TRUE(Start().ok());
  Device* first = Open("vol0", AccessMode::kReadWrite).value();
  Device* second = Open("vol1", AccessMode::kReadWrite).value();
  Fill(0, 4096, 1);
  ASSERT_EQ(Run(first, IoOp::kWrite, 0, 4096), 0);
  Fill(0, 4096, 2);
  ASSERT_EQ(Run(second, IoOp::kWrite, 0, 4096), 0);
  EXPECT_EQ(disk->current()[0], std::byte{1});
  EXPECT_EQ(disk2->current()[0], std::byte{2});
  CloseDevice(first);
  EXPECT_EQ(server.exports.at("vol0").writer_count, 0u);
  EXPECT_EQ(server.exports.at("vol1").writer_count, 1u);
  EXPECT_EQ(Run(second, IoOp::kRead, 0, 4096), 0);
}

TEST_F(EndToEnd, ListAndPingAnswer) {
  ASSERT_TRUE(Start().ok());
  ASSERT_TRUE(Open("vol0", AccessMode::kReadWrite).ok());
  std::vector<ExportEntry> entries;
  bool done = false;
  client->ListExports([&](absl::StatusOr<std::vector<ExportEntry>> result) {
    ASSERT_TRUE(result.ok()) << result.status();
    entries = *std::move(result);
    done = true;
  });
  ASSERT_TRUE(world.RunUntil([&done] { return done; }, kSoon));
  ASSERT_EQ(entries.size(), 3u);
  EXPECT_EQ(entries[0].name, "ro");
  EXPECT_TRUE(entries[0].read_only);
  EXPECT_EQ(entries[1].name, "vol0");
  EXPECT_EQ(entries[1].size_bytes, kDiskSize);
  EXPECT_EQ(entries[1].writer_count, 1u);
  std::int64_t round_trip_ns = 0;
  client->Ping([&](absl::StatusOr<std::int64_t> result) { round_trip_ns = result.value_or(-1); });
  ASSERT_TRUE(world.RunUntil([&] { return round_trip_ns != 0; }, kSoon));
  EXPECT_GT(round_trip_ns, 0);
}

TEST_F(EndToEnd, IosAreHeldOverABrokenPathAndCompleteOnce) {
  ASSERT_TRUE(Start().ok());
  Device* device = Open("vol0", AccessMode::kReadWrite).value();
  std::deque<TestIo> ios(40);
  for (std::size_t i = 0; i < ios.size(); ++i) {
    Fill(i % 16, 4096, 0x30);
    Prepare(ios[i], IoOp::kWrite, i * 4096, 4096, i % 16);
    ASSERT_EQ(device->queue(i % 2).Submit(ios[i]), 0);
  }
  world.RunFor(30 * kNsPerUs);
  world.CutConnections(client_host, server.host);
  for (TestIo& io : ios) {
    EXPECT_EQ(Finish(io), 0);
    EXPECT_EQ(io.done_count, 1);
  }
  EXPECT_THAT(disk->current().first(ios.size() * 4096), ::testing::Each(std::byte{0x30}));
  EXPECT_EQ(server.server->stats().paths_broken, 1u);
  EXPECT_EQ(server.server->stats().sessions, 1u);
}

TEST_F(EndToEnd, StopAnswersWhatExecutes) {
  ASSERT_TRUE(Start().ok());
  Device* device = Open("vol0", AccessMode::kReadWrite).value();
  vol0->HoldIos();
  TestIo io;
  Prepare(io, IoOp::kWrite, 0, 4096, 0);
  ASSERT_EQ(device->queue(0).Submit(io), 0);
  ASSERT_TRUE(world.RunUntil([this] { return vol0->executing_count() == 1; }, kSoon));
  bool stopped = false;
  server.server->Stop(10 * kNsPerSecond, [&stopped] { stopped = true; });
  world.RunFor(kNsPerSecond);
  EXPECT_FALSE(stopped);
  EXPECT_EQ(io.done_count, 0);
  vol0->Release();
  EXPECT_TRUE(world.RunUntil([&stopped] { return stopped; }, kNsPerSecond));
  EXPECT_EQ(io.done_count, 1);
  EXPECT_EQ(io.error, 0);
  EXPECT_EQ(vol0->queue_count(), 0u);
  server.server.reset();
}

}  // namespace
}  // namespace ibnbd::rnbd

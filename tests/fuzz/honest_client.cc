// SPDX-License-Identifier: Apache-2.0
#include "tests/fuzz/honest_client.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace ibnbd::fuzz {
namespace {

constexpr std::byte kGuard{0xa5};
constexpr std::int64_t kCloseDeadlineNs = 2 * kNsPerSecond;
// Above the deadline, what the fabric needs to end connections.
constexpr std::int64_t kCloseBoundNs = kCloseDeadlineNs + 30 * kNsPerSecond;

}  // namespace

void HonestClient::OneIo::OnIoDone(int io_error) {
  CHECK(outstanding);  // C1: never twice.
  CHECK_LE(io_error, 0);
  outstanding = false;
  error = io_error;
}

HonestClient::HonestClient(sim::World& world, sim::Host& host, const SocketAddress& server,
                           const rtrs::ClientSessionOptions& session)
    : world_(world) {
  for (int i = 0; i < 2; ++i) {
    reactors_.push_back(&host.AddReactor());
    ports_.push_back(rtrs::Port::Create(*reactors_.back(), host.fabric()).value());
  }
  arena_ = Arena::Create(2 * (kBufferSize + kGuardSize)).value();
  std::fill(arena_.bytes().begin(), arena_.bytes().end(), kGuard);
  read_region_ = host.fabric().Register(read_buffer(), fabric::Access::kRemoteWrite).value();
  write_region_ = host.fabric().Register(write_buffer(), fabric::Access::kLocal).value();
  rnbd::Client::Options options;
  options.session = session;
  options.session.server = server;
  rtrs::Port* const lane = ports_[1].get();
  client_ = rnbd::Client::Create(options, *ports_[0], {&lane, 1}).value();
}

HonestClient::~HonestClient() {
  if (!client_->closed()) {
    bool closed = false;
    reactors_[0]->Post(
        [this, &closed] { client_->Close(kCloseDeadlineNs, [&closed] { closed = true; }); });
    CHECK(world_.RunUntil([&closed] { return closed; }, kCloseBoundNs));  // C4.
  }
  CHECK(!io_.outstanding);
  CheckGuards();
  client_.reset();
  read_region_.reset();
  write_region_.reset();
  ports_.clear();
}

bool HonestClient::Open(std::int64_t virtual_ns_max, std::int64_t fail_after_ns) {
  bool done = false;
  const auto on_open = [this, &done](absl::StatusOr<rnbd::Device*> device) {
    CHECK(!done);
    done = true;
    if (device.ok()) device_ = *device;
  };
  reactors_[0]->Post([this, &done, on_open, fail_after_ns] {
    client_->Start(/*retry=*/false, [this, &done, on_open, fail_after_ns](absl::Status status) {
      if (!status.ok()) {
        done = true;
        return;
      }
      client_->OpenDevice("vol0", rnbd::AccessMode::kReadWrite, {fail_after_ns}, on_open);
    });
  });
  CHECK(world_.RunUntil([&done] { return done; }, virtual_ns_max));
  return device_ != nullptr;
}

int HonestClient::Do(rnbd::IoOp op, std::uint64_t offset, std::uint32_t length,
                     std::int64_t virtual_ns_max) {
  CHECK(!io_.outstanding);
  io_.op = op;
  io_.offset = offset;
  io_.length = length;
  io_.data = {};
  if (op == rnbd::IoOp::kRead) io_.data = read_buffer().first(length);
  if (op == rnbd::IoOp::kWrite) io_.data = write_buffer().first(length);
  io_.keys = &(op == rnbd::IoOp::kRead ? read_region_ : write_region_)->keys();
  io_.outstanding = true;
  reactors_[1]->Post([this] {
    const int error = device_->queue(0).Submit(io_);
    if (error != 0) io_.OnIoDone(error);
  });
  const bool done = world_.RunUntil([this] { return !io_.outstanding; }, virtual_ns_max);
  CheckGuards();
  return done ? io_.error : 1;
}

void HonestClient::WriteAndReadBack(std::uint8_t seed) {
  constexpr std::int64_t kIoNsMax = 10 * kNsPerSecond;
  const auto pattern = [seed](std::size_t i) { return static_cast<std::byte>(seed + i * 7); };
  for (std::size_t i = 0; i < kBufferSize; ++i) write_buffer()[i] = pattern(i);
  CHECK_EQ(Do(rnbd::IoOp::kWrite, seed * 512u, kBufferSize, kIoNsMax), 0);
  CHECK_EQ(Do(rnbd::IoOp::kFlush, 0, 0, kIoNsMax), 0);
  std::fill(read_buffer().begin(), read_buffer().end(), std::byte{0});
  CHECK_EQ(Do(rnbd::IoOp::kRead, seed * 512u, kBufferSize, kIoNsMax), 0);
  for (std::size_t i = 0; i < kBufferSize; ++i) CHECK(read_buffer()[i] == pattern(i));
}

void HonestClient::ListExports() {
  reactors_[0]->Post(
      [this] { client_->ListExports([](absl::StatusOr<std::vector<rnbd::ExportEntry>>) {}); });
}

void HonestClient::CheckGuards() const {
  const std::span<std::byte> bytes = arena_.bytes();
  const auto intact = [](std::byte b) { return b == kGuard; };
  CHECK(std::all_of(bytes.begin(), bytes.begin() + kGuardSize, intact));
  const auto middle = bytes.begin() + kGuardSize + kBufferSize;
  CHECK(std::all_of(middle, middle + kGuardSize, intact));
}

}  // namespace ibnbd::fuzz

// SPDX-License-Identifier: Apache-2.0
// What the tcp fabric asks of the socket API on the control plane, and the reading of greetings.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/socket_address.h"
#include "base/unique_fd.h"
#include "proto/tcp_frame.h"
#include "reactor/io_ring.h"

namespace ibnbd::tcp {

absl::Status BindSource(int fd, const SocketAddress& source);
// "listen 0.0.0.0:1234: bind: Address already in use".
absl::StatusOr<UniqueFd> OpenListener(const SocketAddress& local);
absl::StatusOr<UniqueFd> OpenSocket(const SocketAddress& peer);
void SetNoDelay(int fd);
SocketAddress LocalAddressOf(int fd);
SocketAddress PeerAddressOf(int fd);

// An operation that calls a member function.  `armed` as long as its completion is to come.
template <class Owner>
class MemberOp final : public IoRingOp {
 public:
  using Method = void (Owner::*)(int result, std::uint32_t flags);
  MemberOp(Owner& owner, Method method) : owner_(owner), method_(method) {}
  void Prepare(IoRing& ring, io_uring_sqe* sqe) {
    ring.Prepare(sqe, *this);
    armed_ = true;
  }
  void OnCqe(int result, std::uint32_t flags) override {
    armed_ = false;
    (owner_.*method_)(result, flags);
  }
  [[nodiscard]] bool armed() const { return armed_; }

 private:
  Owner& owner_;
  const Method method_;
  bool armed_ = false;
};

// A greeting and its private data on their way in, in whatever pieces; never reads beyond them.
class GreetingReader {
 public:
  // Where the next bytes go; empty once it is complete.
  [[nodiscard]] std::span<std::byte> Window();
  // Null, or why the peer is refused.
  const char* Advance(std::size_t byte_count);
  [[nodiscard]] bool complete() const { return have_ == need_ && need_ >= sizeof(greeting_); }
  [[nodiscard]] proto::tcp::GreetingKind kind() const { return greeting_.kind; }
  [[nodiscard]] std::span<const std::byte> private_data() const;

 private:
  std::array<std::byte, sizeof(proto::tcp::Greeting) + proto::tcp::kPrivateDataSizeMax> bytes_{};
  proto::tcp::Greeting greeting_;
  std::size_t have_ = 0;
  std::size_t need_ = sizeof(proto::tcp::Greeting);
  bool header_seen_ = false;
};

// A greeting on its way out.
struct OutgoingGreeting {
  std::array<std::byte, sizeof(proto::tcp::Greeting) + proto::tcp::kPrivateDataSizeMax> bytes{};
  std::size_t size = 0;
  void Set(proto::tcp::GreetingKind kind, std::span<const std::byte> private_data);
};

}  // namespace ibnbd::tcp

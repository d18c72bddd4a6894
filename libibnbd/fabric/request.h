// SPDX-License-Identifier: Apache-2.0
// The words of the narrow waist: what is registered, what is posted, and what comes of it.  What is
// promised of them stands in fabric.h, whose numbers the comments name.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace ibnbd::fabric {

using Cookie = std::uint64_t;  // The caller's name for a request; never a pointer.

struct Sge {
  std::byte* addr = nullptr;
  std::uint32_t length = 0;
  std::uint32_t lkey = 0;
};
struct RemoteAddress {
  std::uint64_t addr = 0;
  std::uint32_t rkey = 0;
};

enum class Access : std::uint8_t {
  kLocal,        // The NIC may read and write it for its owner: sources and receives.
  kRemoteWrite,  // Also: the peer of any connection of this fabric (but F13) may write with it.
  kRemoteInvalidate,  // Also: kSendInvalidate may kill the rkey.
  kWindows            // As kLocal; the peer may write through its windows alone (F14).
};
enum class Opcode : std::uint8_t {
  // Posted by PostSend().
  kSend,
  kSendImm,
  kSendInvalidate,
  kWrite,
  kWriteImm,
  kOpenWindow,  // F14.
  kCloseWindow,
  // Of completed receives.
  kReceive,         // A completed receive that a kSend* consumed.
  kReceiveWriteImm  // A completed receive that a kWriteImm consumed; byte_count is what it wrote.
};
enum class WcStatus : std::uint8_t {
  kOk,
  kFlushed,       // The connection broke earlier.
  kPeerGone,      // The peer stopped answering or closed.
  kNoReceive,     // F5.
  kRemoteAccess,  // F6, F11: the peer refused the key, the range or the length.
  kLocalFault     // Our own side refused: a bad lkey, a message longer than the receive.
};

class Window;

struct SendRequest {
  Cookie cookie = 0;
  Opcode opcode = Opcode::kSend;
  bool signaled = true;
  std::uint32_t imm = 0;              // kSendImm, kWriteImm.  Host order here, big-endian on wires.
  std::uint32_t invalidate_rkey = 0;  // kSendInvalidate.
  RemoteAddress remote;               // kWrite, kWriteImm.  Ignored when the length is 0.
  std::span<const Sge> sges;          // Read during PostSend() only.  May be empty.
  Window* window = nullptr;  // kOpenWindow, kCloseWindow.  At most one request for it in one call.
};
struct ReceiveRequest {
  Cookie cookie = 0;
  std::span<const Sge> sges;  // Read during PostReceive() only.  May be empty.
};

struct Completion {
  Cookie cookie = 0;
  WcStatus status = WcStatus::kOk;
  // The rest holds only if status == kOk; sim/ fills it with junk otherwise.
  Opcode opcode = Opcode::kSend;
  bool has_imm = false;
  bool has_invalidate = false;
  std::uint32_t imm = 0;
  std::uint32_t invalidated_rkey = 0;
  std::uint32_t byte_count = 0;  // Receives: bytes of the message, or written by kWriteImm.
};

struct Limits {
  std::uint32_t sends_max = 0;        // Posted sends without a covering completion, at most.
  std::uint32_t receives_max = 0;     // Posted receives, at most.
  std::uint32_t sges_max = 0;         // Per send.  At least 2 are granted.
  std::uint32_t inline_size_max = 0;  // Sources up to this size are copied by PostSend(); lkey 0 is
                                      // then allowed and F9 ends at once.  0: never.
};

class Window {  // A key for a region that changes (F14).  Closed when it is made.
 public:
  virtual ~Window() = default;  // As Region's.  Before its region.
  // The rkey that the next kOpenWindow gives.  Changes in PostSend() alone; callers on different
  // threads take turns.
  [[nodiscard]] virtual std::uint32_t next_rkey() const = 0;
};

// A fabric may reach its peers through several devices, each with keys of its own for the memory of
// the common domain; Connection::device() says through which one a connection goes.  Most fabrics
// have one, of number 0.
inline constexpr std::uint32_t kDevicesMax = 4;
struct KeyPair {
  std::uint32_t lkey = 0, rkey = 0;
};
using Keys = std::array<KeyPair, kDevicesMax>;

class Region {  // Registered memory.  Destroying it kills its keys.
 public:
  virtual ~Region() = default;  // Requires: no connection that could use it, or all drained.
  // Kills the keys now.  False for as long as a write that the peer began before may still be
  // landing: such a one ends at the latest when the connection that carries it is drained.  For
  // owners who do not trust the peer to be through with it.  Any thread.
  virtual bool Revoke() { return true; }
  // F14, on this region, which is one of kWindows.  Control plane; any thread.
  virtual absl::StatusOr<std::unique_ptr<Window>> CreateWindow() {
    return absl::UnimplementedError("this fabric has no memory windows");
  }
  // By device.  Those of a device that joins later (Fabric::AddPeer()) are there before any
  // connection goes through it.
  [[nodiscard]] const Keys& keys() const { return keys_; }
  // Of device 0, or of the domain that was created.
  [[nodiscard]] virtual std::uint32_t lkey() const = 0;
  [[nodiscard]] virtual std::uint32_t rkey() const = 0;  // 0 for kLocal and kWindows.
  [[nodiscard]] virtual std::span<std::byte> memory() const = 0;

 protected:
  Keys keys_{};
};

}  // namespace ibnbd::fabric

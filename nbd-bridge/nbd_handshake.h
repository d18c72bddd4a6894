// SPDX-License-Identifier: Apache-2.0
// The negotiation of an NBD connection as a pure state machine: bytes in, bytes out, no sockets, no
// clock.  A connection feeds it what arrived, sends what it produced, and goes on feeding only when
// that was sent, so that output is bounded by the answer to one option.  Fixed newstyle:
// EXPORT_NAME, GO, INFO, LIST, ABORT, STRUCTURED_REPLY; meta contexts are answered with none;
// everything else with ERR_UNSUP.  Used by NbdConnection on its loop's thread; fuzzed as it stands.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "proto/nbd.h"

namespace ibnbd::bridge {

// What a client is told about an export.
struct NbdExport {
  std::string name;
  std::string description;
  std::uint64_t size = 0;
  std::uint16_t flags = 0;  // Transmission flags, without SEND_DF: that depends on the client.
  std::uint32_t block_size_min = 512;
  std::uint32_t block_size_preferred = 4096;
  std::uint32_t block_size_max = 0;
};

// The catalogue.  Indexes are stable.
class NbdExports {
 public:
  virtual ~NbdExports() = default;
  [[nodiscard]] virtual std::size_t count() const = 0;
  // Requires index < count().  The facts of now: a volume may have grown.
  [[nodiscard]] virtual NbdExport Describe(std::size_t index) const = 0;
  // "" is the default export.
  [[nodiscard]] virtual std::optional<std::size_t> Find(std::string_view name) const = 0;
};

class NbdHandshake {
 public:
  enum class State {
    kClientFlags,   // Waits for the 4 bytes of the client's flags.
    kOption,        // Waits for the 16 bytes of an option's header.
    kPayload,       // Waits for the payload of an option.
    kSkip,          // Waits for the end of a payload that is too long to be looked at.
    kTransmission,  // An export was chosen; what follows in the stream are requests.
    kClosed,        // Send what was produced, then close; reason() says why.
  };

  // Appends the greeting to `out`.  `exports` must outlive the handshake.
  NbdHandshake(const NbdExports& exports, std::string* out);

  // Consumes bytes of `in` up to the end of one option at most, appends answers to `out`, and
  // returns how many bytes were consumed.  Call again with the rest while it is not empty and
  // state() is not one of the last two.
  std::size_t Feed(std::span<const std::byte> in, std::string* out);

  [[nodiscard]] State state() const { return state_; }
  [[nodiscard]] bool finished() const {
    return state_ == State::kTransmission || state_ == State::kClosed;
  }
  // In kClosed: what was wrong; null if the client said good-bye (ABORT).
  [[nodiscard]] const char* reason() const { return reason_; }
  // In kTransmission.
  [[nodiscard]] std::size_t export_index() const { return export_index_; }
  [[nodiscard]] bool structured_replies() const { return structured_replies_; }
  // What the client was told, and is held to.
  [[nodiscard]] const proto::NbdExportLimits& limits() const { return limits_; }

  // An option that is longer than proto::kNbdOptionLengthMax is skipped and refused up to this
  // length; beyond it the connection is closed.
  static constexpr std::uint32_t kSkipMax = 1u << 20;
  // Clients that list a thousand exports ask about each of them; nobody needs more.
  static constexpr std::uint32_t kOptionsMax = 4096;

 private:
  void Expect(State state, std::size_t size);
  void Close(const char* reason);
  void OnClientFlags();
  void OnOptionHeader(std::string* out);
  void OnOption(std::string* out);
  void OnExportName(std::string* out);
  void OnGo(std::string* out);
  void OnList(std::string* out);
  void OnMetaContext(std::string* out);
  void Select(std::size_t index, const NbdExport& chosen);
  void Reply(proto::NbdRep type, std::string_view payload, std::string* out) const;
  [[nodiscard]] std::uint16_t FlagsOf(const NbdExport& chosen) const;
  [[nodiscard]] std::span<const std::byte> payload() const {
    return std::span<const std::byte>(buffer_).first(have_);
  }

  const NbdExports& exports_;
  State state_ = State::kClientFlags;
  std::size_t have_ = 0;  // Bytes of buffer_ (or, in kSkip, of the payload) that have arrived.
  std::size_t need_ = 0;
  std::uint32_t option_ = 0;
  std::uint32_t options_seen_ = 0;
  bool no_zeroes_ = false;
  bool structured_replies_ = false;
  std::size_t export_index_ = 0;
  proto::NbdExportLimits limits_;
  const char* reason_ = nullptr;
  std::array<std::byte, proto::kNbdOptionLengthMax> buffer_;
};

}  // namespace ibnbd::bridge

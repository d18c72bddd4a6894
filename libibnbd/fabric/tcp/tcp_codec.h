// SPDX-License-Identifier: Apache-2.0
// The receiving half of the framing as a pure state machine: no sockets, no keys, no allocation. It
// is told how many bytes arrived where it asked for them, and says what they mean.  The connection
// drives it (tcp_connection_datapath.cc); the fuzzer feeds it in arbitrary pieces.
//
// Nothing of a payload is placed before its header was checked here for form and by the caller for
// key, range and length.  Bytes then go the shortest way: what is known to belong to a payload is
// received straight into its target.  Headers, and payloads that happen to arrive behind them, go
// through a staging buffer and are copied once, because copying 4 KiB is cheaper than a system
// call.  After a large payload the staging window shrinks, so that a stream of large payloads is
// hardly copied.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "fabric/fabric.h"
#include "proto/tcp_frame.h"

namespace ibnbd::tcp {

class FrameDecoder {
 public:
  static constexpr std::size_t kStagingSize = 64 * 1024;
  // Room for the headers around a large payload: its successor's and a short message.
  static constexpr std::size_t kSmallWindow = 512;
  static constexpr std::uint32_t kLargePayload = 16 * 1024;
  static constexpr std::size_t kWindowPiecesMax = 8;

  FrameDecoder();

  enum class Step : std::uint8_t {
    kNeedBytes,  // Receive into Window(), then Advance().
    kHeader,     // header() is well formed: call Place() or give up.  Next() repeats kHeader until
                 // then.
    kFrame,      // header()'s payload is wholly placed.
    kMalformed,  // reason() says why; there is no way on.
  };
  Step Next();
  [[nodiscard]] const proto::tcp::FrameHeader& header() const { return header_; }
  [[nodiscard]] const char* reason() const { return reason_; }

  // Where the payload goes: `targets` hold at least header().length bytes and stay valid until
  // kFrame.  The span itself must stay valid, too.
  void Place(std::span<const fabric::Sge> targets);
  void PlaceAt(std::byte* target);

  // Where the next bytes should go; at most kWindowPiecesMax pieces.  Returns how many.
  std::size_t Window(std::span<iovec> out);
  void Advance(std::size_t byte_count);

  // Data frames that are wholly placed.
  [[nodiscard]] std::uint32_t data_frame_count() const { return data_frame_count_; }

 private:
  enum class State : std::uint8_t { kHeader, kAwaitPlace, kPayload, kMalformed };
  void CopyStaged();
  void TakePayload(std::size_t byte_count);

  State state_ = State::kHeader;
  proto::tcp::FrameHeader header_;
  const char* reason_ = nullptr;
  std::span<const fabric::Sge> targets_;
  fabric::Sge single_;             // The target of a write.
  std::size_t target_offset_ = 0;  // Into targets_.front().
  std::uint32_t payload_left_ = 0;
  std::uint32_t data_frame_count_ = 0;
  bool large_stream_ = false;  // The last payload was a large one.
  std::unique_ptr<std::byte[]> staging_;
  std::size_t staged_begin_ = 0;
  std::size_t staged_end_ = 0;
};

}  // namespace ibnbd::tcp

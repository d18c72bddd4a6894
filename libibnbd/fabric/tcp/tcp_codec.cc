// SPDX-License-Identifier: Apache-2.0
#include "fabric/tcp/tcp_codec.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"

namespace ibnbd::tcp {

using proto::tcp::FrameHeader;

FrameDecoder::FrameDecoder() : staging_(new std::byte[kStagingSize]) {}

FrameDecoder::Step FrameDecoder::Next() {
  switch (state_) {
    case State::kMalformed:
      return Step::kMalformed;
    case State::kAwaitPlace:
      return Step::kHeader;
    case State::kHeader:
      if (staged_end_ - staged_begin_ < sizeof header_) return Step::kNeedBytes;
      std::memcpy(&header_, staging_.get() + staged_begin_, sizeof header_);
      staged_begin_ += sizeof header_;
      reason_ = proto::tcp::WhyInvalid(header_, data_frame_count_);
      state_ = reason_ == nullptr ? State::kAwaitPlace : State::kMalformed;
      return reason_ == nullptr ? Step::kHeader : Step::kMalformed;
    case State::kPayload:
      CopyStaged();
      if (payload_left_ > 0) return Step::kNeedBytes;
      if (proto::tcp::IsData(header_.opcode)) ++data_frame_count_;
      state_ = State::kHeader;
      return Step::kFrame;
  }
  return Step::kMalformed;
}

void FrameDecoder::Place(std::span<const fabric::Sge> targets) {
  DCHECK(state_ == State::kAwaitPlace);
  targets_ = targets;
  target_offset_ = 0;
  payload_left_ = header_.length.get();
  // Frames without payload say nothing about the stream.
  if (payload_left_ > 0) large_stream_ = payload_left_ >= kLargePayload;
  state_ = State::kPayload;
}

void FrameDecoder::PlaceAt(std::byte* target) {
  single_ = {target, header_.length.get(), 0};
  Place({&single_, 1});
}

// Moves what is staged of the payload to its target.
void FrameDecoder::CopyStaged() {
  while (payload_left_ > 0 && staged_begin_ < staged_end_) {
    while (target_offset_ == targets_.front().length) {
      targets_ = targets_.subspan(1);
      target_offset_ = 0;
    }
    const std::size_t count =
        std::min({static_cast<std::size_t>(payload_left_), staged_end_ - staged_begin_,
                  targets_.front().length - target_offset_});
    std::memcpy(targets_.front().addr + target_offset_, staging_.get() + staged_begin_, count);
    staged_begin_ += count;
    TakePayload(count);
  }
}

// `byte_count` bytes of the payload have been placed; they may span targets.
void FrameDecoder::TakePayload(std::size_t byte_count) {
  payload_left_ -= static_cast<std::uint32_t>(byte_count);
  while (byte_count > 0) {
    const std::size_t count = std::min(byte_count, targets_.front().length - target_offset_);
    target_offset_ += count;
    byte_count -= count;
    if (byte_count > 0) {
      targets_ = targets_.subspan(1);
      target_offset_ = 0;
    }
  }
}

std::size_t FrameDecoder::Window(std::span<iovec> out) {
  DCHECK_GE(out.size(), 2u);
  std::size_t pieces = 0;
  if (state_ == State::kPayload && payload_left_ > 0) {
    // Next() emptied the staging buffer before it asked for more.
    DCHECK(staged_begin_ == staged_end_);
    std::size_t left = payload_left_;
    std::size_t offset = target_offset_;
    for (const fabric::Sge& target : targets_) {
      if (left == 0 || pieces == out.size() - 1) break;
      const std::size_t count = std::min(left, target.length - offset);
      if (count > 0) out[pieces++] = {target.addr + offset, count};
      left -= count;
      offset = 0;
    }
    // More pieces than fit: what follows them is payload, and must not be taken for a header.
    if (left > 0) return pieces;
  }
  const std::size_t staged = staged_end_ - staged_begin_;
  if (staged > 0 && staged_begin_ > 0) {
    std::memmove(staging_.get(), staging_.get() + staged_begin_, staged);  // Less than a header.
  }
  staged_begin_ = 0;
  staged_end_ = staged;
  const std::size_t window = large_stream_ ? kSmallWindow : kStagingSize;
  out[pieces++] = {staging_.get() + staged, window - staged};
  return pieces;
}

void FrameDecoder::Advance(std::size_t byte_count) {
  if (state_ == State::kPayload) {
    const std::size_t placed = std::min<std::size_t>(byte_count, payload_left_);
    TakePayload(placed);
    byte_count -= placed;
  }
  staged_end_ += byte_count;
  DCHECK_LE(staged_end_, kStagingSize);
}

}  // namespace ibnbd::tcp

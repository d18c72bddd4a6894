// SPDX-License-Identifier: Apache-2.0
// See nbd_handshake.h.  Every length is checked in OnOptionHeader() or by the decoders of
// proto/nbd_codec.h before it is used.
#include "nbd-bridge/nbd_handshake.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"

namespace ibnbd::bridge {
namespace {

using proto::be32;
using proto::NbdOption;
using proto::NbdRep;

template <typename T>
void Append(const T& message, std::string* out) {
  const auto bytes = proto::AsBytes(message);
  out->append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

template <typename T>
std::string_view View(const T& message) {
  const auto bytes = proto::AsBytes(message);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace

NbdHandshake::NbdHandshake(const NbdExports& exports, std::string* out) : exports_(exports) {
  Append(proto::NbdServerGreeting{}, out);
  Expect(State::kClientFlags, sizeof(proto::NbdClientFlags));
}

void NbdHandshake::Expect(State state, std::size_t size) {
  state_ = state;
  have_ = 0;
  need_ = size;
}

void NbdHandshake::Close(const char* reason) {
  state_ = State::kClosed;
  reason_ = reason;
}

std::size_t NbdHandshake::Feed(std::span<const std::byte> in, std::string* out) {
  std::size_t consumed = 0;
  while (!finished()) {
    const std::size_t take = std::min(need_ - have_, in.size() - consumed);
    if (state_ != State::kSkip && take != 0) {
      std::memcpy(buffer_.data() + have_, in.data() + consumed, take);
    }
    have_ += take;
    consumed += take;
    if (have_ < need_) break;
    const std::size_t answered = out->size();
    switch (state_) {
      case State::kClientFlags:
        OnClientFlags();
        break;
      case State::kOption:
        OnOptionHeader(out);
        break;
      case State::kPayload:
        OnOption(out);
        break;
      case State::kSkip:
        Reply(NbdRep::kErrTooBig, "the option is too long", out);
        Expect(State::kOption, sizeof(proto::NbdOptionHeader));
        break;
      case State::kTransmission:
      case State::kClosed:
        break;
    }
    // One option at a time: its answer must leave before the next one is looked at.
    if (out->size() != answered) break;
  }
  return consumed;
}

void NbdHandshake::OnClientFlags() {
  proto::NbdClientFlags flags;
  if (const char* reason = proto::DecodeNbdClientFlags(payload(), &flags); reason != nullptr) {
    Close(reason);
    return;
  }
  no_zeroes_ = (flags.flags.get() & proto::kNbdNoZeroes) != 0;
  Expect(State::kOption, sizeof(proto::NbdOptionHeader));
}

void NbdHandshake::OnOptionHeader(std::string* out) {
  if (++options_seen_ > kOptionsMax) {
    Close("nbd_option: more than 4096 options");
    return;
  }
  proto::NbdOptionHeader header;
  const char* reason = proto::DecodeNbdOptionHeader(payload(), &header);
  const std::uint32_t length = header.length.get();
  const bool too_long = length > proto::kNbdOptionLengthMax;
  if (reason != nullptr && (header.magic.get() != proto::kNbdOptionMagic || !too_long)) {
    Close(reason);
    return;
  }
  option_ = header.option.get();
  if (!too_long) {
    Expect(State::kPayload, length);
    if (length == 0) OnOption(out);
    return;
  }
  // EXPORT_NAME has no way to answer an error.
  if (length > kSkipMax || option_ == static_cast<std::uint32_t>(NbdOption::kExportName)) {
    Close(reason);
    return;
  }
  Expect(State::kSkip, length);
}

void NbdHandshake::OnOption(std::string* out) {
  const auto option = static_cast<NbdOption>(option_);
  switch (option) {
    case NbdOption::kExportName:
      OnExportName(out);
      break;
    case NbdOption::kAbort:
      Reply(NbdRep::kAck, "", out);
      Close(nullptr);
      break;
    case NbdOption::kList:
      OnList(out);
      break;
    case NbdOption::kInfo:
    case NbdOption::kGo:
      OnGo(out);
      break;
    case NbdOption::kStructuredReply:
      if (const char* reason = proto::DecodeNbdEmptyOption(payload()); reason != nullptr) {
        Reply(NbdRep::kErrInvalid, reason, out);
      } else {
        structured_replies_ = true;
        Reply(NbdRep::kAck, "", out);
      }
      break;
    case NbdOption::kListMetaContext:
    case NbdOption::kSetMetaContext:
      OnMetaContext(out);
      break;
    case NbdOption::kStartTls:
    case NbdOption::kExtendedHeaders:
    default:
      Reply(NbdRep::kErrUnsup, "the option is not supported", out);
      break;
  }
  if (!finished()) Expect(State::kOption, sizeof(proto::NbdOptionHeader));
}

void NbdHandshake::OnExportName(std::string* out) {
  std::string_view name;
  if (const char* reason = proto::DecodeNbdExportName(payload(), &name); reason != nullptr) {
    Close(reason);
    return;
  }
  const std::optional<std::size_t> index = exports_.Find(name);
  if (!index) {
    Close("nbd_export_name: unknown export");
    return;
  }
  const NbdExport chosen = exports_.Describe(*index);
  Append(proto::NbdExportNameReply{.size = proto::be64(chosen.size),
                                   .flags = proto::be16(FlagsOf(chosen))},
         out);
  if (!no_zeroes_) out->append(proto::kNbdExportNameZeroes, '\0');
  Select(*index, chosen);
}

void NbdHandshake::OnGo(std::string* out) {
  proto::NbdGo go;
  if (const char* reason = proto::DecodeNbdGo(payload(), &go); reason != nullptr) {
    Reply(NbdRep::kErrInvalid, reason, out);
    return;
  }
  const std::optional<std::size_t> index = exports_.Find(go.name);
  if (!index) {
    Reply(NbdRep::kErrUnknown, go.name.empty() ? "there is no default export" : "unknown export",
          out);
    return;
  }
  const NbdExport chosen = exports_.Describe(*index);
  const proto::NbdInfoExport info{.size = proto::be64(chosen.size),
                                  .flags = proto::be16(FlagsOf(chosen))};
  Reply(NbdRep::kInfo, View(info), out);
  const auto reply_text = [&](proto::NbdInfo type, const std::string& text) {
    const proto::be16 number(static_cast<std::uint16_t>(type));
    Reply(NbdRep::kInfo, std::string(View(number)) + text, out);
  };
  if (go.wants_name) reply_text(proto::NbdInfo::kName, chosen.name);
  if (go.wants_description) reply_text(proto::NbdInfo::kDescription, chosen.description);
  // Sent unasked, too, as the protocol allows: who ignores it is refused misaligned requests.
  const proto::NbdInfoBlockSize blocks{
      .type = proto::be16(static_cast<std::uint16_t>(proto::NbdInfo::kBlockSize)),
      .minimum = be32(chosen.block_size_min),
      .preferred = be32(chosen.block_size_preferred),
      .maximum = be32(chosen.block_size_max)};
  Reply(NbdRep::kInfo, View(blocks), out);
  Reply(NbdRep::kAck, "", out);
  if (static_cast<NbdOption>(option_) == NbdOption::kGo) Select(*index, chosen);
}

void NbdHandshake::OnList(std::string* out) {
  if (const char* reason = proto::DecodeNbdEmptyOption(payload()); reason != nullptr) {
    Reply(NbdRep::kErrInvalid, reason, out);
    return;
  }
  for (std::size_t i = 0; i < exports_.count(); ++i) {
    const NbdExport entry = exports_.Describe(i);
    const be32 name_length(static_cast<std::uint32_t>(entry.name.size()));
    Reply(NbdRep::kServer, std::string(View(name_length)) + entry.name + entry.description, out);
  }
  Reply(NbdRep::kAck, "", out);
}

// There are no contexts; what a client asks for is looked at only as far as the export's name, so
// that a wrong name is told.
void NbdHandshake::OnMetaContext(std::string* out) {
  if (!structured_replies_) {
    Reply(NbdRep::kErrInvalid, "structured replies must be negotiated first", out);
    return;
  }
  be32 name_length;
  std::span<const std::byte> rest = payload();
  if (!proto::CopyOut(rest, &name_length) ||
      name_length.get() > std::min(rest.size() - sizeof(name_length), proto::kNbdNameMax)) {
    Reply(NbdRep::kErrInvalid, "nbd_meta_context: name is longer than the option", out);
    return;
  }
  rest = rest.subspan(sizeof(name_length));
  const std::string_view name{reinterpret_cast<const char*>(rest.data()), name_length.get()};
  if (rest.size() - name.size() < sizeof(be32)) {
    Reply(NbdRep::kErrInvalid, "nbd_meta_context: too short for the number of queries", out);
  } else if (!exports_.Find(name)) {
    Reply(NbdRep::kErrUnknown, "unknown export", out);
  } else {
    Reply(NbdRep::kAck, "", out);
  }
}

std::uint16_t NbdHandshake::FlagsOf(const NbdExport& chosen) const {
  const std::uint16_t df = structured_replies_ ? proto::kNbdSendDf : std::uint16_t{0};
  return static_cast<std::uint16_t>(chosen.flags | proto::kNbdHasFlags | df);
}

void NbdHandshake::Select(std::size_t index, const NbdExport& chosen) {
  export_index_ = index;
  limits_ = {.size = chosen.size,
             .block_size_min = chosen.block_size_min,
             .payload_size_max = chosen.block_size_max,
             .flags = FlagsOf(chosen)};
  state_ = State::kTransmission;
}

void NbdHandshake::Reply(NbdRep type, std::string_view text, std::string* out) const {
  Append(proto::MakeNbdOptionReply(option_, type, text.size()), out);
  out->append(text);
}

}  // namespace ibnbd::bridge

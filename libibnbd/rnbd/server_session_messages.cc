// SPDX-License-Identifier: Apache-2.0
// The control messages of a session: each is checked, carried out, and answered; a malformed one is
// answered with EINVAL and harms nobody.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "rnbd/server_access.h"
#include "rnbd/server_session.h"

namespace ibnbd::rnbd {
namespace {

// Puts the answer to a read where it is sent from.  The room is the client's choice: what is left
// of it is zeroed, what does not fit is the client's mistake.
template <class Message>
[[nodiscard]] int Answer(IoRequest& request, const Message& message) {
  const std::span<std::byte> room = request.rtrs::ServerRequest::data();
  if (!request.is_read() || proto::Encode(room, message) == 0) return -EINVAL;
  const std::span<std::byte> rest = room.subspan(sizeof(message));
  std::fill(rest.begin(), rest.end(), std::byte{0});
  return 0;
}

proto::le32 Sectors32(std::uint64_t bytes) {
  return proto::le32(
      static_cast<std::uint32_t>(std::min<std::uint64_t>(bytes / kSectorSize, 0xffffffffu)));
}

// What the volume can do; as the kernel's server, whoever asks.  That a device which was opened
// read-only may not do it is checked with each request.
proto::OpenRsp MakeOpenRsp(std::uint32_t id, const Geometry& geometry, bool read_only,
                           std::uint32_t io_size_max) {
  proto::OpenRsp response;
  response.device_id = proto::le32(id);
  response.nsectors = proto::le64(geometry.size_bytes / kSectorSize);
  response.max_hw_sectors = Sectors32(io_size_max);
  if (!read_only) {
    response.max_write_zeroes_sectors = Sectors32(geometry.write_zeroes_bytes_max);
    response.max_discard_sectors = Sectors32(geometry.discard_bytes_max);
    response.discard_granularity = proto::le32(geometry.discard_granularity);
    response.discard_alignment = proto::le32(geometry.discard_alignment);
  }
  response.physical_block_size = proto::le16(
      static_cast<std::uint16_t>(std::min<std::uint32_t>(geometry.physical_block_size, 32768)));
  response.logical_block_size =
      proto::le16(static_cast<std::uint16_t>(geometry.logical_block_size));
  response.max_segments = proto::le16(static_cast<std::uint16_t>(
      std::min<std::uint32_t>(std::max<std::uint32_t>(io_size_max / 4096, 1), 65535)));
  if (geometry.write_cache) {
    response.cache_policy =
        static_cast<std::uint8_t>(proto::kCacheWriteback | (geometry.fua ? proto::kCacheFua : 0));
  }
  response.volume_id = proto::le64(geometry.volume_id);
  return response;
}

proto::ListEntry MakeListEntry(const Export& exported) {
  const Geometry& geometry = exported.backend->geometry();
  proto::ListEntry entry;
  (void)proto::SetName(&entry.name, exported.name);  // Too long a name stays empty and is skipped.
  entry.nsectors = proto::le64(geometry.size_bytes / kSectorSize);
  entry.logical_block_size = proto::le32(geometry.logical_block_size);
  const bool read_only = exported.read_only || geometry.read_only;
  entry.flags = proto::le32((read_only ? proto::kListReadOnly : 0) |
                            (geometry.write_cache ? proto::kListWriteCache : 0) |
                            (exported.writer_count > 0 ? proto::kListOpenForWriting : 0));
  entry.reader_count = proto::le32(exported.reader_count);
  entry.writer_count = proto::le32(exported.writer_count);
  return entry;
}

}  // namespace

void ServerSession::OnControlMessage(IoRequest& request, proto::RnbdType type,
                                     const ControlPeer& peer) {
  int error = -EINVAL;  // 1: it will be answered later.
  switch (type) {
    case proto::RnbdType::kSessInfo:
      error = OnSessInfo(request, peer.is_ibnbd);
      break;
    case proto::RnbdType::kOpen:
      error = OnOpen(request);
      break;
    case proto::RnbdType::kClose:
      error = OnClose(request);
      break;
    case proto::RnbdType::kList:
      if (peer.is_ibnbd) error = OnList(request);
      break;
    case proto::RnbdType::kFencePath:
      if (peer.fencer != nullptr) error = OnFencePath(request, *peer.fencer);
      break;
    default:
      break;
  }
  if (error <= 0) request.Complete(error);
}

int ServerSession::OnSessInfo(IoRequest& request, bool peer_is_ibnbd) {
  proto::SessInfo info;
  if (proto::DecodeSessInfo(request.message(), &info) != nullptr) return -EINVAL;
  const proto::InstanceId instance =
      peer_is_ibnbd ? context_.options->instance_id : proto::InstanceId{};
  return Answer(request, proto::MakeSessInfoRsp(info, instance));
}

// Answered when nothing of the path that it names can execute any more.
int ServerSession::OnFencePath(IoRequest& request, rtrs::PathFencer& fencer) {
  proto::FencePath fence;
  if (proto::DecodeFencePath(request.message(), &fence) != nullptr || request.is_read()) {
    return -EINVAL;
  }
  fencer.FencePath(fence.sess_uuid, fence.recon_cnt,
                   [&request](int error) { request.Complete(error); });
  return 1;
}

int ServerSession::OnOpen(IoRequest& request) {
  proto::Open open;
  const char* reason = proto::DecodeOpen(request.message(), &open);
  const std::size_t room = request.rtrs::ServerRequest::data().size();
  if (reason != nullptr || !request.is_read() || room < sizeof(proto::OpenRsp)) return -EINVAL;
  const std::string name(proto::NameOf(open.dev_name));
  ForgetRevoked(name);
  for (auto device = devices_.begin(); device != devices_.end(); ++device) {
    if (device->second.name != name || device->second.state == Device::State::kRevoked) continue;
    return Reopen(device, open, request);
  }
  return StartOpen(open, request);
}

void ServerSession::FinishOpen(std::uint32_t id, IoRequest& request) {
  Device& device = devices_.at(id);
  if (device.revoke_pending) {
    device.state = Device::State::kRevoked;
    StartRemove(id, device);
    return request.Complete(-ENOENT);
  }
  device.state = Device::State::kOpen;
  const Geometry& geometry = device.exported->backend->geometry();
  LogClient(
      absl::StrCat("device ", device.name, " open as ", id, IsWriter(device.mode) ? " rw" : " ro"));
  proto::OpenRsp response =
      MakeOpenRsp(id, geometry, device.exported->read_only, context_.options->io_size_max);
  if (peer_is_ibnbd_ && IsWriter(device.mode)) {
    response.writer_epoch = proto::le16(device.exported->writers->epoch());
  }
  request.Complete(Answer(request, response));
}

int ServerSession::OnClose(IoRequest& request) {
  proto::Close close;
  if (proto::DecodeClose(request.message(), &close) != nullptr) return -EINVAL;
  const auto found = devices_.find(close.device_id.get());
  if (found == devices_.end()) return 0;
  Device& device = found->second;
  switch (device.state) {
    case Device::State::kOpening:
      return -EBUSY;  // The client has not seen the answer to its OPEN: it cannot mean this.
    case Device::State::kRevoked:
      if (device.open == nullptr) {
        devices_.erase(found);
        return 0;
      }
      break;  // Still being taken away.
    case Device::State::kClosing:
      break;
    case Device::State::kOpen:
      device.state = Device::State::kClosing;
      device.closers.push_back(&request);
      StartRemove(found->first, device);
      return 1;
  }
  device.closers.push_back(&request);
  return 1;
}

int ServerSession::OnList(IoRequest& request) {
  proto::List list;
  if (proto::DecodeList(request.message(), &list) != nullptr) return -EINVAL;
  const std::vector<std::shared_ptr<Export>> exports = context_.provider->List(name_);
  const int error = Answer(request, proto::ListRsp{});  // Also clears the room.
  if (error != 0) return error;
  const std::span<std::byte> room = request.rtrs::ServerRequest::data();
  const std::size_t fit = proto::ListEntriesThatFit(room.size());
  if (fit == 0) return -EINVAL;
  std::size_t index = list.start_index.get();
  std::uint32_t count = 0;
  for (; index < exports.size() && count < fit; ++index) {
    exports[index]->backend->RefreshSize();
    const proto::ListEntry entry = MakeListEntry(*exports[index]);
    if (entry.name[0] == '\0') continue;
    (void)proto::EncodeListEntry(room, count++, entry);  // It fits: count < fit.
  }
  proto::ListRsp response;
  response.count = proto::le32(count);
  if (index < exports.size()) response.next_index = proto::le32(static_cast<std::uint32_t>(index));
  (void)proto::Encode(room, response);  // It fits: Answer() put one there.
  return 0;
}

}  // namespace ibnbd::rnbd

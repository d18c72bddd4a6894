// SPDX-License-Identifier: Apache-2.0
// Devices: opening, closing, asking.  Any thread of the application; what happens inside lambdas
// given to Post() or CallControl() happens on the control thread or on a queue's.
#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>

#include "absl/strings/match.h"
#include "base/status_macros.h"
#include "capi/control.h"
#include "capi/error.h"
#include "capi/handles.h"

namespace ibnbd::capi {
namespace {

constexpr std::int64_t kCloseGraceNs = 10 * kNsPerSecond;  // For the network to let go.
constexpr std::size_t kNameSizeMax = 255;

struct OpenedDevice {
  rnbd::Device* impl = nullptr;
  rnbd::DeviceInfo info;
  std::vector<rnbd::DeviceQueue*> queues;
};

rnbd::LossPolicy MakePolicy(std::int64_t fail_after_ms) {
  rnbd::LossPolicy policy;
  policy.fail_after_ns = fail_after_ms < 0 ? -1 : fail_after_ms * kNsPerMs;
  return policy;
}

absl::Status CheckFailAfter(std::int64_t fail_after_ms) {
  if (fail_after_ms >= -1 && fail_after_ms <= INT64_MAX / kNsPerMs) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("fail_after_ms is ", fail_after_ms, ": must be -1 (hold for ever) or a time"));
}

absl::Status CheckOptions(const char* name, const ibnbd_device_options& options) {
  const absl::string_view text = name;
  if (text.empty() || text.size() > kNameSizeMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("the name has ", text.size(), " bytes: must have 1 to ", kNameSizeMax));
  }
  if (options.access > IBNBD_MIGRATION) {
    return absl::InvalidArgumentError(absl::StrCat("unknown access ", options.access));
  }
  if (options.writer_epoch > UINT16_MAX) {
    return absl::InvalidArgumentError(
        absl::StrCat("writer_epoch ", options.writer_epoch, " is none that a device had"));
  }
  return CheckFailAfter(options.fail_after_ms);
}

OpenedDevice Opened(rnbd::Device& device, std::size_t queue_count) {
  OpenedDevice opened{&device, device.info(), {}};
  for (std::size_t i = 0; i < queue_count; ++i) opened.queues.push_back(&device.queue(i));
  return opened;
}

absl::StatusOr<OpenedDevice> OpenOnControl(ibnbd_session& session, const std::string& name,
                                           const ibnbd_device_options& options) {
  const auto mode = static_cast<rnbd::AccessMode>(options.access);
  const rnbd::LossPolicy policy = MakePolicy(options.fail_after_ms);
  const auto writer_epoch = static_cast<std::uint16_t>(options.writer_epoch);
  rnbd::Client* client = session.client.get();
  const std::size_t queue_count = session.queues.size();
  return CallControl<OpenedDevice>(
      session, options.open_timeout_ms * kNsPerMs,
      [client, name, mode, policy, queue_count, writer_epoch](auto done) {
        client->OpenDevice(
            name, mode, policy,
            [done, queue_count](const absl::StatusOr<rnbd::Device*>& device) {
              if (!device.ok()) return done(device.status());
              done(Opened(**device, queue_count));
            },
            writer_epoch);
      },
      [client](const absl::StatusOr<OpenedDevice>& late) {
        if (late.ok()) client->CloseDevice(late->impl, 0, [] {});
      });
}

std::unique_ptr<ibnbd_device> MakeDevice(ibnbd_session& session, const OpenedDevice& opened,
                                         std::uint32_t access) {
  auto device = std::make_unique<ibnbd_device>();
  device->session = &session;
  device->impl = opened.impl;
  device->info = opened.info;
  device->size_bytes.store(opened.info.size_bytes, std::memory_order_relaxed);
  device->read_only = device->info.read_only || access == IBNBD_READ_ONLY;
  device->lanes = std::make_unique<ibnbd_device::Lane[]>(opened.queues.size());
  for (std::size_t i = 0; i < opened.queues.size(); ++i) device->lanes[i].queue = opened.queues[i];
  return device;
}

ibnbd_device* Keep(ibnbd_session& session, const OpenedDevice& opened, std::uint32_t access) {
  auto device = MakeDevice(session, opened, access);
  ibnbd_device* handle = device.get();
  RememberHandle(handle);
  const std::lock_guard<std::mutex> lock(session.mutex);
  session.devices.push_back(std::move(device));
  return handle;
}

// After this no queue submits to rnbd for the device any more, except pieces of bounced IOs.  True
// if all its IOs are done, too.
bool DrainDevice(ibnbd_device& device, std::int64_t timeout_ns) {
  ibnbd_session& session = *device.session;
  auto drained = std::make_shared<Event>(static_cast<std::uint32_t>(session.queues.size()));
  for (const auto& queue : session.queues) {
    ibnbd_device::Lane& lane = device.lanes[queue->index];
    queue->reactor->Post([&lane, drained] {
      if (lane.outstanding == 0) {
        drained->Signal();
      } else {
        lane.drained = drained;
      }
    });
  }
  return WaitAndDrive(session, *drained, timeout_ns);
}

void CutOffDevice(ibnbd_device& device) {
  device.cut.store(true);
  for (const auto& queue : device.session->queues) {
    ibnbd_queue* its_queue = queue.get();
    its_queue->reactor->Post(
        [its_queue, &device] { its_queue->bounce.CancelWaiting(device, -ECANCELED); });
  }
}

absl::Status CloseOnControl(ibnbd_device& device, std::int64_t deadline_ns) {
  rnbd::Client* client = device.session->client.get();
  rnbd::Device* impl = device.impl;
  return CallControl<bool>(*device.session, deadline_ns + kCloseGraceNs,
                           [client, impl, deadline_ns](auto done) {
                             client->CloseDevice(impl, deadline_ns, [done] { done(true); });
                           })
      .status();
}

std::uint32_t StateOf(rnbd::DeviceState state) {
  switch (state) {
    case rnbd::DeviceState::kOpen:
      return IBNBD_STATE_OPEN;
    case rnbd::DeviceState::kOpening:
    case rnbd::DeviceState::kHeld:
      return IBNBD_STATE_HELD;
    case rnbd::DeviceState::kFailing:
      return IBNBD_STATE_FAILING;
    case rnbd::DeviceState::kClosing:
    case rnbd::DeviceState::kClosed:
      return IBNBD_STATE_CLOSED;
  }
  return IBNBD_STATE_CLOSED;
}

rnbd::DevicePast PastOf(const struct ibnbd_device_info& was) {
  rnbd::DevicePast past;
  rnbd::DeviceInfo& info = past.info;
  info.name = was.name;
  info.size_bytes = was.size;
  info.logical_block_size = was.logical_block_size;
  info.physical_block_size = was.physical_block_size;
  info.io_size_max = was.io_size_max;
  info.discard_bytes_max = was.discard_max;
  info.discard_granularity = was.discard_granularity;
  info.discard_alignment = was.discard_alignment;
  info.write_zeroes_bytes_max = was.write_zeroes_max;
  info.secure_erase = (was.flags & IBNBD_DEVICE_SECURE_ERASE) != 0;
  info.write_cache = (was.flags & IBNBD_DEVICE_WRITE_CACHE) != 0;
  info.fua = (was.flags & IBNBD_DEVICE_FUA) != 0;
  info.volume_id = was.volume_id;
  info.writer_epoch = static_cast<std::uint16_t>(was.writer_epoch);
  std::copy(std::begin(was.server_instance), std::end(was.server_instance),
            past.server_instance.begin());
  past.held_ns = static_cast<std::int64_t>(was.held_ms) * kNsPerMs;
  return past;
}

// What a file says, perhaps, that somebody else wrote.
absl::Status CheckPast(const struct ibnbd_device_info& was) {
  const std::uint32_t block = was.logical_block_size;
  const auto whole = [block](std::uint64_t bytes) { return bytes % block == 0; };
  const bool sane = block >= 512 && block <= 65536 && std::has_single_bit(block) &&
                    was.size / 512 <= INT64_MAX / 512 && whole(was.size) &&
                    was.physical_block_size >= block && was.io_size_max >= block &&
                    whole(was.io_size_max) && whole(was.discard_max) &&
                    whole(was.write_zeroes_max) && was.writer_epoch <= UINT16_MAX &&
                    was.held_ms <= INT64_MAX / kNsPerMs / 2 &&
                    std::memchr(was.name, 0, sizeof was.name) != nullptr;
  if (sane) return absl::OkStatus();
  return absl::InvalidArgumentError("what the device was cannot be right");
}

absl::StatusOr<OpenedDevice> ResumeOnControl(ibnbd_session& session,
                                             const struct ibnbd_device_info& was,
                                             const ibnbd_device_options& options) {
  rnbd::Client* client = session.client.get();
  return CallControl<OpenedDevice>(
      session, kLocalAnswerNs,
      [client, past = PastOf(was), mode = static_cast<rnbd::AccessMode>(options.access),
       policy = MakePolicy(options.fail_after_ms), count = session.queues.size()](auto done) {
        const auto device = client->ResumeDevice(past, mode, policy);
        done(device.ok() ? absl::StatusOr<OpenedDevice>(Opened(**device, count)) : device.status());
      },
      [client](const absl::StatusOr<OpenedDevice>& late) {
        if (late.ok()) client->CloseDevice(late->impl, 0, [] {});
      });
}

void FillConstants(const ibnbd_device& device, struct ibnbd_device_info& out) {
  const rnbd::DeviceInfo& info = device.info;
  out.size = device.size_bytes.load(std::memory_order_relaxed);
  out.logical_block_size = info.logical_block_size;
  out.physical_block_size = info.physical_block_size;
  out.io_size_max = info.io_size_max;
  out.discard_max = info.discard_bytes_max;
  out.discard_granularity = info.discard_granularity;
  out.discard_alignment = info.discard_alignment;
  out.write_zeroes_max = info.write_zeroes_bytes_max;
  out.flags = (device.read_only ? IBNBD_DEVICE_READ_ONLY : 0) |
              (info.write_cache ? IBNBD_DEVICE_WRITE_CACHE : 0) |
              (info.fua ? IBNBD_DEVICE_FUA : 0) |
              (info.secure_erase ? IBNBD_DEVICE_SECURE_ERASE : 0);
  out.volume_id = info.volume_id;
  CopyText(info.name, out.name);
}

// Control thread.
void FillState(const ibnbd_device& device, struct ibnbd_device_info& out) {
  if (device.closing.load()) {
    out.state = IBNBD_STATE_CLOSED;
    return CopyText("closed", out.state_reason);
  }
  out.state = StateOf(device.impl->state());
  CopyText(device.impl->state_reason(), out.state_reason);
  const rnbd::DevicePast past = device.impl->past();
  std::copy(past.server_instance.begin(), past.server_instance.end(), out.server_instance);
  out.writer_epoch = past.info.writer_epoch;
  // What is held is held for longer than nothing.
  if (past.held_ns > 0) {
    out.held_ms = static_cast<std::uint64_t>((past.held_ns + kNsPerMs - 1) / kNsPerMs);
  }
}

std::uint32_t OpOf(rnbd::IoOp op) {
  switch (op) {
    case rnbd::IoOp::kRead:
      return IBNBD_OP_READ;
    case rnbd::IoOp::kWrite:
      return IBNBD_OP_WRITE;
    case rnbd::IoOp::kFlush:
      return IBNBD_OP_FLUSH;
    case rnbd::IoOp::kDiscard:
      return IBNBD_OP_DISCARD;
    case rnbd::IoOp::kWriteZeroes:
      return IBNBD_OP_WRITE_ZEROES;
    case rnbd::IoOp::kSecureErase:
      return IBNBD_OP_SECURE_ERASE;
  }
  return IBNBD_OP_READ;
}

std::uint32_t WaitsForOf(rnbd::OutstandingIo::WaitsFor waits_for) {
  switch (waits_for) {
    case rnbd::OutstandingIo::WaitsFor::kTurn:
      return IBNBD_WAITS_FOR_TURN;
    case rnbd::OutstandingIo::WaitsFor::kServer:
      return IBNBD_WAITS_FOR_SERVER;
    case rnbd::OutstandingIo::WaitsFor::kAnswer:
      break;
  }
  return IBNBD_WAITS_FOR_ANSWER;
}

}  // namespace
}  // namespace ibnbd::capi

using ibnbd::kNsPerMs;
using ibnbd::capi::CallControl;
using ibnbd::capi::CheckDevice;
using ibnbd::capi::Fail;
using ibnbd::capi::Succeed;

int ibnbd_device_open(ibnbd_session* session, const char* name,
                      const struct ibnbd_device_options* options, ibnbd_device** out) {
  constexpr char kCall[] = "ibnbd_device_open";
  if (out == nullptr) return Fail(-EINVAL, "%s: the place for the device is NULL", kCall);
  *out = nullptr;
  if (const int error = ibnbd::capi::CheckSession(kCall, session)) return error;
  if (name == nullptr) return Fail(-EINVAL, "%s: the name is NULL", kCall);
  ibnbd_device_options chosen = IBNBD_DEVICE_OPTIONS_INIT;
  if (const int error = ibnbd::capi::CopyOptions(kCall, options, chosen)) return error;
  if (absl::Status status = ibnbd::capi::CheckOptions(name, chosen); !status.ok()) {
    return Fail(kCall, status);
  }
  const auto opened = ibnbd::capi::OpenOnControl(*session, name, chosen);
  if (!opened.ok()) {
    // The engine names what it attempted; a time-out of ours does not.
    if (absl::StrContains(opened.status().message(), name)) return Fail(kCall, opened.status());
    return Fail(
        kCall, ibnbd::Annotate(opened.status(), absl::StrCat("open ", name, " on ", session->uri)));
  }
  *out = ibnbd::capi::Keep(*session, *opened, chosen.access);
  return Succeed();
}

int ibnbd_device_resume(ibnbd_session* session, const struct ibnbd_device_info* was,
                        const struct ibnbd_device_options* options, ibnbd_device** out) {
  constexpr char kCall[] = "ibnbd_device_resume";
  if (out == nullptr) return Fail(-EINVAL, "%s: the place for the device is NULL", kCall);
  *out = nullptr;
  if (const int error = ibnbd::capi::CheckSession(kCall, session)) return error;
  if (was == nullptr) return Fail(-EINVAL, "%s: what it was is NULL", kCall);
  if (const int error = ibnbd::capi::CheckInfo(kCall, was)) return error;
  ibnbd_device_options chosen = IBNBD_DEVICE_OPTIONS_INIT;
  if (const int error = ibnbd::capi::CopyOptions(kCall, options, chosen)) return error;
  absl::Status status = ibnbd::capi::CheckPast(*was);
  if (status.ok()) status = ibnbd::capi::CheckOptions(was->name, chosen);
  if (!status.ok()) return Fail(kCall, status);
  const auto opened = ibnbd::capi::ResumeOnControl(*session, *was, chosen);
  if (!opened.ok()) return Fail(kCall, opened.status());
  *out = ibnbd::capi::Keep(*session, *opened, chosen.access);
  return Succeed();
}

int ibnbd_device_close(ibnbd_device* device, uint32_t timeout_ms) {
  constexpr char kCall[] = "ibnbd_device_close";
  if (device == nullptr) return Succeed();
  if (const int error = CheckDevice(kCall, device)) return error;
  const char* name = device->info.name.c_str();
  if (device->closing.exchange(true)) return Fail(-ENODEV, "%s: %s was closed", kCall, name);
  const ibnbd::Clock& clock = device->session->clock;
  const std::int64_t deadline_ns = clock.NowNs() + timeout_ms * kNsPerMs;
  const bool drained = ibnbd::capi::DrainDevice(*device, timeout_ms * kNsPerMs);
  if (!drained) ibnbd::capi::CutOffDevice(*device);
  const std::int64_t left_ns = std::max<std::int64_t>(deadline_ns - clock.NowNs(), 0);
  const absl::Status closed = ibnbd::capi::CloseOnControl(*device, drained ? left_ns : 0);
  if (!closed.ok()) return Fail(kCall, ibnbd::Annotate(closed, absl::StrCat("close ", name)));
  if (drained) return Succeed();
  return Fail(-ETIMEDOUT, "%s: %s: IOs were outstanding after %u ms and have been cancelled", kCall,
              name, timeout_ms);
}

int ibnbd_device_set_fail_after(ibnbd_device* device, int64_t fail_after_ms) {
  constexpr char kCall[] = "ibnbd_device_set_fail_after";
  if (const int error = CheckDevice(kCall, device)) return error;
  if (absl::Status status = ibnbd::capi::CheckFailAfter(fail_after_ms); !status.ok()) {
    return Fail(kCall, status);
  }
  const ibnbd::rnbd::LossPolicy policy = ibnbd::capi::MakePolicy(fail_after_ms);
  auto answer =
      CallControl<bool>(*device->session, ibnbd::capi::kLocalAnswerNs, [device, policy](auto done) {
        if (!device->closing.load()) {
          device->session->client->SetLossPolicy(device->impl, policy);
        }
        done(true);
      });
  return answer.ok() ? Succeed() : Fail(kCall, answer.status());
}

int ibnbd_device_settle(ibnbd_device* device, uint32_t window_ms) {
  constexpr char kCall[] = "ibnbd_device_settle";
  if (const int error = CheckDevice(kCall, device)) return error;
  auto answer = CallControl<bool>(
      *device->session, ibnbd::capi::kLocalAnswerNs, [device, window_ms](auto done) {
        if (!device->closing.load()) {
          device->session->client->SettleDevice(device->impl, window_ms * kNsPerMs);
        }
        done(true);
      });
  return answer.ok() ? Succeed() : Fail(kCall, answer.status());
}

int ibnbd_device_refresh(ibnbd_device* device, uint32_t timeout_ms) {
  constexpr char kCall[] = "ibnbd_device_refresh";
  if (const int error = CheckDevice(kCall, device)) return error;
  auto size =
      CallControl<std::uint64_t>(*device->session, timeout_ms * kNsPerMs, [device](auto done) {
        if (device->closing.load()) return done(absl::UnavailableError("the device was closed"));
        device->session->client->RefreshDevice(device->impl, std::move(done));
      });
  if (!size.ok()) return Fail(kCall, ibnbd::Annotate(size.status(), device->session->uri));
  device->size_bytes.store(*size, std::memory_order_relaxed);
  return Succeed();
}

int ibnbd_device_list_ios(ibnbd_device* device, uint32_t timeout_ms, ibnbd_io_fn fn, void* opaque) {
  constexpr char kCall[] = "ibnbd_device_list_ios";
  if (const int error = CheckDevice(kCall, device)) return error;
  if (fn == nullptr) return Fail(-EINVAL, "%s: the function is NULL", kCall);
  using Ios = std::vector<ibnbd::rnbd::OutstandingIo>;
  auto ios = CallControl<Ios>(*device->session, timeout_ms * kNsPerMs, [device](auto done) {
    if (device->closing.load()) return done(absl::UnavailableError("the device was closed"));
    device->session->client->ListIos(device->impl, [done](Ios answer) { done(std::move(answer)); });
  });
  if (!ios.ok()) return Fail(kCall, ios.status());
  for (const ibnbd::rnbd::OutstandingIo& io : *ios) {
    struct ibnbd_io_info info = {};
    info.struct_size = sizeof info;
    info.offset = io.offset;
    info.length = io.length;
    info.waited_ns = static_cast<uint64_t>(std::max<std::int64_t>(io.waited_ns, 0));
    info.op = ibnbd::capi::OpOf(io.op);
    info.queue = io.lane;
    info.waits_for = ibnbd::capi::WaitsForOf(io.waits_for);
    if (const int result = fn(opaque, &info)) return result;
  }
  return Succeed();
}

int ibnbd_device_get_info(ibnbd_device* device, struct ibnbd_device_info* out) {
  constexpr char kCall[] = "ibnbd_device_get_info";
  if (const int error = CheckDevice(kCall, device)) return error;
  if (const int error = ibnbd::capi::CheckInfo(kCall, out)) return error;
  struct ibnbd_device_info filled = {};
  filled.struct_size = sizeof filled;
  ibnbd::capi::FillConstants(*device, filled);
  auto now = CallControl<struct ibnbd_device_info>(*device->session, ibnbd::capi::kLocalAnswerNs,
                                                   [device, filled](auto done) mutable {
                                                     ibnbd::capi::FillState(*device, filled);
                                                     done(filled);
                                                   });
  if (!now.ok()) return Fail(kCall, now.status());
  *out = *now;
  return Succeed();
}

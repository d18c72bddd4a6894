// SPDX-License-Identifier: Apache-2.0
// The RNBD client: devices of one server over one RTRS session.  The control plane lives on the
// control reactor (opening, reopening after a reconnect, identity checks, loss policy); IOs are
// submitted to a DeviceQueue on the thread of its lane.
//
//   C1  Every IO that Submit() accepted completes exactly once, on the queue's thread, never from
//       inside Submit().
//   C2  While the server is away IOs are held and re-issued in order of submission once the device
//       has been opened again *and found to be the same volume*; how long is its loss policy.
//   C3  An IO larger than what one chunk carries is split; it completes when all parts have, with
//       the first error.  Nothing is promised about the order of parts.
//   C4  Close() ends within its deadline in every state of the network.
//   C5  A flush, or the flush in front of a write with `preflush`, that succeeds covers every IO
//   that
//       had completed when it was submitted, on any lane.  If the server's machine has lost power
//       since and such IOs may be gone, the next one on each lane, and every one that was waiting,
//       fails with -EIO; those submitted later do not.  Only our own servers tell.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/intrusive_list.h"
#include "base/socket_address.h"
#include "proto/rnbd.h"
#include "rtrs/client_session.h"

namespace ibnbd::rnbd {

enum class IoOp : std::uint8_t { kRead, kWrite, kFlush, kDiscard, kWriteZeroes, kSecureErase };

// One IO of the user.  The caller's storage from Submit() to OnIoDone().
class Io : public ListHook {
 public:
  IoOp op = IoOp::kRead;
  bool fua = false;                    // kWrite, kWriteZeroes.
  bool preflush = false;               // kWrite.
  bool no_unmap = false;               // kWriteZeroes.
  std::uint64_t offset = 0;            // Bytes; a multiple of the logical block size.
  std::uint64_t length = 0;            // Bytes; likewise; 0 for kFlush only.
  std::span<std::byte> data;           // kRead, kWrite: `length` bytes of registered memory.
  const fabric::Keys* keys = nullptr;  // Of the region that covers `data`; it outlives the IO.

  virtual void OnIoDone(int error) = 0;

  // How far it has come: the queue's.
  struct Progress {
    std::int64_t submitted_ns = 0;
    std::uint64_t issued = 0;     // Bytes that parts have been made for; a flush counts as one.
    std::uint32_t parts_out = 0;  // Parts posted and not yet answered.
    int error = 0;                // The first one.
    std::uint8_t phase = 0;
    bool lost = false;        // A part did not come back: all is to be issued again.
    bool spans_loss = false;  // It would cover writes that may be gone: it fails (C5).
  };

 protected:
  virtual ~Io() = default;

 private:
  friend class DeviceQueue;
  Progress progress_;
};

enum class AccessMode : std::uint8_t { kReadOnly = 0, kReadWrite = 1, kMigration = 2 };

struct LossPolicy {
  std::int64_t fail_after_ns = -1;  // From the loss of the path; negative: hold for ever.
};

struct DeviceInfo {
  std::string name;
  std::uint64_t size_bytes = 0;
  std::uint32_t logical_block_size = 0, physical_block_size = 0;
  std::uint32_t io_size_max = 0;  // What one message carries; larger IOs are split (C3).
  std::uint32_t discard_bytes_max = 0, discard_granularity = 0, discard_alignment = 0;
  std::uint32_t write_zeroes_bytes_max = 0;
  bool secure_erase = false, write_cache = false, fua = false, read_only = false;
  std::uint64_t volume_id = 0;     // 0: the server does not say.
  std::uint16_t writer_epoch = 0;  // Another one when somebody else has written; 0: not known.
};

// A device as a process knew it, for the next one, which goes on with it.
struct DevicePast {
  DeviceInfo info;
  // That had it open last, or before, if power was lost since and no flush has failed for it yet;
  // zero: not known.
  proto::InstanceId server_instance{};
  std::int64_t held_ns = 0;  // How long its IOs have been waiting for the server.
};

enum class DeviceState : std::uint8_t {
  kOpening,  // Waits for the server's first answer to OPEN.
  kOpen,     // IOs flow.
  kHeld,     // The path is down, or the server has not (yet) given the same volume back: IOs wait.
  kFailing,  // The loss policy's time is over: IOs fail with -ETIMEDOUT until the device is open
             // again.
  kClosing,  // Waits for outstanding IOs and the answer to CLOSE.
  kClosed
};

// An IO that has not completed, for people.
struct OutstandingIo {
  enum class WaitsFor : std::uint8_t {
    kAnswer,  // It was given to a path.
    kTurn,    // Others of its queue go first.
    kServer,  // The device is not open: the server is away, or has another volume.
  };
  IoOp op = IoOp::kRead;
  WaitsFor waits_for = WaitsFor::kAnswer;
  std::uint32_t lane = 0;
  std::uint64_t offset = 0, length = 0;
  std::int64_t waited_ns = 0;
};

class Device;       // Control side.
class DeviceQueue;  // One per lane.

// One entry of what a server offers (our own servers only).
struct ExportEntry {
  std::string name;
  std::uint64_t size_bytes = 0;
  std::uint32_t logical_block_size = 0;
  bool read_only = false, write_cache = false;
  std::uint32_t reader_count = 0, writer_count = 0;
};

class Client final : public rtrs::ClientSessionObserver {
 public:
  struct Options {
    rtrs::ClientSessionOptions session;
    std::uint32_t io_parts_max = 256;  // Parts (permits wanted) outstanding per device queue.
  };
  static absl::StatusOr<std::unique_ptr<Client>> Create(const Options& options, rtrs::Port& control,
                                                        std::span<rtrs::Port* const> lane_ports);
  ~Client() override;  // Requires: closed.

  // --- On the control thread.  Callbacks come there too, exactly once. ---
  // Starts connecting.  `on_ready` gets OK when the session is up for the first time, or the error
  // of the first round if `retry` is false; with `retry` it keeps trying, unless the server refused
  // in a way that trying again cannot mend.  With an error the client is closed() already.  Null:
  // it keeps trying whatever happens.
  void Start(bool retry, std::function<void(absl::Status)> on_ready);
  // `writer_epoch`: DeviceInfo's of an opening that this one goes on with, before a restart of this
  // program, say; it fails with kFailedPrecondition if somebody else has written since.
  void OpenDevice(const std::string& name, AccessMode mode, const LossPolicy& policy,
                  std::function<void(absl::StatusOr<Device*>)> done,
                  std::uint16_t writer_epoch = 0);
  // The device that another process had, and left with IOs that may or may not have been answered:
  // it takes them at once, holds them, and opens it when it is settled, the server is there and has
  // the same volume (C2).  What the other one wrote may not be flushed (C5).  Time for the loss
  // policy runs since `past` says.
  absl::StatusOr<Device*> ResumeDevice(const DevicePast& past, AccessMode mode,
                                       const LossPolicy& policy);
  // IOs of the other process come from now on, for up to `window_ns`.  If the loss policy's time
  // ends within the window, they fail, and the device is opened behind it; else at once.
  void SettleDevice(Device* device, std::int64_t window_ns);
  // Waits for outstanding IOs at most `deadline_ns` (from now, as in Close()), then resets the path
  // to fence them off and fails them (-ECANCELED); then `done`; then `device` is gone.  Nobody
  // submits to it any more from this call on.  A lane without outstanding IOs need not be polled.
  void CloseDevice(Device* device, std::int64_t deadline_ns, std::function<void()> done);
  void ListExports(std::function<void(absl::StatusOr<std::vector<ExportEntry>>)> done);
  void Ping(std::function<void(absl::StatusOr<std::int64_t> round_trip_ns)> done);
  // Closes all devices and the session; bounded by `deadline_ns` as far as the lanes' reactors run:
  // a lane that nobody polls is waited for.  Opens that are pending fail (kCancelled).
  void Close(std::int64_t deadline_ns, std::function<void()> done);
  void SetLossPolicy(Device* device, const LossPolicy& policy);
  // Asks the server how large the volume is now; the queues take IOs up to there before `done`.
  // A volume that has shrunk, or is another one, is an error.
  void RefreshDevice(Device* device,
                     std::function<void(absl::StatusOr<std::uint64_t> size_bytes)> done);
  // What is outstanding, in order of submission on each lane; answered once every lane's reactor
  // has run.
  void ListIos(Device* device, std::function<void(std::vector<OutstandingIo>)> done);
  [[nodiscard]] rtrs::ClientSession& session();
  [[nodiscard]] bool closed() const;

  // rtrs::ClientSessionObserver
  void OnSessionUp() override;
  void OnSessionDown(const absl::Status& why) override;
  void OnConnectFailed(const absl::Status& why, bool fatal) override;
  void OnSessionClosed() override;

 private:
  class Impl;
  explicit Client(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

class Device {
 public:
  virtual ~Device() = default;
  // Constant after the device has been opened for the first time, and then for any thread; but for
  // size_bytes, which grows and is the control thread's.
  [[nodiscard]] virtual const DeviceInfo& info() const = 0;
  virtual DeviceQueue& queue(std::size_t lane) = 0;
  // Control thread.
  [[nodiscard]] virtual DeviceState state() const = 0;
  [[nodiscard]] virtual std::string state_reason() const = 0;  // What it waits for, for people.
  [[nodiscard]] virtual DevicePast past() const = 0;
};

// On the lane's thread.
class DeviceQueue {
 public:
  virtual ~DeviceQueue() = default;
  // 0: accepted, C1 holds.  Otherwise nothing happened:
  //   -ESHUTDOWN   the device is closing;
  //   -EINVAL      misaligned, out of range, length 0 (but for a flush), data of another size, or
  //                a flag that the operation does not have;
  //   -EPERM       the device is read-only and this would change it;
  //   -EOPNOTSUPP  the device cannot discard, write zeroes or erase.
  // Then, by OnIoDone(): the server's error; -ETIMEDOUT when the loss policy ended the wait;
  // -ECANCELED when closing did.
  virtual int Submit(Io& io) = 0;
  struct Stats {
    std::uint64_t submitted = 0, completed = 0, errors = 0, held = 0, reissued = 0;
    std::uint32_t outstanding = 0;
  };
  [[nodiscard]] virtual const Stats& stats() const = 0;

 protected:
  // For implementations: the fields of an Io that belong to the queue.
  static Io::Progress& progress(Io& io) { return io.progress_; }
};

}  // namespace ibnbd::rnbd

// SPDX-License-Identifier: Apache-2.0
// What stands behind the opaque handles of <ibnbd/ibnbd.h>.
//
// Threads.  The control reactor of a session runs on a thread of the library's own; rnbd::Client
// lives there.  Each queue is a reactor that has no thread: whoever calls ibnbd_queue_poll() runs
// its turns.  Three groups of state follow from that:
//   - ibnbd_queue and ibnbd_device::Lane i: only on the thread that owns queue i at the time
//   (Own()),
//   - rnbd::Device: only on the control thread, except what its header allows,
//   - the registry of open handles: under its mutex, control plane only.
// A device's handle lives as long as its session, so that using it after ibnbd_device_close() is an
// error and not a crash.
#pragma once

#include <pthread.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/arena.h"
#include "base/clock.h"
#include "base/intrusive_list.h"
#include "capi/event.h"
#include "capi/path_finder.h"
#include "capi/user_io.h"
#include "fabric/fabric.h"
#include "ibnbd/ibnbd.h"
#include "reactor/reactor.h"
#include "rnbd/client.h"
#include "rtrs/port.h"

struct ibnbd_buffer {
  ibnbd_session* session = nullptr;
  ibnbd::Arena arena;  // Of ibnbd_buffer_alloc(); empty if registered.
  std::unique_ptr<ibnbd::fabric::Region> region;
  // Of the region, for the data path.
  std::byte* memory = nullptr;
  std::size_t size = 0;
};

struct ibnbd_device {
  // What queue i knows of the device: touched on its owner's thread only.
  struct alignas(64) Lane {
    ibnbd::rnbd::DeviceQueue* queue = nullptr;
    std::uint32_t outstanding = 0;                // From submit until the callback is called.
    std::shared_ptr<ibnbd::capi::Event> drained;  // Set by ibnbd_device_close().
  };

  ibnbd_session* session = nullptr;
  ibnbd::rnbd::DeviceInfo info;              // Constant.
  std::atomic<std::uint64_t> size_bytes{0};  // What info says, or more: ibnbd_device_refresh().
  bool read_only = false;                    // By the server, or because it was opened so.
  ibnbd::rnbd::Device* impl = nullptr;
  std::unique_ptr<Lane[]> lanes;
  std::atomic<bool> closing{false};  // New IOs are refused.
  std::atomic<bool> cut{false};      // Outstanding IOs end with -ECANCELED.
};

struct ibnbd_queue final : public ibnbd::ReactorSource {
  ibnbd_queue(ibnbd_session& its_session, std::uint32_t its_index)
      : session(its_session), index(its_index) {}

  // Makes the calling thread the owner.  0 or a negative errno with text.
  int Own() {
    if (__builtin_expect(owner.load(std::memory_order_relaxed) == pthread_self(), 1)) return 0;
    return OwnSlowly();
  }
  int OwnSlowly();
  // One turn if the calling thread owns the queue; for calls that wait.  True if anything was done.
  bool RunTurnIfOwned();
  // One turn with at most `budget` callbacks (0: no limit); returns how many ran.
  int RunTurn(std::uint32_t budget);

  // ReactorSource: calls done callbacks.  Behind the port in the reactor's list, so that what the
  // port completed is delivered, and what callbacks submit is sent, in the same turn.
  bool Poll() override;

  ibnbd_session& session;
  const std::uint32_t index;
  std::unique_ptr<ibnbd::Reactor> reactor;
  std::unique_ptr<ibnbd::rtrs::Port> port;
  bool one_thread = false;  // IBNBD_SESSION_ONE_THREAD.

  // Ownership: the owner's fast path is one load.  `visited` is set while a waiting call runs a
  // turn on behalf of the owner it believes to be; a new owner waits for it to end.
  std::atomic<pthread_t> owner{};
  std::atomic<bool> visited{false};
  std::atomic<bool> woken{false};  // ibnbd_queue_wake().

  std::uint32_t outstanding = 0;
  std::uint32_t outstanding_max = 0;
  std::uint32_t budget_left = 0;
  int callbacks_run = 0;
  ibnbd::IntrusiveList<ibnbd::capi::UserIo> finished;  // Their callbacks are due.
  ibnbd::capi::BouncePool bounce;
};

struct ibnbd_session {
  std::string name;
  std::string uri;         // "tcp://host:port", for texts.
  std::uint16_t port = 0;  // Of the URI: the default for more paths.
  const ibnbd::MemoryProvider* memory = &ibnbd::OrdinaryPages();
  ibnbd::MonotonicClock clock;
  std::unique_ptr<ibnbd::fabric::Fabric> fabric;
  std::unique_ptr<ibnbd::capi::PathFinder> finder;
  std::unique_ptr<ibnbd::Reactor> control;
  std::unique_ptr<ibnbd::rtrs::Port> control_port;
  std::vector<std::unique_ptr<ibnbd_queue>> queues;
  std::unique_ptr<ibnbd::rnbd::Client> client;
  pthread_t thread{};
  bool thread_started = false;
  std::atomic<bool> life_asked{false};  // ibnbd_session_is_alive(): and not answered yet.

  std::mutex mutex;                                    // Of the lists below; control plane only.
  std::vector<std::unique_ptr<ibnbd_device>> devices;  // Closed ones, too.
  std::vector<std::unique_ptr<ibnbd_buffer>> buffers;
  // Freed while the server was still writing to it; unmapped with the session.
  std::vector<std::unique_ptr<ibnbd_buffer>> landed_on;
};

namespace ibnbd::capi {

// True while the calling thread is inside a done callback: it must not wait then.
bool InCallback();
void SetInCallback(bool inside);

// The registry of handles that are open, process-wide.
void RememberHandle(const void* handle);
bool ForgetHandle(const void* handle);  // False: it was not there.
bool IsOpenHandle(const void* handle);

}  // namespace ibnbd::capi

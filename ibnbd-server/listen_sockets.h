// SPDX-License-Identifier: Apache-2.0
// The sockets that this server listens on, beyond the process: those that the service manager or
// the server before us handed to us, and ours, to be handed on.  So over a restart connections wait
// in a socket's queue instead of being refused.  Filled by the main thread before there are others;
// the fabric's calls come from one reactor, and Close() when that listens no more.
#pragma once

#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "base/unique_fd.h"
#include "fabric/listening_sockets.h"

namespace ibnbd {

class ListenSockets final : public fabric::ListeningSockets {
 public:
  // Those of the service manager: socket activation, and what it has kept for us over a restart.
  absl::Status AddFromServiceManager();
  // Error: it is no TCP socket that listens.
  absl::Status Add(UniqueFd fd);

  [[nodiscard]] bool has_inherited() const;

  UniqueFd TakeInherited(const SocketAddress& local) override;
  bool OnListening(int fd) override;

  // What was inherited and is not listened on by us is closed.  The service manager is asked to
  // keep ours over our restart; whether it does is its unit's business (FileDescriptorStoreMax).
  void Settle();
  // Ours, to be handed on.
  [[nodiscard]] std::vector<int> ours() const;
  // Nobody comes in through us any more.  `for_good`: nor through anybody else, the ports refuse;
  // unless the service manager may have kept the sockets.
  void Close(bool for_good);

 private:
  mutable absl::Mutex mutex_;
  std::vector<UniqueFd> inherited_ ABSL_GUARDED_BY(mutex_);
  std::vector<UniqueFd> ours_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ibnbd

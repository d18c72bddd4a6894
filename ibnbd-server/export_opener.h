// SPDX-License-Identifier: Apache-2.0
// Opens exports for the main thread, which has a watchdog to feed: a file system that hangs is left
// behind on a thread of its own, and who asks again, later, gets what was opened meanwhile.  Main
// thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "ibnbd-server/bounded_call.h"
#include "ibnbd-server/export_spec.h"
#include "rnbd/block_backend.h"

namespace ibnbd {

class ExportOpener {
 public:
  using BackendOr = absl::StatusOr<std::unique_ptr<rnbd::Backend>>;
  using Function = std::function<BackendOr(const ExportSpec& spec, std::int64_t lock_wait_ns)>;
  explicit ExportOpener(Function open = OpenExportBackend) : open_(std::move(open)) {}

  // As OpenExportBackend(), but returns after `patience_ns` at the latest.  If the opening has not
  // returned by then it goes on: EBUSY, and IsUnderWay(); the next Open() of the very same `spec`
  // waits for that one.
  BackendOr Open(const ExportSpec& spec, std::int64_t lock_wait_ns, std::int64_t patience_ns);
  [[nodiscard]] bool IsUnderWay(const ExportSpec& spec) const;
  // Whatever is under way, or there and not asked for, is given up but for what is `wanted`: what
  // it opens is closed again.
  void ForgetAllBut(const std::vector<ExportSpec>& wanted);
  void Forget(const ExportSpec& spec);

 private:
  using Call = LateCall<std::unique_ptr<rnbd::Backend>>;
  struct Opening {
    ExportSpec spec;
    std::unique_ptr<Call> call;
  };
  [[nodiscard]] std::vector<Opening>::iterator Find(const ExportSpec& spec);

  const Function open_;
  std::vector<Opening> openings_;  // Under way, by specs that differ.
};

}  // namespace ibnbd

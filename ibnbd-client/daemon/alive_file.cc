// SPDX-License-Identifier: Apache-2.0
// See alive_file.h.
#include "ibnbd-client/daemon/alive_file.h"

#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "base/log.h"
#include "ibnbd-client/daemon/state_file.h"

namespace ibnbd::client {

std::int64_t MsSinceBoot() {
  timespec now{};
  ::clock_gettime(CLOCK_BOOTTIME, &now);
  return std::int64_t{now.tv_sec} * 1000 + now.tv_nsec / 1'000'000;
}

std::int64_t AliveFile::LastMs() const {
  const auto text = ReadFile(path_);
  std::int64_t ms = 0;
  if (!text.ok() || !absl::SimpleAtoi(*text, &ms)) return 0;
  return ms > 0 && ms <= MsSinceBoot() ? ms : 0;  // Else it is another boot's.
}

void AliveFile::Touch() {
  if (!fd_.valid()) fd_.Reset(::open(path_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
  // Always as long: in place, at once.
  const std::string text = absl::StrFormat("%020d\n", MsSinceBoot());
  const ssize_t put = fd_.valid() ? ::pwrite(fd_.get(), text.data(), text.size(), 0) : -1;
  const bool fails = put != static_cast<ssize_t>(text.size());
  if (fails && !failed_) LOG_WARN(path_, ": ", std::strerror(errno));
  failed_ = fails;
}

}  // namespace ibnbd::client

// SPDX-License-Identifier: Apache-2.0
// How the synchronous calls of the C API reach the control thread of their session, and the checks
// that all of them begin with.  Any thread of the application; never the data path.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "capi/error.h"
#include "capi/event.h"
#include "capi/handles.h"

namespace ibnbd::capi {

// Answers of the control thread that need nothing of the network come within this.
inline constexpr std::int64_t kLocalAnswerNs = 10 * kNsPerSecond;

// Runs `start` on the control thread and waits until it has called what it was given, at most
// `timeout_ns`.  An answer that comes later goes to `on_late` on the control thread.
template <class T>
absl::StatusOr<T> CallControl(
    ibnbd_session& session, std::int64_t timeout_ns,
    std::function<void(std::function<void(absl::StatusOr<T>)>)> start,
    std::function<void(absl::StatusOr<T>)> on_late = [](const absl::StatusOr<T>&) {}) {
  auto reply = std::make_shared<Reply<absl::StatusOr<T>>>();
  session.control->Post([start = std::move(start), reply] {
    start([reply](absl::StatusOr<T> value) { reply->Deliver(std::move(value)); });
  });
  WaitAndDrive(session, reply->event(), timeout_ns);
  if (auto value = reply->Take(std::move(on_late))) return *std::move(value);
  return absl::DeadlineExceededError(
      absl::StrCat("no answer within ", timeout_ns / kNsPerMs, " ms"));
}

// Of a call that has nothing to tell but whether it worked.
inline absl::Status CallControlForStatus(
    ibnbd_session& session, std::int64_t timeout_ns,
    std::function<void(std::function<void(const absl::Status&)>)> start) {
  return CallControl<bool>(session, timeout_ns,
                           [start = std::move(start)](auto done) {
                             start([done](const absl::Status& status) {
                               if (status.ok()) {
                                 done(true);
                               } else {
                                 done(status);
                               }
                             });
                           })
      .status();
}

// 0, or an error with text: the session is not one, or we are inside a callback.
int CheckSession(const char* call, const ibnbd_session* session);
// Likewise; -ENODEV if the device was closed.
int CheckDevice(const char* call, const ibnbd_device* device);

// Options given by the caller over the defaults in `into`.  0 or -EINVAL with text.
template <class Options>
int CopyOptions(const char* call, const Options* given, Options& into) {
  if (given == nullptr) return 0;
  if (given->struct_size != sizeof(Options)) {
    return Fail(-EINVAL, "%s: struct_size of the options is %zu, expected %zu: use the _INIT macro",
                call, given->struct_size, sizeof(Options));
  }
  for (const std::uint64_t reserved : given->reserved) {
    if (reserved != 0) return Fail(-EINVAL, "%s: a reserved field of the options is not 0", call);
  }
  std::memcpy(&into, given, sizeof(Options));
  return 0;
}

// A struct that a call fills in.  0 or -EINVAL with text.
template <class Info>
int CheckInfo(const char* call, const Info* info) {
  if (info == nullptr) return Fail(-EINVAL, "%s: the struct to fill in is NULL", call);
  if (info->struct_size == sizeof(Info)) return 0;
  return Fail(-EINVAL, "%s: struct_size is %zu, expected %zu: set it before the call", call,
              info->struct_size, sizeof(Info));
}

// Copies as much as fits, with a terminator.
template <std::size_t kSize>
void CopyText(const std::string& text, char (&into)[kSize]) {
  const std::size_t length = text.size() < kSize ? text.size() : kSize - 1;
  std::memcpy(into, text.data(), length);
  std::memset(into + length, 0, kSize - length);
}

}  // namespace ibnbd::capi

// SPDX-License-Identifier: Apache-2.0
// For calls into a file system that may not answer for hours (a network mount, FUSE): each runs on
// a thread of its own, and who asks, a reactor that carries other volumes' IO, goes on without it
// after a moment.  While one does not return, no other is begun: what hangs costs one moment and
// one thread.  Used by the control thread and the main thread; one per file or directory that can
// hang.
#pragma once

#include <cerrno>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/status_macros.h"

namespace ibnbd {

class BoundedCall {
 public:
  static constexpr std::int64_t kPatienceNs = 1 * kNsPerSecond;
  // After one that had that and did not return, anywhere in this process, all others have this for
  // a while, however many of them are late: a hundred that hang cost little more than one.
  static constexpr std::int64_t kPatienceLeftNs = 20 * kNsPerMs;
  static constexpr std::int64_t kPatienceRestNs = 10 * kNsPerSecond;

  BoundedCall();
  // What `f` may wait for of itself, while its file system answers: it has so much longer.
  struct WaitsItself {
    std::int64_t ns = 0;
  };
  // True: `f` has returned.  False: not yet, or it was not begun because an earlier one has not
  // returned.  So what `f` touches belongs to it (shared), and what it leaves there may be looked
  // at after `true` only.
  bool Run(std::function<void()> f, WaitsItself waits = {0});
  bool Run(std::function<void()> f, std::int64_t patience_ns);
  // True: nothing runs any more.  False: not after `patience_ns`, either.
  bool Wait(std::int64_t patience_ns);
  // What `f` returns; EBUSY, "WHAT does not answer", if it has not, or was not begun.
  template <class T, class... Patience>
  absl::StatusOr<T> Get(absl::string_view what, std::function<absl::StatusOr<T>()> f,
                        Patience... patience_ns) {
    const auto result = std::make_shared<absl::StatusOr<T>>(absl::UnknownError("not there yet"));
    if (Run([result, f = std::move(f)] { *result = f(); }, patience_ns...)) {
      return std::move(*result);
    }
    return ErrnoStatus(EBUSY, absl::StrCat(what, " does not answer"));
  }

 private:
  struct State;
  const std::shared_ptr<State> state_;
};

// A call whose answer is not lost when it is late: who asks again has it then.
template <class T>
class LateCall {
 public:
  // As BoundedCall::Get(), but waits for the one under way, if there is one, instead of `f`.
  absl::StatusOr<T> Get(absl::string_view what, std::function<absl::StatusOr<T>()> f,
                        std::int64_t patience_ns) {
    if (result_ == nullptr) {
      result_ = std::make_shared<absl::StatusOr<T>>(
          absl::UnavailableError(absl::StrCat(what, ": there is no thread to ask it")));
      (void)call_.Run([result = result_, f = std::move(f)] { *result = f(); }, patience_ns);
    } else {
      (void)call_.Wait(patience_ns);
    }
    if (!call_.Wait(0)) return ErrnoStatus(EBUSY, absl::StrCat(what, " does not answer"));
    return std::move(*std::exchange(result_, nullptr));
  }
  // It has not returned, or what it returned is still to be asked for.
  [[nodiscard]] bool IsUnderWay() const { return result_ != nullptr; }

 private:
  BoundedCall call_;
  std::shared_ptr<absl::StatusOr<T>> result_;  // The call's until it has returned.
};

}  // namespace ibnbd

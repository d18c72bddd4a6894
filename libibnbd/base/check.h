// SPDX-License-Identifier: Apache-2.0
// Assertions for programming errors.  CHECK is always on; DCHECK is on in debug builds, in the
// simulator's tests and under sanitizers (IBNBD_DCHECKS).  Operating errors never come here: they
// are a Status (control plane) or a negative errno (data path).
#pragma once

#include <atomic>

namespace ibnbd {
// What a program wants done first: its log lines, which may be under way, are the most telling now.
inline std::atomic<void (*)()> before_check_fails{nullptr};

// Says so on standard error and aborts, within 2 s even if nobody takes what it says.
[[noreturn]] void CheckFailed(const char* file, int line, const char* what);
}  // namespace ibnbd

#define CHECK(condition)                                    \
  do {                                                      \
    if (__builtin_expect(!(condition), 0)) {                \
      ::ibnbd::CheckFailed(__FILE__, __LINE__, #condition); \
    }                                                       \
  } while (false)
#define CHECK_EQ(a, b) CHECK((a) == (b))
#define CHECK_NE(a, b) CHECK((a) != (b))
#define CHECK_LE(a, b) CHECK((a) <= (b))
#define CHECK_LT(a, b) CHECK((a) < (b))
#define CHECK_GE(a, b) CHECK((a) >= (b))
#define CHECK_GT(a, b) CHECK((a) > (b))

#ifdef IBNBD_DCHECKS
#define DCHECK(condition) CHECK(condition)
#else
#define DCHECK(condition)          \
  do {                             \
    (void)sizeof(bool(condition)); \
  } while (false)
#endif
#define DCHECK_EQ(a, b) DCHECK((a) == (b))
#define DCHECK_NE(a, b) DCHECK((a) != (b))
#define DCHECK_LE(a, b) DCHECK((a) <= (b))
#define DCHECK_LT(a, b) DCHECK((a) < (b))
#define DCHECK_GE(a, b) DCHECK((a) >= (b))
#define DCHECK_GT(a, b) DCHECK((a) > (b))

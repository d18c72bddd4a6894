// SPDX-License-Identifier: Apache-2.0
#include "capi/error.h"

#include <cstdarg>
#include <cstdio>

#include "base/status_macros.h"

namespace ibnbd::capi {
namespace {
constexpr std::size_t kTextSize = 1024;
thread_local char t_buffer[kTextSize];
thread_local const char* t_text = "";
}  // namespace

int Fail(int error, const char* format, ...) {
  va_list args;
  va_start(args, format);
  std::vsnprintf(t_buffer, kTextSize, format, args);
  va_end(args);
  t_text = t_buffer;
  return error;
}

int FailFast(int error, const char* text) {
  t_text = text;
  return error;
}

int Fail(const char* call, const absl::Status& status) {
  const absl::string_view message = status.message();
  return Fail(ErrnoFromStatus(status), "%s: %.*s", call, static_cast<int>(message.size()),
              message.data());
}

int Succeed() {
  t_text = "";
  return 0;
}

const char* ErrorText() { return t_text; }

}  // namespace ibnbd::capi

// SPDX-License-Identifier: Apache-2.0
// The text behind a negative errno of the C API: one per thread, in a fixed buffer, so that saying
// what went wrong allocates nothing even on the data path.  Every exported call ends in one of
// these functions.
#pragma once

#include "absl/status/status.h"

namespace ibnbd::capi {

// Each returns its error, to be returned in turn.
[[gnu::format(printf, 2, 3)]] int Fail(int error, const char* format, ...);
// For calls that fail often (-EAGAIN): keeps the pointer.  `text` is a literal.
int FailFast(int error, const char* text);
// "call: text of the status", with the errno that the status carries.
int Fail(const char* call, const absl::Status& status);
// Clears the text; returns 0.
int Succeed();
const char* ErrorText();

}  // namespace ibnbd::capi

// SPDX-License-Identifier: Apache-2.0
// Taking a session down, whole or half built.
#pragma once

#include <cstdint>
#include <memory>

#include "capi/handles.h"

namespace ibnbd::capi {

// Waits up to `timeout_ns` for outstanding IOs, cancels what is left, and frees everything.  False
// if something had to be cancelled, or left behind.  Requires: no other thread uses the session.
bool TearDown(std::unique_ptr<ibnbd_session> session, std::int64_t timeout_ns);

}  // namespace ibnbd::capi

// SPDX-License-Identifier: Apache-2.0
// Taking a session down, whole or half built; what the parts of one have in common.
#pragma once

#include <pthread.h>

#include <cstdint>
#include <memory>
#include <string>

#include "capi/handles.h"
#include "rtrs/client_session.h"

namespace ibnbd::capi {

// Waits up to `timeout_ns` for outstanding IOs, cancels what is left, and frees everything.  False
// if something had to be cancelled, or left behind.  Requires: no other thread uses the session.
bool TearDown(std::unique_ptr<ibnbd_session> session, std::int64_t timeout_ns);

// What a path is called, by its addresses: "10.0.0.2:1234", "10.1.0.1@10.1.0.2:1234".
std::string PathText(const rtrs::PathOptions& path);

// A thread that no signal of the application's is delivered to.  0, or an errno.
int StartThreadWithoutSignals(pthread_t* thread, void* (*run)(void*), void* argument);

}  // namespace ibnbd::capi

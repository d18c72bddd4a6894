// SPDX-License-Identifier: Apache-2.0
// Coverage marks: SIM_MARK("failover: fence acknowledged") says in production code that a rare
// branch was taken, and a scenario of the simulator names the mark it exists for and demands that
// it was hit.  Without a sink (always, outside tests) a mark is one relaxed load.  Control path
// only.
#pragma once

#include <atomic>

namespace ibnbd {

using MarkSink = void (*)(const char* text);  // `text` is a literal: it lives for ever.

// Null: marks are off.  Any thread.
void SetMarkSink(MarkSink sink);

namespace mark_internal {
extern std::atomic<MarkSink> sink;
}

}  // namespace ibnbd

#define SIM_MARK(text)                                                    \
  do {                                                                    \
    if (const ::ibnbd::MarkSink mark_sink_ =                              \
            ::ibnbd::mark_internal::sink.load(std::memory_order_relaxed); \
        __builtin_expect(mark_sink_ != nullptr, 0)) {                     \
      mark_sink_("" text);                                                \
    }                                                                     \
  } while (false)

// SPDX-License-Identifier: Apache-2.0
#include "base/mark.h"

namespace ibnbd {
namespace mark_internal {
std::atomic<MarkSink> sink{nullptr};
}

void SetMarkSink(MarkSink sink) { mark_internal::sink.store(sink, std::memory_order_relaxed); }

}  // namespace ibnbd

// SPDX-License-Identifier: Apache-2.0
// "mem:SIZE": a volume in the server's memory, for tests, scratch and benchmarks.  Thin: a page
// costs memory from its first write on and gives it back when it is discarded.  Gone when the
// server ends, which its volume id shows: it is another one each time.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "rnbd/block_backend.h"

namespace ibnbd {

// `size` as in ParseSize(); `block_size` 0 means 512.  Errors name the size.
absl::StatusOr<std::unique_ptr<rnbd::Backend>> CreateMemoryBackend(absl::string_view size,
                                                                   std::uint32_t block_size);

}  // namespace ibnbd

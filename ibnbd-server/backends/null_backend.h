// SPDX-License-Identifier: Apache-2.0
// "null:SIZE": reads give zeros, writes vanish.  It measures the stack without a disk; its
// description says what it does to data.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "rnbd/block_backend.h"

namespace ibnbd {

absl::StatusOr<std::unique_ptr<rnbd::Backend>> CreateNullBackend(absl::string_view size,
                                                                 std::uint32_t block_size);

}  // namespace ibnbd

// SPDX-License-Identifier: Apache-2.0
// Sizes as people write them: "4096", "4K", "1M", "2G", "1T" (powers of 1024).  Used by the command
// line, the configuration file and export specifications.  Pure functions, any thread.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace ibnbd {

// Refuses an empty text, signs, fractions, unknown suffixes and what does not fit 63 bits; the
// error names the text.  "KiB", "kB" and the like are refused too: one spelling, one meaning.
absl::StatusOr<std::uint64_t> ParseSize(absl::string_view text);

// The size of a volume: not zero, and a whole number of its blocks.  `block_size` in bytes, not
// zero.
absl::StatusOr<std::uint64_t> ParseVolumeSize(absl::string_view text, std::uint32_t block_size);

// "16.5 MiB", "512 B": for log lines.
std::string SizeText(std::uint64_t byte_count);

}  // namespace ibnbd

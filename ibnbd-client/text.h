// SPDX-License-Identifier: Apache-2.0
// What ibnbd-client prints: sizes, times, progress, names that came from a server.  Pure functions.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace ibnbd::client {

std::string SizeText(std::uint64_t byte_count);      // "16.5 MiB", "512 B".
std::string DurationText(std::int64_t duration_ns);  // "950 ns", "81.3 us", "12.5 ms", "3.2 s".
std::string ClockText(std::int64_t duration_ns);     // "0:08", "1:02:03".

// "00fe12...": 16 digits.  Text in JSON, too: readers that keep numbers as doubles lose bits.
std::string VolumeIdText(std::uint64_t volume_id);

// A name from a server, fit for a terminal: control characters become '?'.
std::string Printable(const std::string& text);

// "42.0 %  1.7 GiB of 4.0 GiB  350.1 MiB/s  ETA 0:07"; without a total: "1.7 GiB  350.1 MiB/s".
std::string ProgressLine(std::uint64_t done, std::optional<std::uint64_t> total,
                         std::int64_t elapsed_ns);

}  // namespace ibnbd::client

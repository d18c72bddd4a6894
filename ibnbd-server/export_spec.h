// SPDX-License-Identifier: Apache-2.0
// What the administrator asked to be exported: one line of the command line or one table of the
// configuration file.  A value: compared on reload to see what changed.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "rnbd/block_backend.h"

namespace ibnbd {

struct ExportSpec {
  std::string name;
  std::string source;  // "/dev/sdb", "/srv/a.img", "mem:256M", "null:1G".
  bool read_only = false;
  bool buffered = false;         // Through the page cache even where O_DIRECT would work.
  std::uint32_t block_size = 0;  // Logical block size; 0: what the source has.

  bool operator==(const ExportSpec&) const = default;
};

// "vol0=/dev/sdb", "r=/srv/a.img,ro", "m=mem:256M,block-size=4K".
absl::StatusOr<ExportSpec> ParseExportSpec(absl::string_view text);

// The name fits the wire and a log line, the source is there, the block size is a power of two from
// 512 to 32768.  Does not look at the source itself.
absl::Status ValidateExportSpec(const ExportSpec& spec);

// What can be told of the source without opening it, while another server may have it open: that it
// can be served.  Errors begin with "export NAME: ".
absl::Status CheckExportSource(const ExportSpec& spec);

// Opens what the spec names.  May block: waits up to `lock_wait_ns` for the lock of a server that
// is just going away.  Errors begin with "export NAME: ".
absl::StatusOr<std::unique_ptr<rnbd::Backend>> OpenExportBackend(const ExportSpec& spec,
                                                                 std::int64_t lock_wait_ns);

}  // namespace ibnbd

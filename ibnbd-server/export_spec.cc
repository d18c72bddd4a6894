// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-server/export_spec.h"

#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/status_macros.h"
#include "ibnbd-server/backends/file_backend.h"
#include "ibnbd-server/backends/memory_backend.h"
#include "ibnbd-server/backends/null_backend.h"
#include "ibnbd-server/size_text.h"

namespace ibnbd {
namespace {

constexpr std::size_t kNameSizeMax =
    254;  // What a kernel client can send (wire: 255 with the NUL).

absl::Status ApplyOption(absl::string_view option, ExportSpec& spec) {
  if (option == "ro") {
    spec.read_only = true;
  } else if (option == "buffered") {
    spec.buffered = true;
  } else if (absl::ConsumePrefix(&option, "block-size=")) {
    ASSIGN_OR_RETURN(const std::uint64_t size, ParseSize(option));
    if (size > 32768) return absl::InvalidArgumentError("block-size: at most 32K");
    spec.block_size = static_cast<std::uint32_t>(size);
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat("unknown option \"", option, "\"; known are ro, buffered, block-size=N"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ExportSpec> ParseExportSpec(absl::string_view text) {
  const std::string where = absl::StrCat("export \"", text, "\"");
  const std::pair<absl::string_view, absl::string_view> halves =
      absl::StrSplit(text, absl::MaxSplits('=', 1));
  if (!absl::StrContains(text, '=')) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ": expected NAME=SOURCE, such as vol0=/dev/sdb or m=mem:256M"));
  }
  ExportSpec spec;
  spec.name = std::string(halves.first);
  const std::vector<absl::string_view> words = absl::StrSplit(halves.second, ',');
  spec.source = std::string(words.front());
  for (std::size_t i = 1; i < words.size(); ++i) {
    if (absl::Status status = ApplyOption(words[i], spec); !status.ok()) {
      return Annotate(status, where);
    }
  }
  if (absl::Status status = ValidateExportSpec(spec); !status.ok()) return Annotate(status, where);
  return spec;
}

absl::Status ValidateExportSpec(const ExportSpec& spec) {
  if (spec.name.empty()) return absl::InvalidArgumentError("the name is empty");
  if (spec.name.size() > kNameSizeMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("the name is longer than ", kNameSizeMax, " bytes"));
  }
  for (const char c : spec.name) {
    if (absl::ascii_iscntrl(static_cast<unsigned char>(c))) {
      return absl::InvalidArgumentError("the name holds a control character");
    }
  }
  if (spec.source.empty()) return absl::InvalidArgumentError("the source is empty");
  const std::uint32_t size = spec.block_size;
  if (size != 0 && (size < 512 || size > 32768 || (size & (size - 1)) != 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("block-size ", size, ": expected a power of two from 512 to 32K"));
  }
  return absl::OkStatus();
}

absl::Status CheckExportSource(const ExportSpec& spec) {
  absl::string_view source = spec.source;
  absl::Status status;
  if (absl::ConsumePrefix(&source, "mem:") || absl::ConsumePrefix(&source, "null:")) {
    const std::uint32_t block_size = spec.block_size != 0 ? spec.block_size : rnbd::kSectorSize;
    status = ParseVolumeSize(source, block_size).status();
    if (!status.ok()) status = Annotate(status, spec.source);
  } else {
    status = CheckFileBackend(spec.source);
  }
  return status.ok() ? status : Annotate(status, absl::StrCat("export ", spec.name));
}

absl::StatusOr<std::unique_ptr<rnbd::Backend>> OpenExportBackend(const ExportSpec& spec,
                                                                 std::int64_t lock_wait_ns) {
  const std::string where = absl::StrCat("export ", spec.name);
  absl::string_view source = spec.source;
  absl::StatusOr<std::unique_ptr<rnbd::Backend>> backend;
  if (absl::ConsumePrefix(&source, "mem:")) {
    backend = CreateMemoryBackend(source, spec.block_size);
  } else if (absl::ConsumePrefix(&source, "null:")) {
    backend = CreateNullBackend(source, spec.block_size);
  } else {
    VolumeOptions options;
    options.read_only = spec.read_only;
    options.buffered = spec.buffered;
    options.block_size = spec.block_size;
    options.lock_wait_ns = lock_wait_ns;
    backend = OpenFileBackend(spec.source, options);
  }
  if (!backend.ok()) return Annotate(backend.status(), where);
  return backend;
}

}  // namespace ibnbd

// SPDX-License-Identifier: Apache-2.0
// What an administrator hands to ibnbd-server: sizes, export specifications, the configuration
// file, the command line.  Input: {which of them: 1 byte; text}; the words of a command line are
// separated by newlines.
#include <string>
#include <vector>

#include "absl/strings/str_split.h"
#include "base/check.h"
#include "ibnbd-server/options.h"
#include "ibnbd-server/size_text.h"

namespace ibnbd {
namespace {

void CheckMerged(const Settings& first, const Settings& second) {
  const absl::StatusOr<Settings> merged = MergeSettings(first, second);
  if (!merged.ok()) return;
  CHECK(!merged->listen.empty());
  CHECK(ChangedSettings(*merged, *merged).empty());
  for (const ExportSpec& spec : merged->exports) CHECK(ValidateExportSpec(spec).ok());
}

void CheckCommandLine(const std::string& text) {
  const std::vector<std::string> words = absl::StrSplit(text, '\n');
  std::vector<const char*> argv = {"ibnbd-server"};
  for (const std::string& word : words) argv.push_back(word.c_str());
  const CommandLine line = ParseCommandLine(static_cast<int>(argv.size()), argv.data());
  CHECK(line.options.has_value() || !line.text.empty());
  if (line.options.has_value()) CheckMerged(line.options->settings, Settings());
}

}  // namespace
}  // namespace ibnbd

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace ibnbd;
  if (size == 0) return 0;
  const std::string text(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 4) {
    case 0: {
      const absl::StatusOr<std::uint64_t> bytes = ParseSize(text);
      if (bytes.ok()) CHECK(*bytes >> 63 == 0 && !SizeText(*bytes).empty());
      break;
    }
    case 1: {
      const absl::StatusOr<ExportSpec> spec = ParseExportSpec(text);
      if (spec.ok()) CHECK(ValidateExportSpec(*spec).ok());
      break;
    }
    case 2: {
      const absl::StatusOr<Settings> settings = ParseConfig(text, "fuzz.toml");
      if (settings.ok()) CheckMerged(Settings(), *settings);
      break;
    }
    default:
      CheckCommandLine(text);
  }
  return 0;
}

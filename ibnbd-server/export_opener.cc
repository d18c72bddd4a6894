// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-server/export_opener.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace ibnbd {

ExportOpener::BackendOr ExportOpener::Open(const ExportSpec& spec, std::int64_t lock_wait_ns,
                                           std::int64_t patience_ns) {
  auto opening = Find(spec);
  if (opening == openings_.end()) {
    opening = openings_.insert(openings_.end(), {spec, std::make_unique<Call>()});
  }
  BackendOr result = opening->call->Get(
      absl::StrCat("export ", spec.name, ": attach ", spec.source, ": its file system"),
      [open = open_, spec, lock_wait_ns] { return open(spec, lock_wait_ns); }, patience_ns);
  if (!opening->call->IsUnderWay()) openings_.erase(opening);
  return result;
}

bool ExportOpener::IsUnderWay(const ExportSpec& spec) const {
  return std::any_of(openings_.begin(), openings_.end(),
                     [&spec](const Opening& opening) { return opening.spec == spec; });
}

void ExportOpener::ForgetAllBut(const std::vector<ExportSpec>& wanted) {
  std::erase_if(openings_, [&wanted](const Opening& opening) {
    return std::find(wanted.begin(), wanted.end(), opening.spec) == wanted.end();
  });
}

void ExportOpener::Forget(const ExportSpec& spec) {
  std::erase_if(openings_, [&spec](const Opening& opening) { return opening.spec == spec; });
}

std::vector<ExportOpener::Opening>::iterator ExportOpener::Find(const ExportSpec& spec) {
  return std::find_if(openings_.begin(), openings_.end(),
                      [&spec](const Opening& opening) { return opening.spec == spec; });
}

}  // namespace ibnbd

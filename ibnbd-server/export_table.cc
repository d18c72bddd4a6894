// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-server/export_table.h"

#include <cerrno>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/log.h"
#include "base/status_macros.h"
#include "ibnbd-server/backends/file_backend.h"

namespace ibnbd {
namespace {

// A session waits for this, and all others with it; its client asks again if the lock is still
// held.
constexpr std::int64_t kFindLockWaitNs = 100 * kNsPerMs;

// Beyond that, of volumes that nobody has open, it is forgotten who wrote them.
constexpr std::size_t kWritersMax = 16384;

// What does not answer is not known to be another one.
bool IsStale(const rnbd::Export& exported) {
  return ErrnoFromStatus(exported.backend->CheckPlace()) == -ESTALE;
}

std::shared_ptr<rnbd::Export> MakeExport(const std::string& name, bool read_only,
                                         std::unique_ptr<rnbd::Backend> backend) {
  auto exported = std::make_shared<rnbd::Export>();
  exported->name = name;
  exported->read_only = read_only || backend->geometry().read_only;
  exported->backend = std::move(backend);
  return exported;
}

}  // namespace

// What a file system is asked for, if it answers soon.
template <class T>
absl::StatusOr<T> ExportTable::Search(std::int64_t lock_wait_ns,
                                      std::function<absl::StatusOr<T>()> f) {
  return search_.Get<T>("the file system of the search path", std::move(f),
                        BoundedCall::WaitsItself{lock_wait_ns});
}

absl::StatusOr<std::shared_ptr<rnbd::Export>> ExportTable::Find(const std::string& session_name,
                                                                const std::string& export_name) {
  if (const auto it = entries_.find(export_name); it != entries_.end()) return it->second.exported;
  if (!search_path_) {
    return absl::NotFoundError(absl::StrCat("export ", export_name, ": no such export"));
  }
  DropUnusedFinds();
  ASSIGN_OR_RETURN(
      const SearchPath::Identity identity,
      Search<SearchPath::Identity>(0, [path = *search_path_, session_name, export_name] {
        return path.Find(session_name, export_name);
      }));
  if (const auto it = found_.find(identity); it != found_.end()) {
    if (auto exported = it->second.exported.lock()) return exported;
  }
  VolumeOptions options;
  options.read_only_if_refused = true;
  options.lock_wait_ns = kFindLockWaitNs;
  using VolumePtr = std::unique_ptr<Volume>;
  absl::StatusOr<VolumePtr> volume = Search<VolumePtr>(
      kFindLockWaitNs, [path = *search_path_, session_name, export_name, options] {
        return path.Open(session_name, export_name, options);
      });
  if (!volume.ok()) return volume.status();
  auto exported = MakeExport(export_name, false, std::make_unique<FileBackend>(*std::move(volume)));
  LOG_INFO("export ", export_name, " for session ", session_name, ": ",
           exported->backend->Describe());
  exported->writers = WritersOf(absl::StrCat("found ", identity.device, " ", identity.inode));
  found_[identity] = {session_name, exported};
  return exported;
}

std::vector<std::shared_ptr<rnbd::Export>> ExportTable::List(const std::string& session_name) {
  std::vector<std::shared_ptr<rnbd::Export>> result;
  for (const auto& [name, entry] : entries_) result.push_back(entry.exported);
  for (const auto& [identity, found] : found_) {
    if (found.session_name != session_name) continue;
    if (auto exported = found.exported.lock()) result.push_back(std::move(exported));
  }
  return result;
}

std::shared_ptr<rnbd::WriterRecord> ExportTable::WritersOf(const std::string& source) {
  if (writers_.size() >= kWritersMax) {
    std::erase_if(writers_, [](const auto& item) { return item.second.use_count() == 1; });
  }
  std::shared_ptr<rnbd::WriterRecord>& record = writers_[source];
  if (record == nullptr) record = std::make_shared<rnbd::WriterRecord>();
  return record;
}

void ExportTable::DropUnusedFinds() {
  std::erase_if(found_, [](const auto& item) { return item.second.exported.expired(); });
}

void ExportTable::Add(const ExportSpec& spec, std::unique_ptr<rnbd::Backend> backend) {
  const auto exported = MakeExport(spec.name, spec.read_only, std::move(backend));
  LOG_INFO("export ", spec.name, ": ", exported->backend->Describe(),
           spec.read_only && !exported->backend->geometry().read_only ? ", read-only" : "");
  exported->writers = WritersOf(absl::StrCat("export ", spec.name, " ", spec.source));
  CHECK(entries_.emplace(spec.name, Entry{spec, exported}).second);
}

std::shared_ptr<rnbd::Export> ExportTable::Remove(const std::string& name) {
  const auto it = entries_.find(name);
  if (it == entries_.end()) return nullptr;
  std::shared_ptr<rnbd::Export> exported = std::move(it->second.exported);
  entries_.erase(it);
  return exported;
}

ExportTable::Plan ExportTable::PlanFor(const std::vector<ExportSpec>& wanted) const {
  Plan plan;
  std::set<std::string> names;
  for (const ExportSpec& spec : wanted) {
    names.insert(spec.name);
    const auto it = entries_.find(spec.name);
    if (it == entries_.end()) {
      plan.add.push_back(spec);
    } else if (it->second.spec != spec || IsStale(*it->second.exported)) {
      const rnbd::Export& exported = *it->second.exported;
      if (exported.reader_count + exported.writer_count == 0) {
        plan.replace.push_back(spec);
      } else {
        plan.busy.push_back(spec.name);
      }
    }
  }
  for (const auto& [name, entry] : entries_) {
    if (!names.contains(name)) plan.remove.push_back(name);
  }
  return plan;
}

const ExportSpec* ExportTable::SpecOf(const std::string& name) const {
  const auto it = entries_.find(name);
  return it == entries_.end() ? nullptr : &it->second.spec;
}

void ExportTable::Clear() {
  entries_.clear();
  found_.clear();
}

}  // namespace ibnbd

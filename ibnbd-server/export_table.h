// SPDX-License-Identifier: Apache-2.0
// The names this server offers: those of the configuration, and behind them the search path, whose
// volumes are opened when a session asks and closed when the last one has left.  Control thread.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "ibnbd-server/bounded_call.h"
#include "ibnbd-server/export_spec.h"
#include "ibnbd-server/search_path.h"
#include "rnbd/server.h"

namespace ibnbd {

class ExportTable final : public rnbd::ExportProvider {
 public:
  explicit ExportTable(std::optional<SearchPath> search_path = {})
      : search_path_(std::move(search_path)) {}

  absl::StatusOr<std::shared_ptr<rnbd::Export>> Find(const std::string& session_name,
                                                     const std::string& export_name) override;
  std::vector<std::shared_ptr<rnbd::Export>> List(const std::string& session_name) override;

  // Requires: the name is not in the table.
  void Add(const ExportSpec& spec, std::unique_ptr<rnbd::Backend> backend);
  // The export lives on until its sessions have let it go.  Null if it is not there.
  std::shared_ptr<rnbd::Export> Remove(const std::string& name);

  // What has to be done to offer exactly `wanted`.  Changes nothing.
  struct Plan {
    std::vector<ExportSpec> add;
    std::vector<std::string> remove;
    std::vector<ExportSpec> replace;  // Changed, or another file by now, and not in use.
    std::vector<std::string> busy;    // Changed but in use: they stay as they are.
  };
  [[nodiscard]] Plan PlanFor(const std::vector<ExportSpec>& wanted) const;
  [[nodiscard]] const ExportSpec* SpecOf(const std::string& name) const;
  [[nodiscard]] std::size_t size() const { return entries_.size(); }
  void Clear();

 private:
  struct Entry {
    ExportSpec spec;
    std::shared_ptr<rnbd::Export> exported;
  };
  struct Found {
    std::string session_name;
    std::weak_ptr<rnbd::Export> exported;
  };
  void DropUnusedFinds();
  template <class T>
  absl::StatusOr<T> Search(std::int64_t lock_wait_ns, std::function<absl::StatusOr<T>()> f);
  // Of a volume that may have been open before, and was let go meanwhile: who wrote it is not
  // forgotten.
  std::shared_ptr<rnbd::WriterRecord> WritersOf(const std::string& source);

  const std::optional<SearchPath> search_path_;
  BoundedCall search_;  // Below it.
  std::map<std::string, Entry> entries_;
  std::map<SearchPath::Identity, Found> found_;
  std::map<std::string, std::shared_ptr<rnbd::WriterRecord>> writers_;
};

}  // namespace ibnbd

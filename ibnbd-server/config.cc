// SPDX-License-Identifier: Apache-2.0
// The configuration file (options.h).  toml++ parses; what the keys mean is decided here, and every
// mistake is reported with the line where it stands.
#include <toml++/toml.h>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "ibnbd-server/options.h"
#include "ibnbd-server/size_text.h"

namespace ibnbd {
namespace {

// One file being read: remembers its name for errors, and the first error.
class Reader {
 public:
  explicit Reader(std::string path) : path_(std::move(path)) {}

  absl::StatusOr<Settings> Read(const toml::table& root);

 private:
  void Refuse(const toml::source_region& where, absl::string_view what) {
    if (!status_.ok()) return;
    status_ = absl::InvalidArgumentError(absl::StrCat(path_, ":", where.begin.line, ": ", what));
  }
  void Refuse(const toml::node& node, absl::string_view key, absl::string_view what) {
    Refuse(node.source(), absl::StrCat(key, ": ", what));
  }

  std::string String(const toml::node& node, absl::string_view key);
  std::uint64_t Number(const toml::node& node, absl::string_view key, std::uint64_t max);
  bool Boolean(const toml::node& node, absl::string_view key);
  void Listen(const toml::node& node, Settings& settings);
  void Exports(const toml::node& node, Settings& settings);
  void Export(const std::string& name, const toml::node& node, Settings& settings);
  void Setting(const toml::key& key, const toml::node& node, Settings& settings);

  const std::string path_;
  absl::Status status_;
};

constexpr std::uint64_t kUint32Max = std::numeric_limits<std::uint32_t>::max();

// Both spellings of a key are accepted: read_only and read-only.
std::string Canonical(const toml::key& key) {
  std::string name(key.str());
  for (char& c : name) {
    if (c == '-') c = '_';
  }
  return name;
}

std::string Reader::String(const toml::node& node, absl::string_view key) {
  if (const auto value = node.value_exact<std::string>()) return *value;
  Refuse(node, key, "expected a string");
  return "";
}

bool Reader::Boolean(const toml::node& node, absl::string_view key) {
  if (const auto value = node.value_exact<bool>()) return *value;
  Refuse(node, key, "expected true or false");
  return false;
}

// An integer, or a string with a suffix.
std::uint64_t Reader::Number(const toml::node& node, absl::string_view key, std::uint64_t max) {
  std::uint64_t number = 0;
  if (const auto integer = node.value_exact<std::int64_t>()) {
    if (*integer < 0) {
      Refuse(node, key, "is negative");
      return 0;
    }
    number = static_cast<std::uint64_t>(*integer);
  } else if (const auto text = node.value_exact<std::string>()) {
    const absl::StatusOr<std::uint64_t> size = ParseSize(*text);
    if (!size.ok()) {
      Refuse(node, key, size.status().message());
      return 0;
    }
    number = *size;
  } else {
    Refuse(node, key, "expected a number or a size such as \"4K\"");
  }
  if (number > max) Refuse(node, key, "is too large");
  return number;
}

void Reader::Listen(const toml::node& node, Settings& settings) {
  const toml::array* array = node.as_array();
  if (array == nullptr) {
    settings.listen.push_back(String(node, "listen"));
    return;
  }
  for (const toml::node& element : *array) settings.listen.push_back(String(element, "listen"));
}

void Reader::Export(const std::string& name, const toml::node& node, Settings& settings) {
  const toml::table* table = node.as_table();
  if (table == nullptr) return Refuse(node, absl::StrCat("export.", name), "expected a table");
  ExportSpec spec;
  spec.name = name;
  for (const auto& [key, value] : *table) {
    const std::string field = Canonical(key);
    const std::string where = absl::StrCat("export.", name, ".", field);
    if (field == "path") {
      spec.source = String(value, where);
    } else if (field == "read_only") {
      spec.read_only = Boolean(value, where);
    } else if (field == "buffered") {
      spec.buffered = Boolean(value, where);
    } else if (field == "block_size") {
      spec.block_size = static_cast<std::uint32_t>(Number(value, where, kUint32Max));
    } else {
      Refuse(key.source(), absl::StrCat(where, ": unknown key"));
    }
  }
  if (absl::Status valid = ValidateExportSpec(spec); !valid.ok()) {
    Refuse(node, absl::StrCat("export.", name),
           spec.source.empty() ? "path is missing" : valid.message());
  }
  settings.exports.push_back(std::move(spec));
}

void Reader::Exports(const toml::node& node, Settings& settings) {
  const toml::table* table = node.as_table();
  if (table == nullptr) return Refuse(node, "export", "expected tables such as [export.vol0]");
  for (const auto& [key, value] : *table) Export(std::string(key.str()), value, settings);
}

void Reader::Setting(const toml::key& key, const toml::node& node, Settings& settings) {
  const std::string name = Canonical(key);
  const auto number32 = [&] { return static_cast<std::uint32_t>(Number(node, name, kUint32Max)); };
  if (name == "listen") {
    Listen(node, settings);
  } else if (name == "export") {
    Exports(node, settings);
  } else if (name == "threads") {
    settings.thread_count = number32();
  } else if (name == "queue_depth") {
    settings.queue_depth = number32();
  } else if (name == "io_size") {
    settings.io_size = number32();
  } else if (name == "sessions_max") {
    settings.session_count_max = number32();
  } else if (name == "memory_max") {
    settings.memory_max = Number(node, name, std::numeric_limits<std::int64_t>::max());
  } else if (name == "search_path") {
    settings.search_path = String(node, name);
  } else {
    Refuse(key.source(), absl::StrCat(name, ": unknown key"));
  }
}

absl::StatusOr<Settings> Reader::Read(const toml::table& root) {
  Settings settings;
  for (const auto& [key, node] : root) Setting(key, node, settings);
  if (!status_.ok()) return status_;
  return settings;
}

}  // namespace

absl::StatusOr<Settings> ParseConfig(const std::string& text, const std::string& path) {
  try {
    const toml::table root = toml::parse(text, path);
    return Reader(path).Read(root);
  } catch (const toml::parse_error& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ":", error.source().begin.line, ": ", std::string(error.description())));
  }
}

absl::StatusOr<Settings> LoadConfig(const std::string& path) {
  std::error_code ignored;  // What is not there is reported by the open.
  if (std::filesystem::is_directory(path, ignored)) {
    return ErrnoStatus(EISDIR, absl::StrCat("config ", path));
  }
  std::ifstream file(path);
  if (!file) return ErrnoStatus(errno, absl::StrCat("config ", path));
  std::ostringstream text;
  text << file.rdbuf();
  return ParseConfig(text.str(), path);
}

}  // namespace ibnbd

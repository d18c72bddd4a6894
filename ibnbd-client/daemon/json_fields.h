// SPDX-License-Identifier: Apache-2.0
// What commands and the state file have in common: the members of a JSON object, each of them
// checked, and a mapping as one.  For protocol.cc and protocol_state.cc.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "ibnbd-client/daemon/protocol.h"
#include "ibnbd-client/text.h"
#include "nbd-bridge/session_words.h"

namespace ibnbd::client {

inline constexpr std::uint32_t kTimeoutMsMax = 24 * 3600 * 1000;
inline constexpr std::int64_t kFailAfterMsMax = std::numeric_limits<std::int32_t>::max();

// The first fault is kept.
class Fields {
 public:
  explicit Fields(const Json& object) : object_(object) {}

  std::string Text(const char* key, bool required = false) {
    const Json* value = Find(key, required);
    if (value == nullptr) return "";
    if (!value->is_string()) return Fault(key, "is no string"), "";
    return value->get<std::string>();
  }
  bool Flag(const char* key) {
    const Json* value = Find(key, false);
    if (value == nullptr) return false;
    if (!value->is_boolean()) return Fault(key, "is neither true nor false"), false;
    return value->get<bool>();
  }
  std::int64_t Number(const char* key, std::int64_t otherwise, std::int64_t min, std::int64_t max) {
    const Json* value = Find(key, false);
    if (value == nullptr || value->is_null()) return otherwise;
    const bool fits =
        value->is_number_unsigned()
            ? value->get<std::uint64_t>() <= std::uint64_t{std::numeric_limits<std::int64_t>::max()}
            : value->is_number_integer();
    if (!fits) return Fault(key, "is no integer"), otherwise;
    const auto number = value->get<std::int64_t>();
    if (number < min || number > max) return Fault(key, "is out of range"), otherwise;
    return number;
  }
  // Nothing if it is not there.
  std::optional<std::int64_t> MaybeNumber(const char* key, std::int64_t min, std::int64_t max) {
    if (Find(key, false) == nullptr) return std::nullopt;
    return Number(key, min, min, max);
  }
  std::optional<std::uint32_t> MaybeNumber32(const char* key, std::uint32_t max) {
    const auto number = MaybeNumber(key, 0, max);
    if (!number.has_value()) return std::nullopt;
    return static_cast<std::uint32_t>(*number);
  }
  // Of what the library takes: 0, the default, or no less than a second.
  std::optional<std::uint32_t> MaybeDeadAfter(const char* key) {
    const auto ms = MaybeNumber32(key, kDeadAfterMsMax);
    if (ms.has_value() && *ms != 0 && *ms < kDeadAfterMsMin) Fault(key, "is out of range");
    return ms;
  }
  std::optional<std::uint32_t> MaybePolicy(const char* key) {
    const std::string name = Text(key);
    if (name.empty()) return std::nullopt;
    const auto policy = bridge::ParsePathPolicy(name);
    if (policy.ok()) return *policy;
    Fault(key, absl::StrCat("is \"", Printable(name), "\", which is unknown"));
    return std::nullopt;
  }
  template <typename Table>
  auto Choice(const char* key, const Table& table, decltype(table[0].first) otherwise) {
    using Value = std::decay_t<decltype(table[0].first)>;
    const Json* found = Find(key, false);
    if (found == nullptr) return Value{otherwise};
    const std::string text = Text(key);
    for (const auto& [value, name] : table) {
      if (text == name) return Value{value};
    }
    Fault(key, absl::StrCat("is \"", Printable(text), "\", which is unknown"));
    return Value{otherwise};
  }
  void Fault(const char* key, const std::string& what) {
    if (status_.ok()) status_ = absl::InvalidArgumentError(absl::StrCat("\"", key, "\" ", what));
  }
  [[nodiscard]] const absl::Status& status() const { return status_; }

 private:
  static constexpr std::uint32_t kDeadAfterMsMin = 1000;
  static constexpr std::uint32_t kDeadAfterMsMax = 3'600'000;

  const Json* Find(const char* key, bool required) {
    const auto at = object_.find(key);
    if (at != object_.end()) return &*at;
    if (required) Fault(key, "is missing");
    return nullptr;
  }
  const Json& object_;
  absl::Status status_;
};

// `what` it is, for the error.
absl::StatusOr<Json> ParseObject(const std::string& text, const char* what);
// Names come from a server: what is not UTF-8 in them is replaced.
std::string Dump(const Json& json);
absl::StatusOr<MapRequest> MapFrom(Fields& fields);
void Put(const MapRequest& map, Json* json);

}  // namespace ibnbd::client

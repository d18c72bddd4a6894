// SPDX-License-Identifier: Apache-2.0
// list, show and ping: what a server has, one volume, and how far away it is.
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"
#include "ibnbd-client/api.h"
#include "ibnbd-client/commands.h"
#include "ibnbd-client/text.h"

namespace ibnbd::client {
namespace {

using Json = nlohmann::ordered_json;

void Print(const Json& json) {
  // Names come from a server: what is not UTF-8 in them is replaced.
  std::printf("%s\n", json.dump(2, ' ', false, Json::error_handler_t::replace).c_str());
}

Json ToJson(const ibnbd_export_info& info) {
  return {{"name", info.name},
          {"size", info.size},
          {"logical_block_size", info.logical_block_size},
          {"read_only", (info.flags & IBNBD_EXPORT_READ_ONLY) != 0},
          {"write_cache", (info.flags & IBNBD_EXPORT_WRITE_CACHE) != 0},
          {"readers", info.reader_count},
          {"writers", info.writer_count}};
}

Json ToJson(const ibnbd_device_info& info) {
  const auto has = [&info](std::uint32_t flag) { return (info.flags & flag) != 0; };
  return {{"name", info.name},
          {"size", info.size},
          {"logical_block_size", info.logical_block_size},
          {"physical_block_size", info.physical_block_size},
          {"io_size_max", info.io_size_max},
          {"read_only", has(IBNBD_DEVICE_READ_ONLY)},
          {"write_cache", has(IBNBD_DEVICE_WRITE_CACHE)},
          {"fua", has(IBNBD_DEVICE_FUA)},
          {"secure_erase", has(IBNBD_DEVICE_SECURE_ERASE)},
          {"discard_max", info.discard_max},
          {"discard_granularity", info.discard_granularity},
          {"discard_alignment", info.discard_alignment},
          {"write_zeroes_max", info.write_zeroes_max},
          {"volume_id", info.volume_id == 0 ? Json(nullptr) : Json(VolumeIdText(info.volume_id))}};
}

Json ToJson(const struct ibnbd_session_info& info) {
  return {{"address", info.address},
          {"queue_depth", info.queue_depth},
          {"io_size_max", info.io_size_max},
          {"connected", info.connected != 0}};
}

absl::StatusOr<std::vector<ibnbd_export_info>> ListExports(ibnbd_session* session,
                                                           const CommonOptions& options) {
  std::vector<ibnbd_export_info> exports;
  const int error = ibnbd_session_list(
      session, options.timeout_s * 1000,
      [](void* opaque, const ibnbd_export_info* info) {
        static_cast<std::vector<ibnbd_export_info>*>(opaque)->push_back(*info);
        return 0;
      },
      &exports);
  if (error != 0) return Annotate(ApiStatus(error), "list");
  return exports;
}

void PrintExports(const std::vector<ibnbd_export_info>& exports) {
  std::size_t width = 4;
  for (const ibnbd_export_info& info : exports) width = std::max(width, std::strlen(info.name));
  const int column = static_cast<int>(width);
  std::printf("%-*s  %10s  %5s  %-4s  %s\n", column, "NAME", "SIZE", "BLOCK", "MODE", "IN USE BY");
  for (const ibnbd_export_info& info : exports) {
    std::printf("%-*s  %10s  %5u  %-4s  %u reader(s), %u writer(s)\n", column,
                Printable(info.name).c_str(), SizeText(info.size).c_str(), info.logical_block_size,
                (info.flags & IBNBD_EXPORT_READ_ONLY) != 0 ? "ro" : "rw", info.reader_count,
                info.writer_count);
  }
}

void PrintRow(const char* key, const std::string& value) {
  std::printf("%-22s%s\n", key, value.c_str());
}

std::string YesNo(bool yes) { return yes ? "yes" : "no"; }

std::string BlockOperation(std::uint32_t max) {
  return max == 0 ? "not supported" : absl::StrCat("up to ", SizeText(max), " at once");
}

void PrintDevice(const ibnbd_device_info& info, const struct ibnbd_session_info& session) {
  PrintRow("name", Printable(info.name));
  PrintRow("server", Printable(session.address));
  PrintRow("size", absl::StrCat(SizeText(info.size), " (", info.size, " bytes)"));
  PrintRow("logical block size", std::to_string(info.logical_block_size));
  PrintRow("physical block size", std::to_string(info.physical_block_size));
  PrintRow("read-only", YesNo((info.flags & IBNBD_DEVICE_READ_ONLY) != 0));
  PrintRow("write cache", YesNo((info.flags & IBNBD_DEVICE_WRITE_CACHE) != 0));
  PrintRow("FUA", YesNo((info.flags & IBNBD_DEVICE_FUA) != 0));
  PrintRow("discard", BlockOperation(info.discard_max));
  PrintRow("write zeroes", BlockOperation(info.write_zeroes_max));
  PrintRow("secure erase", YesNo((info.flags & IBNBD_DEVICE_SECURE_ERASE) != 0));
  PrintRow("one message carries", SizeText(info.io_size_max));
  if (info.volume_id != 0) PrintRow("volume id", VolumeIdText(info.volume_id));
}

}  // namespace

absl::Status RunList(const std::string& uri, const CommonOptions& options) {
  ASSIGN_OR_RETURN(const Session session,
                   OpenSession(uri, options.session_name, options.timeout_s * 1000));
  ASSIGN_OR_RETURN(const std::vector<ibnbd_export_info> exports,
                   ListExports(session.get(), options));
  if (!options.json) {
    PrintExports(exports);
    return absl::OkStatus();
  }
  Json json = {{"exports", Json::array()}};
  for (const ibnbd_export_info& info : exports) json["exports"].push_back(ToJson(info));
  Print(json);
  return absl::OkStatus();
}

absl::Status RunShow(const std::string& uri, const CommonOptions& options) {
  ASSIGN_OR_RETURN(const std::string name, ExportOfUri(uri));
  ASSIGN_OR_RETURN(const Session session,
                   OpenSession(uri, options.session_name, options.timeout_s * 1000));
  ASSIGN_OR_RETURN(const Device device,
                   OpenDevice(session.get(), name, false, options.timeout_s * 1000, -1));
  ASSIGN_OR_RETURN(ibnbd_device_info info, DescribeDevice(device.get()));
  ASSIGN_OR_RETURN(const struct ibnbd_session_info session_info, DescribeSession(session.get()));
  // We opened it read-only, so as not to disturb a writer: what others may do, the list says.
  const auto exports = ListExports(session.get(), options);
  if (exports.ok()) {
    for (const ibnbd_export_info& entry : *exports) {
      if (name != entry.name) continue;
      if ((entry.flags & IBNBD_EXPORT_READ_ONLY) == 0) info.flags &= ~IBNBD_DEVICE_READ_ONLY;
    }
  }
  if (options.json) {
    Json json = ToJson(info);
    json["session"] = ToJson(session_info);
    Print(json);
  } else {
    PrintDevice(info, session_info);
  }
  return absl::OkStatus();
}

absl::Status RunPing(const std::string& uri, const PingOptions& ping,
                     const CommonOptions& options) {
  ASSIGN_OR_RETURN(const Session session,
                   OpenSession(uri, options.session_name, options.timeout_s * 1000));
  std::vector<std::uint64_t> times_ns;
  for (std::uint32_t i = 0; i < ping.count; ++i) {
    if (i != 0) std::this_thread::sleep_for(std::chrono::duration<double>(ping.interval_s));
    std::uint64_t time_ns = 0;
    const int error = ibnbd_session_ping(session.get(), options.timeout_s * 1000, &time_ns);
    if (error != 0) return Annotate(ApiStatus(error), "ping");
    times_ns.push_back(time_ns);
    if (options.json) continue;
    std::printf("%s: %u: %s\n", uri.c_str(), i + 1,
                DurationText(static_cast<std::int64_t>(time_ns)).c_str());
    std::fflush(stdout);
  }
  if (times_ns.empty()) return absl::OkStatus();
  std::uint64_t sum_ns = 0;
  for (const std::uint64_t time_ns : times_ns) sum_ns += time_ns;
  const auto [min, max] = std::minmax_element(times_ns.begin(), times_ns.end());
  const std::uint64_t mean_ns = sum_ns / times_ns.size();
  if (options.json) {
    Print({{"uri", uri},
           {"round_trips_ns", times_ns},
           {"min_ns", *min},
           {"mean_ns", mean_ns},
           {"max_ns", *max}});
    return absl::OkStatus();
  }
  std::printf("%zu round trips, min %s, mean %s, max %s\n", times_ns.size(),
              DurationText(static_cast<std::int64_t>(*min)).c_str(),
              DurationText(static_cast<std::int64_t>(mean_ns)).c_str(),
              DurationText(static_cast<std::int64_t>(*max)).c_str());
  return absl::OkStatus();
}

}  // namespace ibnbd::client

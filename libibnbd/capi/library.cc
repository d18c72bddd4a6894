// SPDX-License-Identifier: Apache-2.0
// The calls of the C API that concern no session: version, error text, logging, URIs.
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "base/log.h"
#include "base/socket_address.h"
#include "capi/error.h"
#include "ibnbd/ibnbd.h"

using ibnbd::LogLevel;
using ibnbd::capi::Fail;
using ibnbd::capi::Succeed;

const char* ibnbd_version(void) { return IBNBD_VERSION_TEXT; }

const char* ibnbd_error_message(void) { return ibnbd::capi::ErrorText(); }

void ibnbd_set_log(ibnbd_log_fn fn, void* opaque, int level) {
  if (level < IBNBD_LOG_ERROR) level = IBNBD_LOG_ERROR;
  if (level > IBNBD_LOG_DEBUG) level = IBNBD_LOG_DEBUG;
  const auto limit = static_cast<LogLevel>(level);
  if (fn == nullptr) {
    ibnbd::SetLogSink(
        [](LogLevel, const std::string& line) {
          std::fprintf(stderr, "libibnbd: %s\n", line.c_str());
        },
        limit);
    return;
  }
  ibnbd::SetLogSink(
      [fn, opaque](LogLevel line_level, const std::string& line) {
        fn(opaque, static_cast<int>(line_level), line.c_str());
      },
      limit);
}

int ibnbd_uri_export(const char* uri, char* name, size_t size) {
  if (uri == nullptr || name == nullptr || size == 0) {
    return Fail(-EINVAL, "ibnbd_uri_export: the URI or the place for the name is missing");
  }
  const auto parsed = ibnbd::ParseUri(uri);
  if (!parsed.ok()) return Fail("ibnbd_uri_export", parsed.status());
  if (parsed->export_name.empty()) {
    return Fail(-ENOENT, "ibnbd_uri_export: \"%s\" names no export: say %s%sNAME", uri, uri,
                *uri != '\0' && uri[std::strlen(uri) - 1] == '/' ? "" : "/");
  }
  if (parsed->export_name.size() >= size) {
    return Fail(-ENAMETOOLONG, "ibnbd_uri_export: the name of %zu bytes does not fit into %zu",
                parsed->export_name.size(), size);
  }
  std::memcpy(name, parsed->export_name.c_str(), parsed->export_name.size() + 1);
  return Succeed();
}

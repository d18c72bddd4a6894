// SPDX-License-Identifier: Apache-2.0
// Where log lines go.  The layers below the programs only say what happened; a program installs
// one sink (the daemons: spdlog; the shared library: the application's callback).  Control path
// only: nothing on the data path logs.  One event, one line, "key value" pairs without "=".
#pragma once

#include <functional>
#include <string>

#include "absl/strings/str_cat.h"

namespace ibnbd {

enum class LogLevel { kError = 0, kWarn = 1, kInfo = 2, kDebug = 3 };
using LogSink = std::function<void(LogLevel, const std::string& line)>;

// Replaces the sink (initially: errors and warnings to stderr) and the level above which lines are
// dropped before they are built.  Call before threads start.
void SetLogSink(LogSink sink, LogLevel level);
bool LogEnabled(LogLevel level);
void LogLine(LogLevel level, const std::string& line);  // Any thread.

}  // namespace ibnbd

#define IBNBD_LOG(level, ...)                                                           \
  do {                                                                                  \
    if (::ibnbd::LogEnabled(level)) ::ibnbd::LogLine(level, absl::StrCat(__VA_ARGS__)); \
  } while (false)
#define LOG_ERROR(...) IBNBD_LOG(::ibnbd::LogLevel::kError, __VA_ARGS__)
#define LOG_WARN(...) IBNBD_LOG(::ibnbd::LogLevel::kWarn, __VA_ARGS__)
#define LOG_INFO(...) IBNBD_LOG(::ibnbd::LogLevel::kInfo, __VA_ARGS__)
#define LOG_DEBUG(...) IBNBD_LOG(::ibnbd::LogLevel::kDebug, __VA_ARGS__)

// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-server/log_sink.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "base/log.h"

namespace ibnbd {
namespace {

// systemd says which socket is its journal; somebody may have redirected us since.
bool IsJournal() {
  const char* stream = std::getenv("JOURNAL_STREAM");
  struct stat st {};
  return stream != nullptr && fstat(STDERR_FILENO, &st) == 0 &&
         absl::StrCat(st.st_dev, ":", st.st_ino) == stream;
}

LogLevel LevelFromName(const std::string& name) {
  if (name == "error") return LogLevel::kError;
  if (name == "warn") return LogLevel::kWarn;
  return name == "debug" ? LogLevel::kDebug : LogLevel::kInfo;
}

struct LevelNames {
  spdlog::level::level_enum level;
  const char* journal_prefix;  // sd-daemon(3).
};
LevelNames NamesOf(LogLevel level) {
  switch (level) {
    case LogLevel::kError:
      return {spdlog::level::err, "<3>"};
    case LogLevel::kWarn:
      return {spdlog::level::warn, "<4>"};
    case LogLevel::kInfo:
      return {spdlog::level::info, "<6>"};
    case LogLevel::kDebug:
      break;
  }
  return {spdlog::level::debug, "<7>"};
}

}  // namespace

void InstallLogSink(const std::string& level) {
  const bool journal = IsJournal();
  auto logger = std::make_shared<spdlog::logger>("ibnbd-server",
                                                 std::make_shared<spdlog::sinks::stderr_sink_mt>());
  logger->set_pattern(journal ? "%v" : "%Y-%m-%dT%H:%M:%S.%e %n %l: %v");
  logger->set_level(spdlog::level::trace);  // base/log.h has decided already.
  logger->flush_on(spdlog::level::trace);
  SetLogSink(
      [logger, journal](LogLevel line_level, const std::string& line) {
        const LevelNames names = NamesOf(line_level);
        // The line is an argument: it is never taken for a format.
        logger->log(names.level, "{}{}", journal ? names.journal_prefix : "", line);
      },
      LevelFromName(level));
}

}  // namespace ibnbd

// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-server/log_sink.h"

#include <spdlog/sinks/base_sink.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <mutex>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/check.h"
#include "base/log.h"
#include "base/log_writer.h"

namespace ibnbd {
namespace {

// systemd says which socket is its journal; somebody may have redirected us since.
bool IsJournal() {
  const char* stream = std::getenv("JOURNAL_STREAM");
  struct stat st {};
  return stream != nullptr && fstat(STDERR_FILENO, &st) == 0 &&
         absl::StrCat(st.st_dev, ":", st.st_ino) == stream;
}

LogWriter* g_writer = nullptr;  // Never destroyed: threads may log during exit.

class WriterSink final : public spdlog::sinks::base_sink<std::mutex> {
 private:
  void sink_it_(const spdlog::details::log_msg& message) override {
    spdlog::memory_buf_t text;
    formatter_->format(message, text);
    absl::string_view line(text.data(), text.size());
    while (!line.empty() && line.back() == '\n') line.remove_suffix(1);
    g_writer->Write(line);
  }
  void flush_() override {}
};

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
  g_writer = new LogWriter(STDERR_FILENO, journal ? "<4>" : "ibnbd-server warning: ");
  g_writer->Start();
  before_check_fails = FlushLog;
  auto logger = std::make_shared<spdlog::logger>("ibnbd-server", std::make_shared<WriterSink>());
  logger->set_pattern(journal ? "%v" : "%Y-%m-%dT%H:%M:%S.%e %n %l: %v");
  logger->set_level(spdlog::level::trace);  // base/log.h has decided already.
  SetLogSink(
      [logger, journal](LogLevel line_level, const std::string& line) {
        const LevelNames names = NamesOf(line_level);
        // The line is an argument: it is never taken for a format.
        logger->log(names.level, "{}{}", journal ? names.journal_prefix : "", line);
      },
      LevelFromName(level));
}

void FlushLog() {
  if (g_writer != nullptr) (void)g_writer->Flush(absl::Seconds(1));
}

}  // namespace ibnbd

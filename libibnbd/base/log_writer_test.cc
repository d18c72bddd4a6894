// SPDX-License-Identifier: Apache-2.0
#include "base/log_writer.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/unique_fd.h"

namespace ibnbd {
namespace {

constexpr absl::Duration kLong = absl::Seconds(60);

struct Pipe {
  Pipe() {
    std::array<int, 2> ends{};
    EXPECT_EQ(::pipe2(ends.data(), O_CLOEXEC), 0);
    reader = UniqueFd(ends[0]);
    writer = UniqueFd(ends[1]);
    EXPECT_GT(::fcntl(writer.get(), F_SETPIPE_SZ, 4096), 0);
  }
  // With empty lines.
  void Fill() const {
    ASSERT_EQ(::fcntl(writer.get(), F_SETFL, O_NONBLOCK), 0);
    while (::write(writer.get(), "\n", 1) == 1) {
    }
    ASSERT_EQ(::fcntl(writer.get(), F_SETFL, 0), 0);
  }
  UniqueFd reader;
  UniqueFd writer;
};

// Everything until the last writer has gone.
std::vector<std::string> LinesOf(const UniqueFd& reader) {
  std::string text;
  std::array<char, 4096> piece{};
  for (ssize_t got = 0; (got = ::read(reader.get(), piece.data(), piece.size())) > 0;) {
    text.append(piece.data(), static_cast<std::size_t>(got));
  }
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) {
    if (!line.empty()) lines.push_back(line);
  }
  return lines;
}

TEST(LogWriter, WritesLinesInTheirOrder) {
  Pipe pipe;
  {
    LogWriter log(pipe.writer.get(), "p: ");
    log.Write("before the thread");
    log.Start();
    log.Write("and after it");
    EXPECT_TRUE(log.Flush(kLong));
  }
  pipe.writer.Reset();
  EXPECT_EQ(LinesOf(pipe.reader), (std::vector<std::string>{"before the thread", "and after it"}));
}

// If it waited, the test would not end.
TEST(LogWriter, NeverWaitsForAReaderAndSaysLaterHowManyLinesItCost) {
  constexpr int kLines = 20'000;
  Pipe pipe;
  pipe.Fill();
  std::vector<std::string> lines;
  std::thread reader;
  {
    LogWriter log(pipe.writer.get(), "p: ", 1000);
    log.Start();
    for (int i = 0; i < kLines; ++i) log.Write(absl::StrCat("line ", i));
    EXPECT_FALSE(log.Flush(absl::ZeroDuration()));
    reader = std::thread([&] { lines = LinesOf(pipe.reader); });
    EXPECT_TRUE(log.Flush(kLong));  // The count comes by itself.
    log.Write("the last one");
  }
  pipe.writer.Reset();
  reader.join();
  ASSERT_GE(lines.size(), 3U);
  EXPECT_EQ(lines.back(), "the last one");
  lines.pop_back();
  int next = 0;
  for (const std::string& line : lines) {
    int lost = 0;
    if (std::sscanf(line.c_str(), "p: %d log lines were lost: nobody took them", &lost) == 1) {
      EXPECT_GT(lost, 0);
      next += lost;
    } else {
      EXPECT_EQ(line, absl::StrCat("line ", next++));
    }
  }
  EXPECT_EQ(next, kLines);
  EXPECT_LT(lines.size(), static_cast<std::size_t>(kLines));
}

TEST(LogWriter, WhatCouldNotBeWrittenIsCountedWhenItCanAgain) {
  Pipe pipe;
  UniqueFd target(::open("/dev/full", O_WRONLY | O_CLOEXEC));
  ASSERT_TRUE(target.valid());
  {
    LogWriter log(target.get(), "p: ");
    log.Start();
    log.Write("one");
    ASSERT_TRUE(log.Flush(kLong));
    log.Write("two");
    log.Write("three");
    ASSERT_TRUE(log.Flush(kLong));
    ASSERT_EQ(::dup2(pipe.writer.get(), target.get()), target.get());
    pipe.writer.Reset();
    log.Write("four");
    EXPECT_TRUE(log.Flush(kLong));
  }
  target.Reset();
  EXPECT_EQ(LinesOf(pipe.reader),
            (std::vector<std::string>{"p: 3 log lines were lost: nobody took them", "four"}));
}

// SIGPIPE would end the test.
TEST(LogWriter, AReaderThatHasGoneEndsNothing) {
  Pipe pipe;
  pipe.reader.Reset();
  LogWriter log(pipe.writer.get(), "p: ");
  log.Start();
  log.Write("to nobody");
  EXPECT_TRUE(log.Flush(kLong));
  log.Write("again");
  EXPECT_TRUE(log.Flush(kLong));
}

TEST(LogWriter, WaitsForADescriptorThatDoesNotBlock) {
  constexpr int kLines = 2000;
  Pipe pipe;
  ASSERT_EQ(::fcntl(pipe.writer.get(), F_SETFL, O_NONBLOCK), 0);
  std::vector<std::string> lines;
  std::thread reader;
  {
    LogWriter log(pipe.writer.get(), "p: ");
    log.Start();
    for (int i = 0; i < kLines; ++i) log.Write(absl::StrCat("line ", i));
    reader = std::thread([&] { lines = LinesOf(pipe.reader); });
  }
  pipe.writer.Reset();
  reader.join();
  ASSERT_EQ(lines.size(), static_cast<std::size_t>(kLines));
  EXPECT_EQ(lines.back(), absl::StrCat("line ", kLines - 1));
}

TEST(LogWriter, LongLinesAreCut) {
  Pipe pipe;
  {
    LogWriter log(pipe.writer.get(), "p: ");
    log.Write(std::string(3 * LogWriter::kLineMax, 'x'));
    log.Start();
    std::thread reader;
    std::vector<std::string> lines;
    reader = std::thread([&] { lines = LinesOf(pipe.reader); });
    EXPECT_TRUE(log.Flush(kLong));
    pipe.writer.Reset();
    reader.join();
    ASSERT_EQ(lines.size(), 1U);
    EXPECT_EQ(lines[0].size(), LogWriter::kLineMax);
  }
}

}  // namespace
}  // namespace ibnbd

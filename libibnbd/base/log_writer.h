// SPDX-License-Identifier: Apache-2.0
// Log lines for a file descriptor whose reader may be slow, or gone: a thread of its own writes
// them, so that who has something to say never waits for who listens.  A process through which the
// kernel reaches a disk needs that: the one who takes its log may be waiting for this very disk.
// What does not fit into the memory set aside is dropped and counted, and the count is said when
// there is somebody to say it to.  No allocation after the constructor.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace ibnbd {

class LogWriter {
 public:
  static constexpr std::size_t kCapacity = 256 * 1024;
  static constexpr std::size_t kLineMax = 4096;  // What is longer is cut.

  // `fd` stays the caller's.  `loss_prefix` begins the line that counts what was dropped.
  LogWriter(int fd, std::string loss_prefix, std::size_t capacity = kCapacity);
  // Waits until all is written: not for programs, whose end would wait for the reader.
  ~LogWriter();
  LogWriter(const LogWriter&) = delete;
  LogWriter& operator=(const LogWriter&) = delete;

  // Starts the thread, which inherits what its process has been made; lines wait until then.  Once.
  void Start();
  // Any thread; never waits.  `line` without its newline.
  void Write(absl::string_view line);
  // False: after `timeout` there was still something that nobody took.
  bool Flush(absl::Duration timeout);

 private:
  // What is to be written next, and whether the count comes before it.
  struct Piece {
    std::size_t begin;
    std::size_t size;
    std::uint64_t lost;
  };

  void Append(absl::string_view text);
  [[nodiscard]] bool MayTellLoss() const { return lost_ != 0 && begin_ >= lost_at_; }
  [[nodiscard]] bool IsIdle() const { return begin_ == end_ && (!MayTellLoss() || failed_); }
  [[nodiscard]] Piece Next() const;
  void Finish(const Piece& piece, bool told, bool written);
  void Run();
  [[nodiscard]] bool WriteOut(const char* text, std::size_t size) const;

  const int fd_;
  const std::string loss_prefix_;
  std::vector<char> buffer_;  // A ring; [begin_, end_) belongs to the thread.
  std::mutex mutex_;
  std::condition_variable changed_;
  std::uint64_t begin_ = 0;    // Bytes ever written, or given up,
  std::uint64_t end_ = 0;      // and ever taken.
  std::uint64_t lost_ = 0;     // Lines,
  std::uint64_t lost_at_ = 0;  // the first of them behind this byte.
  bool failed_ = false;        // The last attempt to write.
  bool ending_ = false;
  std::thread thread_;
};

}  // namespace ibnbd

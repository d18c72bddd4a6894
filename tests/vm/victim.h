// SPDX-License-Identifier: Apache-2.0
// Applications of libibnbd in a process with a hostile server: the victim uses it once and says
// what it saw; a neighbour has a session of its own and must not notice anything.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <thread>

namespace ibnbd {

struct VictimReport {
  int session = 1, device = 1;  // 0 or a negative errno of opening it; 1: not tried.
  int submitted = 0, succeeded = 0, failed = 0, cancelled = 0;  // IOs.
  bool answered_twice = false;
  bool beside_touched = false;  // Memory beside what was lent, or of a registration that is gone.
  int close = 1;
  std::uint64_t reconnects = 0;
  std::string text;  // All that was logged, and the messages of errors.

  [[nodiscard]] bool all_succeeded() const { return submitted > 0 && succeeded == submitted; }
  [[nodiscard]] std::string ToString() const;
};

// Opens, reads, writes and flushes, on registered memory and on unregistered, and closes; takes
// at most a minute, whatever the server does.
VictimReport RunVictim(const std::string& uri);

// Writes and reads again until it is destroyed, on a thread of its own.
class Neighbour {
 public:
  // What is compared with what was written, if the server stores anything.
  Neighbour(std::string uri, bool stores);
  ~Neighbour() { Stop(); }
  Neighbour(const Neighbour&) = delete;
  Neighbour& operator=(const Neighbour&) = delete;
  // "" if all went well; only then `rounds` means anything.
  std::string Stop();
  [[nodiscard]] int rounds() const { return rounds_.load(); }

 private:
  void Run();
  std::string Work();

  const std::string uri_;
  const bool stores_;
  std::atomic<bool> stop_{false};
  std::atomic<int> rounds_{0};
  std::string trouble_;  // The thread's until it is joined.
  std::thread thread_;
};

// Of what a neighbour lends: its IO comes first, and nothing ever comes to the second half.
inline constexpr std::size_t kNeighbourHalf = 64 << 10;

}  // namespace ibnbd

// SPDX-License-Identifier: Apache-2.0
// An ibnbd-server of its own for a test: on a port that the kernel chose, ended with the test.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

class ServerProcess {
 public:
  // Exports "mem" (64 MiB) and "ro" (8 MiB, read-only), in memory, and "disk" (16 MiB), a file that
  // outlives the server.
  ServerProcess();
  ~ServerProcess();
  ServerProcess(const ServerProcess&) = delete;
  ServerProcess& operator=(const ServerProcess&) = delete;
  [[nodiscard]] const std::string& uri() const { return uri_; }  // "tcp://127.0.0.1:40123"
  void Kill();                                                   // As kill -9 does.
  void Restart();                                                // On the port it had.

 private:
  void Start(const std::string& listen);
  bool TryStart(const std::string& listen);
  pid_t pid_ = -1;
  std::string uri_;
  std::string file_;
};

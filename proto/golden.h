// SPDX-License-Identifier: Apache-2.0
// For tests: reads testdata/<name>.hex.  Such a file holds hexadecimal bytes; `00*36` repeats one;
// what follows a '#' is a comment.  Aborts the test program when the file is missing or malformed.
#pragma once

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <span>
#include <sstream>
#include <string>
#include <vector>

namespace ibnbd::proto {

using Bytes = std::vector<std::byte>;

inline Bytes Golden(const std::string& name) {
  const std::string path = std::string(IBNBD_PROTO_DIR) + "/testdata/" + name + ".hex";
  std::ifstream file(path);
  Bytes bytes;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line.substr(0, line.find('#')));
    for (std::string word; words >> word;) {
      char* end = nullptr;
      const unsigned long value = std::strtoul(word.c_str(), &end, 16);
      const unsigned long count = *end == '*' ? std::strtoul(end + 1, &end, 10) : 1;
      if (*end != '\0' || value > 0xff || count > 65536) {
        std::fprintf(stderr, "%s: not a byte: %s\n", path.c_str(), word.c_str());
        std::abort();
      }
      bytes.insert(bytes.end(), count, static_cast<std::byte>(value));
    }
  }
  if (bytes.empty()) {
    std::fprintf(stderr, "%s: missing or empty\n", path.c_str());
    std::abort();
  }
  return bytes;
}

inline Bytes ToBytes(std::span<const std::byte> bytes) { return {bytes.begin(), bytes.end()}; }

inline Bytes Concat(Bytes first, std::span<const std::byte> second) {
  first.insert(first.end(), second.begin(), second.end());
  return first;
}

}  // namespace ibnbd::proto

// SPDX-License-Identifier: Apache-2.0
// Takes the place of libFuzzer where there is none (g++): runs a fuzz target over files and
// directories of files, in the order of their names, so that every build replays the corpus.  Each
// input gets memory of exactly its size: AddressSanitizer sees a byte too many.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

int main(int argc, char** argv) {
  namespace fs = std::filesystem;
  std::vector<fs::path> files;
  for (int i = 1; i < argc; ++i) {
    std::error_code error;
    if (!fs::is_directory(argv[i], error)) {
      files.emplace_back(argv[i]);
      continue;
    }
    for (const fs::directory_entry& entry : fs::directory_iterator(argv[i])) {
      if (entry.is_regular_file()) files.push_back(entry.path());
    }
  }
  std::sort(files.begin(), files.end());
  for (const fs::path& file : files) {
    std::ifstream stream(file, std::ios::binary);
    if (!stream) {
      std::fprintf(stderr, "cannot read %s\n", file.c_str());
      return 1;
    }
    const std::string text{std::istreambuf_iterator<char>(stream), {}};
    const auto data = std::make_unique<std::uint8_t[]>(text.size());
    std::copy(text.begin(), text.end(), data.get());
    // Said before it runs: when it crashes, the last line names the input.
    std::printf("%s\n", file.c_str());
    std::fflush(stdout);
    (void)LLVMFuzzerTestOneInput(data.get(), text.size());
  }
  std::printf("%zu inputs replayed\n", files.size());
  return files.empty() ? 1 : 0;  // A corpus that is not found must not pass.
}

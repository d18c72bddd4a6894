// SPDX-License-Identifier: Apache-2.0
// What every provider promises, and what each of them is for.
#include "base/memory_provider.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <string>
#include <utility>

#include "base/arena.h"

namespace ibnbd {
namespace {

constexpr std::size_t kMiB = 1u << 20;

// A field of the mapping that `address` lies in, in KiB, from smaps; -1 if there is none.
long FieldOfMapping(const void* address, const std::string& field) {
  std::ifstream smaps("/proc/self/smaps");
  bool inside = false;
  for (std::string line; std::getline(smaps, line);) {
    std::uintptr_t begin = 0, end = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &begin, &end) == 2) {
      const auto at = reinterpret_cast<std::uintptr_t>(address);
      inside = begin <= at && at < end;
    } else if (inside && line.compare(0, field.size(), field) == 0) {
      return std::strtol(line.c_str() + field.size(), nullptr, 10);
    }
  }
  return -1;
}

long FreeHugePages() {
  std::ifstream info("/proc/meminfo");
  long size_kib = 0, free = 0;
  for (std::string key, rest; info >> key && std::getline(info, rest);) {
    if (key == "HugePages_Free:") free = std::strtol(rest.c_str(), nullptr, 10);
    if (key == "Hugepagesize:") size_kib = std::strtol(rest.c_str(), nullptr, 10);
  }
  return size_kib == 2048 ? free : 0;
}

class EveryProvider : public ::testing::TestWithParam<const MemoryProvider*> {};

TEST_P(EveryProvider, GivesZeroedMemoryThatBeginsAtAPage) {
  for (const std::size_t size : {std::size_t{1}, std::size_t{4097}, 3 * kMiB}) {
    auto arena = Arena::Create(size, *GetParam());
    ASSERT_TRUE(arena.ok()) << arena.status();
    const std::span<std::byte> bytes = arena->bytes();
    ASSERT_GE(bytes.size(), size);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(bytes.data()) % 4096, 0u);
    EXPECT_TRUE(
        std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{}; }));
    std::fill(bytes.begin(), bytes.end(), std::byte{0x5a});
  }
}

TEST_P(EveryProvider, GivesNothingToChildren) {
  auto arena = Arena::Create(kMiB, *GetParam());
  ASSERT_TRUE(arena.ok()) << arena.status();
  arena->bytes()[0] = std::byte{1};
  const pid_t child = fork();
  if (child == 0) {  // Asks, without touching.
    unsigned char resident = 0;
    _exit(mincore(arena->bytes().data(), 4096, &resident) == 0 ? 1 : 0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(WEXITSTATUS(status), 0) << "the child has the pages";
}

TEST_P(EveryProvider, SaysNoToMoreThanThereIs) {
  EXPECT_FALSE(Arena::Create(std::size_t{1} << 62, *GetParam()).ok());
  EXPECT_FALSE(Arena::Create(SIZE_MAX, *GetParam()).ok());
}

TEST_P(EveryProvider, IsFoundByItsName) {
  EXPECT_EQ(FindMemoryProvider(GetParam()->name()), GetParam());
}

TEST_P(EveryProvider, AnArenaThatIsMovedFromIsEmpty) {
  auto arena = Arena::Create(4096, *GetParam());
  ASSERT_TRUE(arena.ok()) << arena.status();
  const std::byte* base = arena->bytes().data();
  const Arena moved = *std::move(arena);
  EXPECT_EQ(moved.bytes().data(), base);
  EXPECT_TRUE(arena->bytes().empty());
  EXPECT_EQ(arena->fd(), -1);
}

INSTANTIATE_TEST_SUITE_P(All, EveryProvider,
                         ::testing::Values(&OrdinaryPages(), &HugePages(), &SharedPages()),
                         [](const auto& provider) { return std::string(provider.param->name()); });

TEST(FindMemoryProvider, KnowsNoOthers) {
  EXPECT_EQ(FindMemoryProvider(""), nullptr);
  EXPECT_EQ(FindMemoryProvider("hug"), nullptr);
}

TEST(HugePages, AreHugeWhereSomeAreSetAsideAndOrdinaryWhereNot) {
  const bool there_are = FreeHugePages() >= 2;
  auto arena = Arena::Create(3 * kMiB, HugePages());
  ASSERT_TRUE(arena.ok()) << arena.status();
  arena->bytes()[0] = std::byte{1};
  EXPECT_EQ(FieldOfMapping(arena->bytes().data(), "KernelPageSize:"), there_are ? 2048 : 4);
}

TEST(HugePages, AreNotSpentOnALittleMemory) {
  auto arena = Arena::Create(64 * 1024, HugePages());
  ASSERT_TRUE(arena.ok()) << arena.status();
  EXPECT_EQ(FieldOfMapping(arena->bytes().data(), "KernelPageSize:"), 4);
}

TEST(SharedPages, CanBeMappedByWhoeverGetsTheFileAndNotBeTakenAway) {
  auto arena = Arena::Create(kMiB, SharedPages());
  ASSERT_TRUE(arena.ok()) << arena.status();
  const pid_t child = fork();
  if (child == 0) {
    void* base = mmap(nullptr, kMiB, PROT_READ | PROT_WRITE, MAP_SHARED, arena->fd(), 0);
    if (base == MAP_FAILED) _exit(1);
    static_cast<char*>(base)[kMiB - 1] = 'x';
    _exit(ftruncate(arena->fd(), 0) == 0 ? 2 : 0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_EQ(arena->bytes()[kMiB - 1], std::byte{'x'});
}

TEST(SharedPages, CloseTheirFile) {
  int fd = -1;
  {
    auto arena = Arena::Create(4096, SharedPages());
    ASSERT_TRUE(arena.ok()) << arena.status();
    fd = arena->fd();
    ASSERT_GE(fcntl(fd, F_GETFD), 0);
  }
  EXPECT_LT(fcntl(fd, F_GETFD), 0);
}

}  // namespace
}  // namespace ibnbd

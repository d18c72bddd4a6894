// SPDX-License-Identifier: Apache-2.0
#include "fabric/tcp/region_table.h"

#include <gtest/gtest.h>

#include <atomic>
#include <set>
#include <thread>
#include <vector>

namespace ibnbd::tcp {
namespace {

using fabric::Access;

std::uint64_t Addr(const std::byte* p) { return reinterpret_cast<std::uintptr_t>(p); }

TEST(RegionTable, CoversExactlyWhatWasRegistered) {
  RegionTable table;
  std::vector<std::byte> memory(100);
  const std::uint32_t key = table.Add(memory, Access::kRemoteWrite);
  ASSERT_NE(key, 0u);
  EXPECT_EQ(table.FindRemote(key, Addr(memory.data()), 100), memory.data());
  EXPECT_EQ(table.FindRemote(key, Addr(memory.data()) + 99, 1), memory.data() + 99);
  EXPECT_EQ(table.FindRemote(key, Addr(memory.data()) + 99, 2), nullptr);
  EXPECT_EQ(table.FindRemote(key, Addr(memory.data()) - 1, 1), nullptr);
  EXPECT_EQ(table.FindRemote(key, Addr(memory.data()), 0xffffffff), nullptr);
  EXPECT_EQ(table.FindRemote(key, ~std::uint64_t{0}, 2), nullptr);
  EXPECT_EQ(table.FindRemote(0, Addr(memory.data()), 1), nullptr);
  EXPECT_TRUE(table.CoversLocal({memory.data(), 100, key}));
  EXPECT_FALSE(table.CoversLocal({memory.data() + 1, 100, key}));
  EXPECT_FALSE(table.CoversLocal({memory.data(), 100, key + RegionTable::kSlots}));
}

TEST(RegionTable, AKeyIsFoundInItsOwnDomainAlone) {
  RegionTable table;
  std::vector<std::byte> memory(100);
  const RegionTable::DomainId domain = table.NewDomain();
  ASSERT_NE(domain, RegionTable::kCommonDomain);
  const std::uint32_t key = table.Add(memory, Access::kRemoteInvalidate, domain);
  for (const RegionTable::DomainId other : {RegionTable::kCommonDomain, table.NewDomain()}) {
    EXPECT_EQ(table.FindRemote(key, Addr(memory.data()), 1, other), nullptr);
    EXPECT_FALSE(table.CoversLocal({memory.data(), 1, key}, other));
    EXPECT_FALSE(table.MayInvalidate(key, other));
    EXPECT_FALSE(table.Invalidate(key, other));
  }
  EXPECT_EQ(table.FindRemote(key, Addr(memory.data()), 1, domain), memory.data());
  EXPECT_TRUE(table.CoversLocal({memory.data(), 1, key}, domain));
}

TEST(RegionTable, ALocalKeyIsNoRemoteKey) {
  RegionTable table;
  std::vector<std::byte> memory(100);
  const std::uint32_t key = table.Add(memory, Access::kLocal);
  EXPECT_TRUE(table.CoversLocal({memory.data(), 100, key}));
  EXPECT_EQ(table.FindRemote(key, Addr(memory.data()), 1), nullptr);
  EXPECT_FALSE(table.MayInvalidate(key));
}

TEST(RegionTable, AnInvalidatedKeyIsDeadForThePeerAndAliveForItsOwner) {
  RegionTable table;
  std::vector<std::byte> memory(100);
  const std::uint32_t writable = table.Add(memory, Access::kRemoteWrite);
  const std::uint32_t key = table.Add(memory, Access::kRemoteInvalidate);
  EXPECT_FALSE(table.Invalidate(writable));
  EXPECT_NE(table.FindRemote(writable, Addr(memory.data()), 1), nullptr);
  EXPECT_TRUE(table.MayInvalidate(key));
  EXPECT_TRUE(table.Invalidate(key));
  EXPECT_FALSE(table.Invalidate(key));
  EXPECT_EQ(table.FindRemote(key, Addr(memory.data()), 1), nullptr);
  EXPECT_TRUE(table.CoversLocal({memory.data(), 100, key}));
}

TEST(RegionTable, KeysAreNotReusedAtOnceAndTheTableHasAnEnd) {
  RegionTable table;
  std::vector<std::byte> memory(100);
  std::set<std::uint32_t> keys;
  for (std::uint32_t i = 0; i < RegionTable::kSlots; ++i) {
    const std::uint32_t key = table.Add(memory, Access::kRemoteWrite);
    ASSERT_NE(key, 0u);
    keys.insert(key);
  }
  EXPECT_EQ(keys.size(), RegionTable::kSlots);
  EXPECT_EQ(table.Add(memory, Access::kRemoteWrite), 0u);
  const std::uint32_t old = *keys.begin();
  table.Remove(old);
  EXPECT_EQ(table.FindRemote(old, Addr(memory.data()), 1), nullptr);
  EXPECT_NE(table.Add(memory, Access::kRemoteWrite), old);
}

TEST(RegionTable, LookupsOfLivingKeysSucceedWhileOthersComeAndGo) {
  RegionTable table;
  std::vector<std::byte> memory(100), other(10);
  const std::uint32_t key = table.Add(memory, Access::kRemoteWrite);
  std::atomic<bool> stop{false};
  std::atomic<std::uint32_t> passing{0};
  std::thread reader([&] {
    while (!stop) {
      EXPECT_EQ(table.FindRemote(key, Addr(memory.data()), 100), memory.data());
      const std::byte* found = table.FindRemote(passing, Addr(other.data()), 10);
      EXPECT_TRUE(found == nullptr || found == other.data());
    }
  });
  for (int i = 0; i < 20'000; ++i) {
    const std::uint32_t next = table.Add(other, Access::kRemoteWrite);
    passing = next;
    table.Remove(next);
  }
  stop = true;
  reader.join();
}

}  // namespace
}  // namespace ibnbd::tcp

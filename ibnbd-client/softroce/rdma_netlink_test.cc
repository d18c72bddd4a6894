// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-client/softroce/rdma_netlink.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rdma/rdma_netlink.h>

#include <cstring>

#include "base/prng.h"

namespace ibnbd::client {
namespace {

constexpr std::uint16_t kPortType = RDMA_NL_GET_TYPE(RDMA_NL_NLDEV, RDMA_NLDEV_CMD_PORT_GET);
constexpr std::uint16_t kDeviceType = RDMA_NL_GET_TYPE(RDMA_NL_NLDEV, RDMA_NLDEV_CMD_GET);

// A netlink message by hand, in this machine's byte order: nothing of libnl is trusted here.
class Bytes {
 public:
  explicit Bytes(std::uint16_t type) : bytes_(16) { Put(4, type); }

  Bytes& Attribute(std::uint16_t type, const std::string& value) {
    const std::size_t at = bytes_.size();
    bytes_.resize(at + ((4 + value.size() + 3) & ~std::size_t{3}));
    Put(at, static_cast<std::uint16_t>(4 + value.size()));
    Put(at + 2, type);
    std::memcpy(bytes_.data() + at + 4, value.data(), value.size());
    Put(0, static_cast<std::uint32_t>(bytes_.size()));
    return *this;
  }
  Bytes& U32(std::uint16_t type, std::uint32_t value) {
    return Attribute(type, std::string(reinterpret_cast<const char*>(&value), sizeof value));
  }
  Bytes& U8(std::uint16_t type, std::uint8_t value) {
    return Attribute(type, std::string(1, static_cast<char>(value)));
  }
  Bytes& Text(std::uint16_t type, const std::string& text) {
    return Attribute(type, text + std::string(1, '\0'));
  }
  template <class T>
  void Put(std::size_t at, T value) {
    std::memcpy(bytes_.data() + at, &value, sizeof value);
  }
  std::vector<std::byte>& get() { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

Bytes GoodPort() {
  Bytes bytes(kPortType);
  bytes.U32(RDMA_NLDEV_ATTR_DEV_INDEX, 7)
      .Text(RDMA_NLDEV_ATTR_DEV_NAME, "rxe_eth0")
      .U32(RDMA_NLDEV_ATTR_PORT_INDEX, 1)
      .Attribute(RDMA_NLDEV_ATTR_PORT_STATE, std::string(1, '\4'))
      .Text(RDMA_NLDEV_ATTR_NDEV_NAME, "eth0");
  return bytes;
}

TEST(ParsePort, ReadsWhatTheKernelSays) {
  const auto link = ParsePort(GoodPort().get());
  ASSERT_TRUE(link.ok()) << link.status();
  EXPECT_EQ(link->device_index, 7u);
  EXPECT_EQ(link->device, "rxe_eth0");
  EXPECT_EQ(link->port, 1u);
  EXPECT_STREQ(LinkStateText(link->state), "ACTIVE");
  EXPECT_EQ(link->netdev, "eth0");
}

TEST(ParsePort, SkipsAttributesOfAKernelThatIsNewer) {
  Bytes bytes = GoodPort();
  bytes.Attribute(900, "whatever").Attribute(RDMA_NLDEV_ATTR_FW_VERSION, "no zero at the end");
  EXPECT_TRUE(ParsePort(bytes.get()).ok());
}

TEST(ParseDevice, NeedsNoPort) {
  Bytes bytes(kDeviceType);
  bytes.U32(RDMA_NLDEV_ATTR_DEV_INDEX, 0).Text(RDMA_NLDEV_ATTR_DEV_NAME, "mlx5_0");
  const auto link = ParseDevice(bytes.get());
  ASSERT_TRUE(link.ok()) << link.status();
  EXPECT_EQ(link->device, "mlx5_0");
}

TEST(ParsePort, RefusesWhatIsOfAnotherKind) {
  EXPECT_FALSE(ParseDevice(GoodPort().get()).ok());
  Bytes no_port(kPortType);
  no_port.U32(RDMA_NLDEV_ATTR_DEV_INDEX, 0).Text(RDMA_NLDEV_ATTR_DEV_NAME, "mlx5_0");
  EXPECT_FALSE(ParsePort(no_port.get()).ok());
  Bytes no_name(kPortType);
  no_name.U32(RDMA_NLDEV_ATTR_DEV_INDEX, 0).U32(RDMA_NLDEV_ATTR_PORT_INDEX, 1);
  EXPECT_FALSE(ParsePort(no_name.get()).ok());
  EXPECT_FALSE(ParsePort({}).ok());
}

TEST(ParsePort, RefusesNumbersThatAreTooShort) {
  Bytes bytes = GoodPort();
  bytes.Attribute(RDMA_NLDEV_ATTR_DEV_INDEX, "ab");
  EXPECT_FALSE(ParsePort(bytes.get()).ok());
  Bytes empty = GoodPort();
  empty.Attribute(RDMA_NLDEV_ATTR_PORT_STATE, "");
  EXPECT_FALSE(ParsePort(empty.get()).ok());
}

TEST(ParsePort, RefusesNamesThatAreNone) {
  for (const std::string& name :
       {std::string(), std::string("../../x"), std::string("a\x1b[2J"), std::string(64, 'a')}) {
    Bytes bytes = GoodPort();
    bytes.Text(RDMA_NLDEV_ATTR_DEV_NAME, name);
    EXPECT_FALSE(ParsePort(bytes.get()).ok()) << name;
  }
  Bytes endless = GoodPort();
  endless.Attribute(RDMA_NLDEV_ATTR_DEV_NAME, "no_zero_at_the_end");
  EXPECT_FALSE(ParsePort(endless.get()).ok());
  Bytes nothing = GoodPort();
  nothing.Attribute(RDMA_NLDEV_ATTR_DEV_NAME, "");
  EXPECT_FALSE(ParsePort(nothing.get()).ok());
  Bytes endless_netdev = GoodPort();
  endless_netdev.Attribute(RDMA_NLDEV_ATTR_NDEV_NAME, "eth0");
  EXPECT_FALSE(ParsePort(endless_netdev.get()).ok());
}

TEST(ParsePort, RefusesALengthThatIsNotThatOfTheMessage) {
  for (const std::uint32_t length : {0u, 4u, 15u, 1000u, 0xffffffffu}) {
    Bytes bytes = GoodPort();
    bytes.Put(0, length);
    EXPECT_FALSE(ParsePort(bytes.get()).ok()) << length;
  }
}

constexpr std::uint16_t kSummaryType = RDMA_NL_GET_TYPE(RDMA_NL_NLDEV, RDMA_NLDEV_CMD_RES_GET);
constexpr std::uint16_t kQueuePairType = RDMA_NL_GET_TYPE(RDMA_NL_NLDEV, RDMA_NLDEV_CMD_RES_QP_GET);
constexpr std::uint16_t kContextType = RDMA_NL_GET_TYPE(RDMA_NL_NLDEV, RDMA_NLDEV_CMD_RES_CTX_GET);
constexpr std::uint16_t kNested = 0x8000;

// The attributes of a message as the value of another attribute.
std::string Inner(Bytes& bytes) {
  const auto* text = reinterpret_cast<const char*>(bytes.get().data());
  return std::string(text + 16, bytes.get().size() - 16);
}

std::string SummaryEntry(const std::string& name, std::uint64_t count) {
  Bytes entry(0);
  entry.Text(RDMA_NLDEV_ATTR_RES_SUMMARY_ENTRY_NAME, name)
      .Attribute(RDMA_NLDEV_ATTR_RES_SUMMARY_ENTRY_CURR,
                 std::string(reinterpret_cast<const char*>(&count), sizeof count));
  return Inner(entry);
}

Bytes GoodSummary() {
  Bytes table(0), bytes(kSummaryType);
  for (const auto& [name, count] : {std::pair("pd", 9), std::pair("ctx", 3), std::pair("mr", 4)}) {
    table.Attribute(RDMA_NLDEV_ATTR_RES_SUMMARY_ENTRY | kNested,
                    SummaryEntry(name, static_cast<std::uint64_t>(count)));
  }
  bytes.U32(RDMA_NLDEV_ATTR_DEV_INDEX, 0)
      .Attribute(RDMA_NLDEV_ATTR_RES_SUMMARY | kNested, Inner(table));
  return bytes;
}

Bytes GoodContexts() {
  Bytes table(0), bytes(kContextType);
  for (const std::uint32_t pid : {77u, 78u}) {
    Bytes entry(0);
    entry.U32(RDMA_NLDEV_ATTR_RES_PID, pid);
    table.Attribute(RDMA_NLDEV_ATTR_RES_CTX_ENTRY | kNested, Inner(entry));
  }
  bytes.Attribute(RDMA_NLDEV_ATTR_RES_CTX | kNested, Inner(table));
  return bytes;
}

TEST(ParseContexts, CountsThemAndNamesTheirOwners) {
  EXPECT_EQ(ParseContextCount(GoodSummary().get()).value_or(0), 3u);
  EXPECT_THAT(ParseContextPids(GoodContexts().get()).value_or(std::vector<std::uint32_t>()),
              testing::ElementsAre(77u, 78u));
  EXPECT_EQ(ParseContextCount(Bytes(kSummaryType).U32(1, 0).get()).value_or(1), 0u);
  EXPECT_FALSE(ParseContextCount(GoodContexts().get()).ok());
  EXPECT_FALSE(ParseContextPids(GoodSummary().get()).ok());
}

TEST(ParseContexts, RefusesEntriesThatAreTooShort) {
  Bytes entry(0), table(0), bytes(kContextType);
  entry.Attribute(RDMA_NLDEV_ATTR_RES_PID, "ab");
  table.Attribute(RDMA_NLDEV_ATTR_RES_CTX_ENTRY | kNested, Inner(entry));
  bytes.Attribute(RDMA_NLDEV_ATTR_RES_CTX | kNested, Inner(table));
  EXPECT_FALSE(ParseContextPids(bytes.get()).ok());
}

// Two queue pairs: an ordinary one, and the device's own.
Bytes QueuePairs(std::uint8_t ordinary, std::uint8_t own) {
  Bytes table(0), bytes(kQueuePairType);
  for (const auto& [type, state] : {std::pair{2, ordinary}, std::pair{1, own}}) {
    Bytes entry(0);
    entry.U8(RDMA_NLDEV_ATTR_RES_TYPE, static_cast<std::uint8_t>(type))
        .U8(RDMA_NLDEV_ATTR_RES_STATE, state);
    table.Attribute(RDMA_NLDEV_ATTR_RES_QP_ENTRY | kNested, Inner(entry));
  }
  bytes.Attribute(RDMA_NLDEV_ATTR_RES_QP | kNested, Inner(table));
  return bytes;
}

TEST(ParseServicesFailed, LooksAtTheDevicesOwnQueuePairOnly) {
  EXPECT_TRUE(ParseServicesFailed(QueuePairs(3, 6).get()).value_or(false));
  EXPECT_FALSE(ParseServicesFailed(QueuePairs(6, 3).get()).value_or(true));
  EXPECT_FALSE(ParseServicesFailed(Bytes(kQueuePairType).U32(1, 0).get()).value_or(true));
  EXPECT_FALSE(ParseServicesFailed(GoodContexts().get()).ok());
  Bytes entry(0), table(0), bytes(kQueuePairType);
  entry.Attribute(RDMA_NLDEV_ATTR_RES_STATE, "");
  table.Attribute(RDMA_NLDEV_ATTR_RES_QP_ENTRY | kNested, Inner(entry));
  bytes.Attribute(RDMA_NLDEV_ATTR_RES_QP | kNested, Inner(table));
  EXPECT_FALSE(ParseServicesFailed(bytes.get()).ok());
}

TEST(ParseContexts, SurvivesFlippedBytesAndShortenedMessages) {
  Prng prng(2);
  for (Bytes good : {GoodSummary(), GoodContexts()}) {
    for (int i = 0; i < 20000; ++i) {
      std::vector<std::byte> bytes = good.get();
      for (std::uint64_t n = 1 + prng.Below(4); n > 0; --n) {
        bytes[prng.Below(bytes.size())] = static_cast<std::byte>(prng.Below(256));
      }
      const std::size_t size = prng.Below(4) == 0 ? prng.Below(bytes.size()) : bytes.size();
      const std::unique_ptr<std::byte[]> exact(new std::byte[size]);
      std::memcpy(exact.get(), bytes.data(), size);
      const auto pids = ParseContextPids({exact.get(), size});
      EXPECT_LE(pids.ok() ? pids->size() : 0, bytes.size());
      EXPECT_FALSE(pids.ok() && ParseContextCount({exact.get(), size}).ok());
    }
  }
}

// Exactly as large as the span, so that a sanitizer sees a byte that is read beyond it.
absl::StatusOr<RdmaLink> ParseCopy(const std::vector<std::byte>& bytes, std::size_t size) {
  const std::unique_ptr<std::byte[]> exact(new std::byte[size]);
  std::memcpy(exact.get(), bytes.data(), size);
  return ParsePort({exact.get(), size});
}

TEST(ParsePort, EveryPrefixIsRefusedOrComplete) {
  Bytes bytes = GoodPort();
  for (std::size_t size = 0; size < bytes.get().size(); ++size) {
    EXPECT_FALSE(ParseCopy(bytes.get(), size).ok()) << size;
    if (size < 16) continue;
    std::vector<std::byte> told = bytes.get();  // And once more with a header that agrees.
    const auto length = static_cast<std::uint32_t>(size);
    std::memcpy(told.data(), &length, sizeof length);
    const auto link = ParseCopy(told, size);
    EXPECT_TRUE(!link.ok() || link->device == "rxe_eth0");
  }
}

TEST(ParsePort, SurvivesFlippedBytes) {
  const std::vector<std::byte> good = GoodPort().get();
  Prng prng(1);
  int refused = 0;
  for (int i = 0; i < 20000; ++i) {
    std::vector<std::byte> bytes = good;
    for (std::uint64_t n = 1 + prng.Below(4); n > 0; --n) {
      bytes[prng.Below(bytes.size())] = static_cast<std::byte>(prng.Below(256));
    }
    const auto link = ParseCopy(bytes, bytes.size());
    if (!link.ok()) {
      ++refused;
      continue;
    }
    EXPECT_TRUE(IsDeviceName(link->device));
    EXPECT_NE(LinkStateText(link->state), nullptr);
  }
  EXPECT_GT(refused, 1000);
}

TEST(IsDeviceName, TakesWhatInterfacesAreCalled) {
  EXPECT_TRUE(IsDeviceName("rxe_eth0.5"));
  EXPECT_TRUE(IsDeviceName("rocep3s0f1"));
  EXPECT_FALSE(IsDeviceName("a%d"));
  EXPECT_FALSE(IsDeviceName("a/b"));
  EXPECT_FALSE(IsDeviceName(".."));
  EXPECT_FALSE(IsDeviceName("a b"));
}

}  // namespace
}  // namespace ibnbd::client

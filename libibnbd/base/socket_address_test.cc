// SPDX-License-Identifier: Apache-2.0
#include "base/socket_address.h"

#include <gtest/gtest.h>
#include <sys/socket.h>

namespace ibnbd {
namespace {

TEST(ParseUri, TakesTheFormsUsersWrite) {
  const struct {
    const char* text;
    const char* scheme;
    const char* host;
    int port;
    const char* name;
  } cases[] = {
      {"tcp://10.0.0.2/vol0", "tcp", "10.0.0.2", 1234, "vol0"},
      {"tcp://10.0.0.2:4711/vol0", "tcp", "10.0.0.2", 4711, "vol0"},
      {"rdma://storage.example.org/a/b", "rdma", "storage.example.org", 1234, "a/b"},
      {"TCP://host", "tcp", "host", 1234, ""},
      {"tcp://host/", "tcp", "host", 1234, ""},
      {"tcp://host:0/x", "tcp", "host", 0, "x"},
      {"tcp://[::1]:99/x", "tcp", "::1", 99, "x"},
      {"tcp://[fe80::1%eth0]/x", "tcp", "fe80::1%eth0", 1234, "x"},
      {"tcp://host/with%20space%2f", "tcp", "host", 1234, "with space/"},
      {"sim://3:1/x", "sim", "3", 1, "x"},
  };
  for (const auto& test : cases) {
    const auto uri = ParseUri(test.text);
    ASSERT_TRUE(uri.ok()) << test.text << ": " << uri.status();
    EXPECT_EQ(uri->scheme, test.scheme) << test.text;
    EXPECT_EQ(uri->host, test.host) << test.text;
    EXPECT_EQ(uri->port, test.port) << test.text;
    EXPECT_EQ(uri->export_name, test.name) << test.text;
  }
}

TEST(ParseUri, ADefaultSchemeMakesTheSchemeOptional) {
  EXPECT_FALSE(ParseUri("host:1/x").ok());
  const auto uri = ParseUri("host:1/x", "tcp");
  ASSERT_TRUE(uri.ok()) << uri.status();
  EXPECT_EQ(uri->scheme, "tcp");
  EXPECT_EQ(uri->port, 1);
}

TEST(ParseUri, RefusesByName) {
  const struct {
    const char* text;
    const char* why;
  } cases[] = {
      {"host/x", "scheme missing"},
      {"", "scheme missing"},
      {"http://host/x", "unknown scheme \"http\""},
      {"tcp:///x", "host missing"},
      {"tcp://", "host missing"},
      {"tcp://:1234/x", "host missing"},
      {"tcp://[]/x", "host missing"},
      {"tcp://[::1/x", "'[' without ']'"},
      {"tcp://[::1]x/y", "text after ']'"},
      {"tcp://::1/x", "must stand in brackets"},
      {"tcp://host:65536/x", "not within 0..65535"},
      {"tcp://host:99999999999999/x", "not within 0..65535"},
      {"tcp://host:/x", "not within 0..65535"},
      {"tcp://host:-1/x", "not a number"},
      {"tcp://host:+1/x", "not a number"},
      {"tcp://host:12x/y", "not a number"},
      {"tcp://host/x?y=z", "query"},
      {"tcp://host/x#y", "fragment"},
      {"tcp://me@host/x", "user name"},
      {"tcp://host/%zz", "two hex digits"},
      {"tcp://host/%4", "two hex digits"},
      {"tcp://host/a%00b", "%00"},
  };
  for (const auto& test : cases) {
    const auto uri = ParseUri(test.text);
    ASSERT_FALSE(uri.ok()) << test.text;
    const std::string text(uri.status().message());
    EXPECT_NE(text.find(test.why), std::string::npos) << test.text << ": " << text;
    EXPECT_NE(text.find(test.text), std::string::npos) << "the text is not named: " << text;
  }
}

TEST(ParseUri, WhatToStringWritesIsParsedBack) {
  for (const char* text :
       {"tcp://host/x", "rdma://[::1]:7/a/b%20c", "tcp://10.0.0.1", "tcp://h:0/%25"}) {
    const auto uri = ParseUri(text);
    ASSERT_TRUE(uri.ok()) << uri.status();
    EXPECT_EQ(uri->ToString(), text);
  }
}

TEST(ParseHostPort, TakesAHostWithOrWithoutAPort) {
  const struct {
    const char* text;
    const char* host;
    int port;  // -1: none.
  } cases[] = {
      {"10.0.0.2", "10.0.0.2", -1},  {"10.0.0.2:0", "10.0.0.2", 0},
      {"host:65535", "host", 65535}, {"[::1]", "::1", -1},
      {"[::1]:99", "::1", 99},       {"[fe80::1%eth0]", "fe80::1%eth0", -1},
  };
  for (const BareIpv6 bare : {BareIpv6::kRefused, BareIpv6::kTaken}) {
    for (const auto& test : cases) {
      const auto parts = ParseHostPort(test.text, bare);
      ASSERT_TRUE(parts.ok()) << test.text << ": " << parts.status();
      EXPECT_EQ(parts->host, test.host) << test.text;
      EXPECT_EQ(parts->port ? *parts->port : -1, test.port) << test.text;
    }
    for (const char* text : {"", ":1", "[]", "[::1", "[::1]1", "a b", "a]", "host:", "host:x",
                             "host:-1", "host:65536", "[::1]:", "[[::1]]"}) {
      EXPECT_FALSE(ParseHostPort(text, bare).ok()) << text;
    }
  }
}

TEST(ParseHostPort, AnIpv6AddressWithoutBracketsHasNoPort) {
  EXPECT_FALSE(ParseHostPort("fd77::1:99").ok());
  const auto parts = ParseHostPort("fd77::1:99", BareIpv6::kTaken);
  ASSERT_TRUE(parts.ok()) << parts.status();
  EXPECT_EQ(parts->host, "fd77::1:99");
  EXPECT_FALSE(parts->port);
}

TEST(SocketAddress, NumericAddressesResolveToThemselves) {
  const auto v4 = ResolveAddress("127.0.0.1", 4711);
  ASSERT_TRUE(v4.ok()) << v4.status();
  EXPECT_EQ(v4->family, AF_INET);
  EXPECT_EQ(v4->port, 4711);
  EXPECT_EQ(v4->ToString(), "127.0.0.1:4711");
  const auto v6 = ResolveAddress("::1", 1);
  ASSERT_TRUE(v6.ok()) << v6.status();
  EXPECT_EQ(v6->ToString(), "[::1]:1");
  EXPECT_EQ(ResolveAddress("::", 0)->ToString(), "[::]:0");
}

TEST(SocketAddress, ASimulatedOneNamesItsHost) {
  SocketAddress address;
  address.sim_host = 3;
  address.port = 1;
  EXPECT_EQ(address.ToString(), "sim3:1");
  address.sim_host |= 2 << 16;
  EXPECT_EQ(address.ToString(), "sim3.2:1");
}

TEST(SocketAddress, ATruncatedOneIsNotReadBeyondItsLength) {
  SocketAddress address;
  address.family = AF_INET6;
  address.length = 4;
  EXPECT_EQ(address.ToString(), "family10:0");
}

TEST(SocketAddress, AnImpossibleHostIsNamed) {
  const auto none = ResolveAddress("256.256.256.256.invalid", 1);
  ASSERT_FALSE(none.ok());
  EXPECT_NE(none.status().message().find("256.256.256.256.invalid"), absl::string_view::npos);
}

}  // namespace
}  // namespace ibnbd

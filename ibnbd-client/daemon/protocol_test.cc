// SPDX-License-Identifier: Apache-2.0
// The control socket's language and the state file's: what we write we read again, and nothing that
// somebody else writes does harm.
#include "ibnbd-client/daemon/protocol.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace ibnbd::client {
namespace {

MapRequest AMapping() {
  MapRequest map;
  map.uri = *ParseUri("rdma://10.0.0.2:4711/group/vol%200");
  map.kind = DeviceKind::kNbd;
  map.access = IBNBD_MIGRATION;
  map.fail_after_ms = 1500;
  map.queue_depth = 64;
  map.wishes.ways = {"10.0.0.1", "10.1.0.1@10.1.0.2 10.2.0.2"};
  map.wishes.policy = IBNBD_POLICY_MIN_INFLIGHT;
  map.wishes.dead_after_ms = 5000;
  map.index = 7;
  return map;
}

void ExpectSame(const MapRequest& a, const MapRequest& b) {
  EXPECT_EQ(a.uri.ToString(), b.uri.ToString());
  EXPECT_EQ(a.kind, b.kind);
  EXPECT_EQ(a.access, b.access);
  EXPECT_EQ(a.fail_after_ms, b.fail_after_ms);
  EXPECT_EQ(a.queue_depth, b.queue_depth);
  EXPECT_EQ(a.wishes.ways.source, b.wishes.ways.source);
  EXPECT_EQ(a.wishes.ways.more, b.wishes.ways.more);
  EXPECT_EQ(a.wishes.policy, b.wishes.policy);
  EXPECT_EQ(a.wishes.dead_after_ms, b.wishes.dead_after_ms);
  EXPECT_EQ(a.index, b.index);
}

std::string ErrorOf(const std::string& line) {
  const auto request = ParseRequest(line);
  return request.ok() ? "none" : std::string(request.status().message());
}

TEST(ControlProtocol, AMapRequestIsReadAsItWasWritten) {
  ControlRequest request;
  request.command = Command::kMap;
  request.map = AMapping();
  request.timeout_ms = 1234;
  const auto read = ParseRequest(FormatRequest(request));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->command, Command::kMap);
  EXPECT_EQ(read->timeout_ms, 1234U);
  ExpectSame(read->map, request.map);
}

TEST(ControlProtocol, RequestsAboutADeviceAreReadAsTheyWereWritten) {
  for (const Command command :
       {Command::kUnmap, Command::kRemap, Command::kResize, Command::kShow}) {
    ControlRequest request;
    request.command = command;
    request.device = "/dev/ibnbd/h/with \"quotes\"\n";
    request.force = true;
    const auto read = ParseRequest(FormatRequest(request));
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(read->command, command);
    EXPECT_EQ(read->device, request.device);
    EXPECT_TRUE(read->force);
  }
}

TEST(ControlProtocol, WhetherADeviceThatIsThereWillDoIsReadAsItWasWritten) {
  for (const bool if_needed : {false, true}) {
    ControlRequest request;
    request.command = Command::kMap;
    request.map.uri = *ParseUri("tcp://h/v");
    request.if_needed = if_needed;
    const auto read = ParseRequest(FormatRequest(request));
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(read->if_needed, if_needed);
  }
}

TEST(ControlProtocol, ALossPolicyIsReadAsItWasWrittenAndNeverLeftOut) {
  for (const std::int64_t ms : {-1, 0, 1500}) {
    ControlRequest request;
    request.command = Command::kSet;
    request.device = "/dev/nbd0";
    request.fail_after_ms = ms;
    const auto read = ParseRequest(FormatRequest(request));
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(read->fail_after_ms, ms);
    EXPECT_FALSE(read->policy.has_value());
  }
  EXPECT_EQ(ErrorOf(R"({"command": "set", "device": "x"})"),
            "\"fail_after_ms\" is missing, and so are \"policy\" and \"dead_after_ms\"");
  EXPECT_EQ(ErrorOf(R"({"command": "set", "device": "x", "fail_after_ms": -2})"),
            "\"fail_after_ms\" is out of range");
}

TEST(ControlProtocol, RequestsAboutPathsAreReadAsTheyWereWritten) {
  ControlRequest request;
  request.command = Command::kAddPath;
  request.device = "hostA";
  request.path = "10.1.0.1@10.1.0.2:99";
  request.weight = 0;
  request.wait = false;
  auto read = ParseRequest(FormatRequest(request));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->command, Command::kAddPath);
  EXPECT_EQ(read->device, "hostA");
  EXPECT_EQ(read->path, request.path);
  EXPECT_EQ(read->weight, 0U);
  EXPECT_FALSE(read->wait);

  request = {};
  request.command = Command::kSet;
  request.device = "hostA";
  request.policy = IBNBD_POLICY_ROUND_ROBIN;
  request.dead_after_ms = 0;
  read = ParseRequest(FormatRequest(request));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->policy, static_cast<std::uint32_t>(IBNBD_POLICY_ROUND_ROBIN));
  EXPECT_EQ(read->dead_after_ms, 0U);
  EXPECT_FALSE(read->fail_after_ms.has_value());

  EXPECT_EQ(ErrorOf(R"({"command": "add-path", "device": "x"})"), "\"path\" is missing");
  EXPECT_EQ(ErrorOf(R"({"command": "weigh-path", "device": "x", "path": "0"})"),
            "\"weight\" is missing");
  EXPECT_EQ(ErrorOf(R"({"command": "weigh-path", "device": "x", "path": "0", "weight": 1001})"),
            "\"weight\" is out of range");
  EXPECT_EQ(ErrorOf(R"({"command": "set", "device": "x", "policy": "best"})"),
            "\"policy\" is \"best\", which is unknown");
  EXPECT_EQ(ErrorOf(R"({"command": "set", "device": "x", "dead_after_ms": 999})"),
            "\"dead_after_ms\" is out of range");
  EXPECT_TRUE(ParseRequest(R"({"command": "sessions"})").ok());
}

TEST(ControlProtocol, AnOutstandingIoIsShownInWords) {
  ibnbd_io_info io = {};
  io.op = IBNBD_OP_WRITE_ZEROES;
  io.offset = 4096;
  io.length = 512;
  io.queue = 2;
  io.waited_ns = 1'500'000'000;
  io.waits_for = IBNBD_WAITS_FOR_SERVER;
  EXPECT_EQ(ToJson(io).dump(),
            "{\"op\":\"write-zeroes\",\"offset\":4096,\"length\":512,\"queue\":2,"
            "\"waited_ms\":1500,\"waits_for\":\"server\"}");
}

TEST(ControlProtocol, ARequestIsOneLine) {
  ControlRequest request;
  request.command = Command::kShow;
  request.device = "a\nb";
  const std::string line = FormatRequest(request);
  EXPECT_EQ(line.find('\n'), line.size() - 1);
}

TEST(ControlProtocol, TheFirstFaultOfARequestIsNamed) {
  EXPECT_EQ(ErrorOf("garbage"), "request: not JSON");
  EXPECT_EQ(ErrorOf("[]"), "request: not a JSON object");
  EXPECT_EQ(ErrorOf("{}"), "\"command\" is missing");
  EXPECT_EQ(ErrorOf(R"({"command": 1})"), "\"command\" is no string");
  EXPECT_EQ(ErrorOf(R"({"command": "format"})"), "\"command\" is \"format\", which is unknown");
  EXPECT_EQ(ErrorOf(R"({"command": "map"})"), "\"uri\" is missing");
  EXPECT_EQ(ErrorOf(R"({"command": "show"})"), "\"device\" is missing");
  EXPECT_EQ(ErrorOf(R"({"command": "unmap", "device": "x", "force": 1})"),
            "\"force\" is neither true nor false");
  EXPECT_EQ(ErrorOf(R"({"command": "map", "uri": "tcp://h/v", "queue_depth": 0})"),
            "\"queue_depth\" is out of range");
  EXPECT_EQ(
      ErrorOf(R"({"command": "map", "uri": "tcp://h/v", "queue_depth": 18446744073709551615})"),
      "\"queue_depth\" is no integer");
  EXPECT_EQ(ErrorOf(R"({"command": "map", "uri": "tcp://h/v", "index": 1.5})"),
            "\"index\" is no integer");
  EXPECT_EQ(ErrorOf(R"({"command": "map", "uri": "tcp://h/v", "volume_id": "xyz"})"),
            "\"volume_id\" is no hexadecimal number");
  EXPECT_EQ(ErrorOf(R"({"command": "map", "uri": "tcp://h"})"),
            "tcp://h names no volume: say tcp://h/NAME");
}

TEST(ControlProtocol, ControlCharactersOfAStrangerDoNotReachTheTerminal) {
  const std::string error = ErrorOf("{\"command\": \"\\u001b[2J\"}");
  EXPECT_EQ(error.find('\x1b'), std::string::npos) << error;
}

TEST(ControlProtocol, AnErrorIsReadAsAnError) {
  const auto answer = ParseAnswer(ErrorAnswer(absl::NotFoundError("x: \"not\" mapped")));
  ASSERT_FALSE(answer.ok());
  EXPECT_EQ(answer.status().message(), "x: \"not\" mapped");
  EXPECT_FALSE(ParseAnswer("{\"error\": 7}").ok());
  EXPECT_FALSE(ParseAnswer("").ok());
  EXPECT_TRUE(ParseAnswer("{}").ok());
}

TEST(ControlProtocol, NamesThatAreNotUtf8AreShownNevertheless) {
  DeviceReport report;
  report.record.node = "/dev/ublkb0";
  report.record.request = AMapping();
  report.record.request.uri.export_name = "v\xff";
  report.problem = "\xfe";
  const std::string text = ToJson(report).dump(-1, ' ', false, Json::error_handler_t::replace);
  EXPECT_TRUE(ParseAnswer(text).ok()) << text;
}

TEST(StateFile, RecordsAreReadAsTheyWereWritten) {
  DeviceRecord record;
  record.node = "/dev/nbd7";
  record.request = AMapping();
  record.request.volume_id = 0xfedcba9876543210U;
  record.request.writer_epoch = 0xfedc;
  const auto read = ParseState(FormatState({0x8000000000000001U, {{record, record}, {}}}));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->client_id, 0x8000000000000001U);
  ASSERT_EQ(read->records.devices.size(), 2U);
  const DeviceRecord& first = read->records.devices.front();
  EXPECT_EQ(first.node, "/dev/nbd7");
  ExpectSame(first.request, record.request);
  EXPECT_EQ(first.request.volume_id, record.request.volume_id);
  EXPECT_EQ(first.request.writer_epoch, record.request.writer_epoch);
  EXPECT_TRUE(first.request.survives_us);
}

TEST(StateFile, WhatAVolumeWasIsReadAsItWasWritten) {
  DeviceRecord record;
  record.node = "/dev/ublkb1";
  record.request = AMapping();
  VolumePast past;
  past.info.size = 1u << 30;
  past.info.logical_block_size = 4096;
  past.info.physical_block_size = 8192;
  past.info.io_size_max = 131072;
  past.info.discard_max = 1u << 20;
  past.info.discard_granularity = 4096;
  past.info.discard_alignment = 512;
  past.info.write_zeroes_max = 1u << 21;
  past.info.flags = IBNBD_DEVICE_WRITE_CACHE | IBNBD_DEVICE_SECURE_ERASE;
  past.info.server_instance[0] = 0xfe;
  past.info.server_instance[15] = 1;
  past.lost_at_ms = 1234567;
  record.past = past;
  const auto read = ParseState(FormatState({7, {{record}, {}}}));
  ASSERT_TRUE(read.ok()) << read.status();
  ASSERT_TRUE(read->records.devices.front().past.has_value());
  const VolumePast& is = *read->records.devices.front().past;
  EXPECT_EQ(std::memcmp(&is.info, &past.info, sizeof(past.info)), 0);
  EXPECT_EQ(is.lost_at_ms, past.lost_at_ms);
}

TEST(StateFile, WhatAVolumeWasIsLeftOutIfItCannotBeRead) {
  DeviceRecord record;
  record.node = "/dev/ublkb1";
  record.request = AMapping();
  record.past = VolumePast{};
  const std::string good = FormatState({7, {{record}, {}}});
  ASSERT_TRUE(ParseState(good)->records.devices.front().past.has_value());
  const std::vector<std::pair<std::string, std::string>> edits = {
      {R"("size": 0)", R"("size": -1)"},
      {R"("io_size_max": 0)", R"("io_size_max": 4294967296)"},
      {R"("lost_at_ms": 0)", R"("lost_at_ms": "x")"},
      {R"("fua": false)", R"("fua": 1)"},
      {R"("server_instance": "00)", R"("server_instance": "0g)"},
      {R"("server_instance": "00)", R"("server_instance": ")"},
      {R"("server_instance")", R"("server")"}};
  for (const auto& [from, to] : edits) {
    std::string text = good;
    const std::size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    text.replace(at, from.size(), to);
    const auto read = ParseState(text);
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_FALSE(read->records.devices.front().past.has_value()) << to;
    EXPECT_TRUE(read->records.devices.front().unread.empty()) << to;
  }
}

TEST(StateFile, NoDevicesAreNoRecords) {
  const auto read = ParseState(FormatState({7, {}}));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_TRUE(read->records.devices.empty());
  EXPECT_TRUE(read->records.sessions.empty());
}

TEST(StateFile, SessionsAreReadAsTheyWereWritten) {
  SessionRecord record;
  record.key = KeyOf(*ParseUri("tcp://[::1]:4711"), "hostA");
  record.settings.paths = {{"server.example", 0}, {"10.1.0.1@10.1.0.2:99", 1000}};
  record.settings.policy = IBNBD_POLICY_MIN_LATENCY;
  record.settings.dead_after_ms = 2500;
  const auto read = ParseState(FormatState({7, {{}, {record}}}));
  ASSERT_TRUE(read.ok()) << read.status();
  ASSERT_EQ(read->records.sessions.size(), 1U);
  const SessionRecord& is = read->records.sessions.front();
  EXPECT_EQ(is.key, record.key);
  EXPECT_EQ(is.settings.policy, record.settings.policy);
  EXPECT_EQ(is.settings.dead_after_ms, 2500U);
  ASSERT_EQ(is.settings.paths.size(), 2U);
  EXPECT_EQ(is.settings.paths[0].path, "server.example");
  EXPECT_EQ(is.settings.paths[0].weight, 0U);
  EXPECT_EQ(is.settings.paths[1].weight, 1000U);
  EXPECT_EQ(is.settings.paths[1].id, PathSetting::kNoId);
}

TEST(StateFile, WhatADaemonWithoutSessionsWroteIsUnderstood) {
  const auto read = ParseState(R"({"version": 1, "client_id": "7", "devices": [
      {"device": "/dev/nbd0", "uri": "tcp://h/v", "index": 0, "paths": "10.1.0.2"}]})");
  ASSERT_TRUE(read.ok()) << read.status();
  ASSERT_EQ(read->records.devices.size(), 1U);
  EXPECT_EQ(read->records.devices.front().request.wishes.ways.more, "10.1.0.2");
  EXPECT_TRUE(read->records.sessions.empty());
}

TEST(StateFile, ASessionThatCannotBeReadCostsItsSettingsAndNotTheDevices) {
  for (const char* bad :
       {"7", R"({"server": "tcp://h"})", R"({"server": "tcp://h", "paths": []})",
        R"({"server": "tcp://h", "paths": [{"path": "a b"}]})",
        R"({"server": "nowhere", "paths": [{"path": "a"}]})",
        R"({"server": "tcp://h", "paths": [{"path": "a"}], "dead_after_ms": 999})",
        R"({"server": "tcp://h", "paths": [{"path": "a", "weight": 1001}]})"}) {
    const auto read = ParseState(std::string(R"({"version": 1, "client_id": "7",
            "devices": [{"device": "/dev/nbd0", "uri": "tcp://h/v", "index": 0}], "sessions": [)") +
                                 bad + R"(, {"server": "tcp://h", "paths": [{"path": "a"}]}]})");
    ASSERT_TRUE(read.ok()) << bad << ": " << read.status();
    EXPECT_EQ(read->records.devices.size(), 1U) << bad;
    ASSERT_EQ(read->records.sessions.size(), 1U) << bad;
    EXPECT_EQ(read->records.sessions[0].settings.paths[0].path, "a") << bad;
  }
}

struct UnreadableCase {
  const char* json;
  const char* node;
  DeviceKind kind;
  int index;
  const char* uri;
};

TEST(StateFile, ADeviceThatCannotBeReadIsKeptAsItIsAndCostsNoOther) {
  const UnreadableCase kCases[] = {
      {"7", "?", DeviceKind::kUblk, -1, ""},
      {R"({"device":"/dev/nbd7"})", "/dev/nbd7", DeviceKind::kNbd, 7, ""},
      {R"({"device":"/dev/nbd07","uri":"tcp://h/v","index":0,"as":"?"})", "?", DeviceKind::kUblk,
       -1, "tcp://h/v"},
      {R"({"device":"/etc/x","uri":7})", "?", DeviceKind::kUblk, -1, ""},
      {R"({"device":"/dev/ublkb-1"})", "?", DeviceKind::kUblk, -1, ""},
      {R"({"uri":"tcp://h/v","index":0})", "?", DeviceKind::kUblk, -1, "tcp://h/v"},
      {R"({"device":"/dev/ublkb12","uri":"tcp://h/v","as":"what will be","index":12,"new":{"x":1}})",
       "/dev/ublkb12", DeviceKind::kUblk, 12, "tcp://h/v"}};
  for (const UnreadableCase& bad : kCases) {
    const std::string text = std::string(R"({"version": 1, "client_id": "7", "devices": [)") +
                             bad.json + R"(, {"device": "/dev/nbd0", "uri": "tcp://h/w",
                                              "index": 0}]})";
    auto read = ParseState(text);
    ASSERT_TRUE(read.ok()) << bad.json << ": " << read.status();
    ASSERT_EQ(read->records.devices.size(), 2U) << bad.json;
    const DeviceRecord& record = read->records.devices[0];
    EXPECT_EQ(record.node, bad.node) << bad.json;
    EXPECT_EQ(record.request.kind, bad.kind) << bad.json;
    EXPECT_EQ(record.request.index, bad.index) << bad.json;
    EXPECT_EQ(record.request.uri.host.empty() ? "" : record.request.uri.ToString(), bad.uri);
    EXPECT_FALSE(record.unread_because.empty()) << bad.json;
    EXPECT_EQ(read->records.devices[1].node, "/dev/nbd0") << bad.json;
    EXPECT_TRUE(read->records.devices[1].unread.empty()) << bad.json;
    const Json written = Json::parse(FormatState(*read), nullptr, false);
    EXPECT_EQ(written["devices"][0].dump(), bad.json);
  }
}

TEST(ControlProtocol, ADeviceWhoseRecordCannotBeReadIsShownWithTheReason) {
  DeviceReport report;
  report.record.node = "?";
  report.record.unread = "7";
  report.record.unread_because = "is no object";
  report.problem = "is no object";
  EXPECT_EQ(ToJson(report).dump(),
            R"({"device":"?","uri":null,"state":"waiting","state_reason":"is no object"})");
  report.record.request.uri = *ParseUri("tcp://h/v");
  EXPECT_EQ(ToJson(report)["uri"], "tcp://h/v");
}

TEST(StateFile, WhatIsNotOursIsRefused) {
  for (const char* text :
       {"", R"({"version": 1, "devices": []})",
        R"({"version": 1, "client_id": "0", "devices": []})",
        R"({"version": 1, "client_id": "x", "devices": []})", "[]", "{}",
        R"({"version": 2, "devices": []})", R"({"version": 1, "client_id": "7"})",
        R"({"version": 1, "client_id": "7", "devices": {}})",
        R"({"version": 1, "client_id": "7", "devices": [], "sessions": 7})"}) {
    EXPECT_FALSE(ParseState(text).ok()) << text;
  }
}

}  // namespace
}  // namespace ibnbd::client

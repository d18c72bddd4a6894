// SPDX-License-Identifier: Apache-2.0
// Every option, every kind of malformed input, and that the way the bytes are cut makes no
// difference.
#include "nbd-bridge/nbd_handshake.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

namespace ibnbd::bridge {
namespace {

using proto::be16;
using proto::be32;
using proto::NbdOption;
using proto::NbdRep;
using State = NbdHandshake::State;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class Catalogue final : public NbdExports {
 public:
  explicit Catalogue(std::vector<std::string> names) : names_(std::move(names)) {}
  [[nodiscard]] std::size_t count() const override { return names_.size(); }
  [[nodiscard]] NbdExport Describe(std::size_t index) const override {
    NbdExport entry;
    entry.name = names_[index];
    entry.description = "about " + names_[index];
    entry.size = (std::uint64_t{5} << 40) + index;
    entry.flags = proto::kNbdHasFlags | proto::kNbdSendFlush;
    entry.block_size_min = 512;
    entry.block_size_preferred = 4096;
    entry.block_size_max = 32u << 20;
    return entry;
  }
  [[nodiscard]] std::optional<std::size_t> Find(std::string_view name) const override {
    for (std::size_t i = 0; i < names_.size(); ++i) {
      if (names_[i] == name) return i;
    }
    if (name.empty() && names_.size() == 1) return 0;
    return std::nullopt;
  }

 private:
  std::vector<std::string> names_;
};

template <typename T>
std::string Bytes(const T& message) {
  const auto bytes = proto::AsBytes(message);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::string ClientFlags(std::uint32_t flags = 3) {
  return Bytes(proto::NbdClientFlags{.flags = be32(flags)});
}

std::string OptionNumber(std::uint32_t number, const std::string& payload = "") {
  return Bytes(proto::NbdOptionHeader{.option = be32(number),
                                      .length = be32(static_cast<std::uint32_t>(payload.size()))}) +
         payload;
}

std::string Option(NbdOption option, const std::string& payload = "") {
  return OptionNumber(static_cast<std::uint32_t>(option), payload);
}

std::string GoPayload(const std::string& name, const std::vector<std::uint16_t>& infos = {}) {
  std::string payload = Bytes(be32(static_cast<std::uint32_t>(name.size()))) + name +
                        Bytes(be16(static_cast<std::uint16_t>(infos.size())));
  for (const std::uint16_t info : infos) payload += Bytes(be16(info));
  return payload;
}

std::string MetaPayload(const std::string& name) {
  return Bytes(be32(static_cast<std::uint32_t>(name.size()))) + name + Bytes(be32(0));
}

struct Answer {
  std::uint32_t option = 0;
  NbdRep type{};
  std::string payload;
};

class NbdHandshakeTest : public ::testing::Test {
 protected:
  explicit NbdHandshakeTest(std::vector<std::string> names = {"vol0", "vol1"})
      : catalogue_(std::move(names)), handshake_(catalogue_, &out_) {
    greeting_.swap(out_);
  }

  // Feeds all of it, `piece` bytes at a time, and keeps what was not consumed.
  void Feed(const std::string& bytes, std::size_t piece = 1u << 20) {
    std::string in = rest_ + bytes;
    std::size_t at = 0;
    while (at < in.size() && !handshake_.finished()) {
      const std::size_t size = std::min(piece, in.size() - at);
      at += handshake_.Feed(std::as_bytes(std::span<const char>(in.data() + at, size)), &out_);
    }
    rest_ = in.substr(at);
  }

  // Takes the next answer off what was produced.
  Answer TakeAnswer() {
    Answer answer;
    proto::NbdOptionReply reply;
    const auto bytes = std::as_bytes(std::span<const char>(out_.data(), out_.size()));
    if (!proto::CopyOut(bytes, &reply)) {
      ADD_FAILURE() << "no answer";
      return answer;
    }
    EXPECT_EQ(reply.magic.get(), proto::kNbdOptionReplyMagic);
    answer.option = reply.option.get();
    answer.type = static_cast<NbdRep>(reply.type.get());
    answer.payload = out_.substr(sizeof(reply), reply.length.get());
    EXPECT_EQ(answer.payload.size(), reply.length.get());
    out_.erase(0, sizeof(reply) + reply.length.get());
    return answer;
  }

  void ExpectAnswer(NbdOption option, NbdRep type) {
    const Answer answer = TakeAnswer();
    EXPECT_EQ(answer.option, static_cast<std::uint32_t>(option));
    EXPECT_EQ(answer.type, type) << answer.payload;
  }

  Catalogue catalogue_;
  std::string greeting_, out_, rest_;
  NbdHandshake handshake_;
};

class OneExportTest : public NbdHandshakeTest {
 protected:
  OneExportTest() : NbdHandshakeTest({"only"}) {}
};

TEST_F(NbdHandshakeTest, GreetsAsFixedNewstyleWithoutZeroes) {
  EXPECT_EQ(greeting_, std::string("NBDMAGICIHAVEOPT\0\3", 18));
  EXPECT_EQ(handshake_.state(), State::kClientFlags);
}

TEST_F(NbdHandshakeTest, ClosesOnUnknownClientFlags) {
  Feed(ClientFlags(4 | 1));
  EXPECT_EQ(handshake_.state(), State::kClosed);
  EXPECT_STREQ(handshake_.reason(), "nbd_client_flags: unknown flag");
}

TEST_F(NbdHandshakeTest, ClosesOnAClientThatIsNotFixedNewstyle) {
  Feed(ClientFlags(2));
  EXPECT_EQ(handshake_.state(), State::kClosed);
}

TEST_F(NbdHandshakeTest, ClosesOnAWrongOptionMagic) {
  Feed(ClientFlags() + std::string(16, 'x'));
  EXPECT_STREQ(handshake_.reason(), "nbd_option: bad magic");
  EXPECT_EQ(out_, "");
}

TEST_F(NbdHandshakeTest, GoDescribesTheExportAndEntersTransmission) {
  Feed(ClientFlags() + Option(NbdOption::kGo, GoPayload("vol1")) + "request");
  Answer info = TakeAnswer();
  ASSERT_EQ(info.type, NbdRep::kInfo);
  const std::uint64_t size = (std::uint64_t{5} << 40) + 1;
  EXPECT_EQ(info.payload, Bytes(proto::NbdInfoExport{.size = proto::be64(size),
                                                     .flags = be16(std::uint16_t{5})}));
  info = TakeAnswer();
  ASSERT_EQ(info.type, NbdRep::kInfo);
  EXPECT_EQ(info.payload, Bytes(proto::NbdInfoBlockSize{.type = be16(std::uint16_t{3}),
                                                        .minimum = be32(512u),
                                                        .preferred = be32(4096u),
                                                        .maximum = be32(32u << 20)}));
  ExpectAnswer(NbdOption::kGo, NbdRep::kAck);
  EXPECT_EQ(out_, "");
  ASSERT_EQ(handshake_.state(), State::kTransmission);
  EXPECT_EQ(handshake_.export_index(), 1u);
  EXPECT_EQ(handshake_.limits().size, size);
  EXPECT_EQ(handshake_.limits().flags, 5);
  EXPECT_EQ(handshake_.limits().block_size_min, 512u);
  EXPECT_FALSE(handshake_.structured_replies());
  EXPECT_EQ(rest_, "request");  // What follows is not the handshake's.
}

TEST_F(NbdHandshakeTest, GoAnswersTheInformationThatWasAskedFor) {
  Feed(ClientFlags() + Option(NbdOption::kGo, GoPayload("vol0", {1, 2, 3, 77})));
  ExpectAnswer(NbdOption::kGo, NbdRep::kInfo);  // Export.
  EXPECT_EQ(TakeAnswer().payload, std::string("\0\1vol0", 6));
  EXPECT_EQ(TakeAnswer().payload, std::string("\0\2about vol0", 12));
  ExpectAnswer(NbdOption::kGo, NbdRep::kInfo);  // Block size.
  ExpectAnswer(NbdOption::kGo, NbdRep::kAck);
}

TEST_F(NbdHandshakeTest, InfoDescribesAndGoesOn) {
  Feed(ClientFlags() + Option(NbdOption::kInfo, GoPayload("vol0")));
  ExpectAnswer(NbdOption::kInfo, NbdRep::kInfo);
  ExpectAnswer(NbdOption::kInfo, NbdRep::kInfo);
  ExpectAnswer(NbdOption::kInfo, NbdRep::kAck);
  EXPECT_EQ(handshake_.state(), State::kOption);
}

TEST_F(NbdHandshakeTest, StructuredRepliesBringDf) {
  Feed(ClientFlags() + Option(NbdOption::kStructuredReply) +
       Option(NbdOption::kGo, GoPayload("vol0")));
  ExpectAnswer(NbdOption::kStructuredReply, NbdRep::kAck);
  EXPECT_EQ(handshake_.state(), State::kTransmission);
  EXPECT_TRUE(handshake_.structured_replies());
  EXPECT_EQ(handshake_.limits().flags, 5 | proto::kNbdSendDf);
}

TEST_F(NbdHandshakeTest, UnknownExportIsAnErrorThatTheClientSurvives) {
  Feed(ClientFlags() + Option(NbdOption::kGo, GoPayload("nope")) +
       Option(NbdOption::kGo, GoPayload("vol0")));
  ExpectAnswer(NbdOption::kGo, NbdRep::kErrUnknown);
  EXPECT_EQ(handshake_.state(), State::kTransmission);
}

TEST_F(NbdHandshakeTest, SeveralExportsHaveNoDefault) {
  Feed(ClientFlags() + Option(NbdOption::kGo, GoPayload("")));
  ExpectAnswer(NbdOption::kGo, NbdRep::kErrUnknown);
}

TEST_F(OneExportTest, TheOnlyExportIsTheDefault) {
  Feed(ClientFlags() + Option(NbdOption::kGo, GoPayload("")));
  EXPECT_EQ(handshake_.state(), State::kTransmission);
}

TEST_F(NbdHandshakeTest, RefusesEveryMalformedGo) {
  const std::string go = GoPayload("vol0", {1, 2});
  for (std::size_t size = 0; size < go.size(); ++size) {
    SCOPED_TRACE(size);
    std::string out;
    NbdHandshake handshake(catalogue_, &out);
    out.clear();
    const std::string in = ClientFlags() + Option(NbdOption::kGo, go.substr(0, size));
    handshake.Feed(std::as_bytes(std::span<const char>(in.data(), in.size())), &out);
    out_ = out;
    ExpectAnswer(NbdOption::kGo, NbdRep::kErrInvalid);
    EXPECT_EQ(handshake.state(), State::kOption);
  }
  out_.clear();
  Feed(ClientFlags() + Option(NbdOption::kGo, go + "x"));
  ExpectAnswer(NbdOption::kGo, NbdRep::kErrInvalid);
  Feed(Option(NbdOption::kInfo, Bytes(be32(0xffffffffu)) + "vol0"));
  ExpectAnswer(NbdOption::kInfo, NbdRep::kErrInvalid);
  Feed(Option(NbdOption::kInfo, GoPayload(std::string(4097, 'n'))));
  ExpectAnswer(NbdOption::kInfo, NbdRep::kErrInvalid);
  Feed(Option(NbdOption::kInfo, GoPayload(std::string("vol0\0", 5))));
  ExpectAnswer(NbdOption::kInfo, NbdRep::kErrInvalid);
  EXPECT_EQ(out_, "");
}

TEST_F(NbdHandshakeTest, ExportNameEntersTransmissionWithoutZeroes) {
  Feed(ClientFlags() + Option(NbdOption::kExportName, "vol1"));
  EXPECT_EQ(out_.size(), 10u);
  EXPECT_EQ(handshake_.state(), State::kTransmission);
}

TEST_F(NbdHandshakeTest, ExportNamePadsWithZeroesWhereTheClientWantsThem) {
  Feed(ClientFlags(1) + Option(NbdOption::kExportName, "vol1"));
  ASSERT_EQ(out_.size(), 134u);
  EXPECT_EQ(out_.substr(10), std::string(124, '\0'));
}

TEST_F(NbdHandshakeTest, ExportNameThatIsUnknownOrMalformedCloses) {
  for (const std::string& name :
       {std::string("nope"), std::string(4097, 'n'), std::string("vol0\0", 5), std::string()}) {
    std::string out;
    NbdHandshake handshake(catalogue_, &out);
    out.clear();
    std::string in = ClientFlags() + Option(NbdOption::kExportName, name);
    handshake.Feed(std::as_bytes(std::span<const char>(in.data(), in.size())), &out);
    EXPECT_EQ(handshake.state(), State::kClosed);
    EXPECT_NE(handshake.reason(), nullptr);
    EXPECT_EQ(out, "");
  }
}

TEST_F(NbdHandshakeTest, ListNamesAllExports) {
  Feed(ClientFlags() + Option(NbdOption::kList));
  EXPECT_EQ(TakeAnswer().payload, std::string("\0\0\0\4vol0about vol0", 18));
  EXPECT_EQ(TakeAnswer().payload, std::string("\0\0\0\4vol1about vol1", 18));
  ExpectAnswer(NbdOption::kList, NbdRep::kAck);
}

TEST_F(NbdHandshakeTest, OptionsWithoutPayloadRefuseOne) {
  Feed(ClientFlags() + Option(NbdOption::kList, "x") + Option(NbdOption::kStructuredReply, "x"));
  ExpectAnswer(NbdOption::kList, NbdRep::kErrInvalid);
  ExpectAnswer(NbdOption::kStructuredReply, NbdRep::kErrInvalid);
  EXPECT_FALSE(handshake_.structured_replies());
}

TEST_F(NbdHandshakeTest, AbortIsAcknowledgedAndIsNobodysFault) {
  Feed(ClientFlags() + Option(NbdOption::kAbort));
  ExpectAnswer(NbdOption::kAbort, NbdRep::kAck);
  EXPECT_EQ(handshake_.state(), State::kClosed);
  EXPECT_EQ(handshake_.reason(), nullptr);
}

TEST_F(NbdHandshakeTest, OptionsThatWeDoNotHaveAreUnsupported) {
  for (const std::uint32_t option : {4u, 5u, 11u, 12u, 1000u, 0u, 0xffffffffu}) {
    SCOPED_TRACE(option);
    Feed((option == 4u ? ClientFlags() : "") + OptionNumber(option, "some payload"));
    const Answer answer = TakeAnswer();
    EXPECT_EQ(answer.option, option);
    EXPECT_EQ(answer.type, NbdRep::kErrUnsup);
  }
  EXPECT_EQ(handshake_.state(), State::kOption);
}

TEST_F(NbdHandshakeTest, MetaContextsAreAnsweredWithNone) {
  Feed(ClientFlags() + Option(NbdOption::kSetMetaContext, MetaPayload("vol0")));
  ExpectAnswer(NbdOption::kSetMetaContext, NbdRep::kErrInvalid);  // Structured replies first.
  Feed(Option(NbdOption::kStructuredReply) +
       Option(NbdOption::kSetMetaContext, MetaPayload("vol0")) +
       Option(NbdOption::kListMetaContext, MetaPayload("nope")) +
       Option(NbdOption::kListMetaContext, "") +
       Option(NbdOption::kListMetaContext, Bytes(be32(0xfffffffcu)) + "abcd") +
       Option(NbdOption::kListMetaContext, Bytes(be32(4u)) + "vol0"));
  ExpectAnswer(NbdOption::kStructuredReply, NbdRep::kAck);
  ExpectAnswer(NbdOption::kSetMetaContext, NbdRep::kAck);
  ExpectAnswer(NbdOption::kListMetaContext, NbdRep::kErrUnknown);
  ExpectAnswer(NbdOption::kListMetaContext, NbdRep::kErrInvalid);
  ExpectAnswer(NbdOption::kListMetaContext, NbdRep::kErrInvalid);
  ExpectAnswer(NbdOption::kListMetaContext, NbdRep::kErrInvalid);
}

TEST_F(NbdHandshakeTest, ALongOptionIsSkippedAndRefused) {
  Feed(ClientFlags() + Option(NbdOption::kGo, std::string(8193, 'x')) + Option(NbdOption::kList),
       1000);
  ExpectAnswer(NbdOption::kGo, NbdRep::kErrTooBig);
  EXPECT_EQ(TakeAnswer().type, NbdRep::kServer);  // Still in step.
}

TEST_F(NbdHandshakeTest, AnAbsurdlyLongOptionCloses) {
  const std::string header =
      Bytes(proto::NbdOptionHeader{.option = be32(7u), .length = be32(0xffffffffu)});
  Feed(ClientFlags() + header);
  EXPECT_EQ(handshake_.state(), State::kClosed);
  EXPECT_NE(handshake_.reason(), nullptr);
}

TEST_F(NbdHandshakeTest, ALongExportNameClosesBecauseItHasNoErrors) {
  Feed(ClientFlags() + Bytes(proto::NbdOptionHeader{.option = be32(1u), .length = be32(8193u)}));
  EXPECT_EQ(handshake_.state(), State::kClosed);
}

TEST_F(NbdHandshakeTest, OptionsWithoutEndClose) {
  Feed(ClientFlags());
  for (std::uint32_t i = 0; i < NbdHandshake::kOptionsMax; ++i) {
    ASSERT_EQ(handshake_.state(), State::kOption);
    Feed(OptionNumber(99));
  }
  Feed(OptionNumber(99));
  EXPECT_EQ(handshake_.state(), State::kClosed);
}

TEST_F(NbdHandshakeTest, StopsAfterEachOptionSoThatItsOutputIsBounded) {
  std::string in = ClientFlags();
  for (int i = 0; i < 100; ++i) in += Option(NbdOption::kList);
  const std::size_t consumed =
      handshake_.Feed(std::as_bytes(std::span<const char>(in.data(), in.size())), &out_);
  EXPECT_EQ(consumed, 4u + 16u);
}

TEST_F(NbdHandshakeTest, HowTheBytesAreCutMakesNoDifference) {
  const std::string in = ClientFlags() + Option(NbdOption::kStructuredReply) +
                         Option(NbdOption::kList) + OptionNumber(50, std::string(9000, 'y')) +
                         Option(NbdOption::kSetMetaContext, MetaPayload("vol0")) +
                         Option(NbdOption::kGo, GoPayload("vol1", {1, 2, 3})) + "tail";
  Feed(in);
  const std::string whole = out_;
  ASSERT_EQ(handshake_.state(), State::kTransmission);
  for (const std::size_t piece : {1u, 2u, 3u, 7u, 16u, 4000u}) {
    std::string out;
    NbdHandshake handshake(catalogue_, &out);
    out.clear();
    std::size_t at = 0;
    while (at < in.size() && !handshake.finished()) {
      const std::size_t size = std::min<std::size_t>(piece, in.size() - at);
      at += handshake.Feed(std::as_bytes(std::span<const char>(in.data() + at, size)), &out);
    }
    EXPECT_EQ(out, whole) << piece;
    EXPECT_EQ(in.substr(at), "tail");
  }
}

}  // namespace
}  // namespace ibnbd::bridge

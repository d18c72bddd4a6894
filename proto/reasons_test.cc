// SPDX-License-Identifier: Apache-2.0
// Every reason that a decoder can give is given, for what it says.  The list of reasons is not kept
// by hand: it is what the headers contain, every literal "some_message: what is wrong".  A reason
// without a case fails here, and so does a case whose reason no header contains.
#include "proto/reasons.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <regex>
#include <set>

namespace ibnbd::proto {
namespace {

std::vector<ReasonCase> AllCases() {
  std::vector<ReasonCase> cases;
  for (auto* table : {&RtrsControlReasons, &RtrsIoReasons, &RnbdReasons, &NbdReasons}) {
    for (ReasonCase& one : table()) cases.push_back(std::move(one));
  }
  return cases;
}

// How often each reason stands in the headers.
std::map<std::string, int> ReasonsOfTheHeaders() {
  std::map<std::string, int> reasons;
  const std::regex literal(R"re("([a-z_]+: [^"]+)")re");
  for (const char* header :
       {"rtrs_control.h", "rtrs_io.h", "rnbd.h", "rnbd_codec.h", "rnbd_list.h", "nbd_codec.h"}) {
    std::ifstream file(std::string(IBNBD_PROTO_DIR) + "/" + header);
    EXPECT_TRUE(file.is_open()) << header;
    for (std::string line; std::getline(file, line);) {
      for (std::sregex_iterator it(line.begin(), line.end(), literal), end; it != end; ++it) {
        ++reasons[(*it)[1]];
      }
    }
  }
  return reasons;
}

TEST(Reasons, EachCaseGetsItsReason) {
  for (const ReasonCase& one : AllCases()) {
    const char* reason = one.decode();
    EXPECT_STREQ(reason, one.reason.c_str());
  }
}

TEST(Reasons, EachReasonOfTheHeadersHasACase) {
  std::set<std::string> tested;
  for (const ReasonCase& one : AllCases()) tested.insert(one.reason);
  std::set<std::string> written;
  for (const auto& [reason, count] : ReasonsOfTheHeaders()) written.insert(reason);
  EXPECT_GT(written.size(), 80u);  // The scan found them.
  EXPECT_EQ(tested, written);
}

TEST(Reasons, EachReasonStandsInOnePlace) {
  for (const auto& [reason, count] : ReasonsOfTheHeaders()) EXPECT_EQ(count, 1) << reason;
}

}  // namespace
}  // namespace ibnbd::proto

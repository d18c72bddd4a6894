// SPDX-License-Identifier: Apache-2.0
#include "base/socket_address.h"

#include <arpa/inet.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/status_macros.h"

namespace ibnbd {
namespace {

absl::Status Refuse(absl::string_view text, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat("address \"", text, "\": ", why));
}

std::string Ipv6Text(const sockaddr_in6& in6) {
  char text[INET6_ADDRSTRLEN] = "?";
  (void)inet_ntop(AF_INET6, &in6.sin6_addr, text, sizeof text);
  std::string result = text;
  if (in6.sin6_scope_id != 0) {
    char name[IF_NAMESIZE];
    if (if_indextoname(in6.sin6_scope_id, name) != nullptr) {
      absl::StrAppend(&result, "%", name);
    } else {
      absl::StrAppend(&result, "%", in6.sin6_scope_id);
    }
  }
  return result;
}

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  const char lower = absl::ascii_tolower(static_cast<unsigned char>(c));
  return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}

absl::StatusOr<std::string> PercentDecode(absl::string_view text, absl::string_view whole) {
  std::string result;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\0') return Refuse(whole, "an export name cannot hold a NUL");
    if (text[i] != '%') {
      result.push_back(text[i]);
      continue;
    }
    const int high = i + 2 < text.size() ? HexDigit(text[i + 1]) : -1;
    const int low = i + 2 < text.size() ? HexDigit(text[i + 2]) : -1;
    if (high < 0 || low < 0) return Refuse(whole, "a '%' needs two hex digits after it");
    if (high == 0 && low == 0) return Refuse(whole, "an export name cannot hold %00");
    result.push_back(static_cast<char>(high * 16 + low));
    i += 2;
  }
  return result;
}

std::string PercentEncode(absl::string_view text) {
  static constexpr char kHex[] = "0123456789ABCDEF";
  std::string result;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (absl::ascii_isalnum(byte) || absl::StrContains("-._~/", absl::string_view(&c, 1))) {
      result.push_back(c);
    } else {
      result.push_back('%');
      result.push_back(kHex[byte >> 4]);
      result.push_back(kHex[byte & 15]);
    }
  }
  return result;
}

}  // namespace

std::string SocketAddress::ToString() const {
  if (family == 0) {
    const std::uint32_t host = sim_host & 0xffff, number = sim_host >> 16;
    if (number == 0) return absl::StrCat("sim", host, ":", port);
    return absl::StrCat("sim", host, ".", number, ":", port);
  }
  if (family == AF_INET && length >= sizeof(sockaddr_in)) {
    sockaddr_in in;
    std::memcpy(&in, bytes.data(), sizeof in);
    char text[INET_ADDRSTRLEN] = "?";
    (void)inet_ntop(AF_INET, &in.sin_addr, text, sizeof text);
    return absl::StrCat(text, ":", port);
  }
  if (family == AF_INET6 && length >= sizeof(sockaddr_in6)) {
    sockaddr_in6 in6;
    std::memcpy(&in6, bytes.data(), sizeof in6);
    return absl::StrCat("[", Ipv6Text(in6), "]:", port);
  }
  if (family == AF_UNIX) {
    sockaddr_un un{};
    std::memcpy(&un, bytes.data(), std::min<std::size_t>(length, sizeof un - 1));
    return absl::StrCat("unix:", un.sun_path);
  }
  return absl::StrCat("family", family, ":", port);
}

std::string Uri::ToString() const {
  const bool v6 = absl::StrContains(host, ":");
  std::string result = absl::StrCat(scheme, "://", v6 ? "[" : "", host, v6 ? "]" : "");
  if (port != kDefaultPort) absl::StrAppend(&result, ":", port);
  if (!export_name.empty()) absl::StrAppend(&result, "/", PercentEncode(export_name));
  return result;
}

absl::StatusOr<std::uint16_t> ParsePort(absl::string_view text) {
  // SimpleAtoi alone would take " +1".
  const bool digits = std::all_of(text.begin(), text.end(), [](char c) {
    return absl::ascii_isdigit(static_cast<unsigned char>(c));
  });
  if (!digits) {
    return absl::InvalidArgumentError(absl::StrCat("port \"", text, "\" is not a number"));
  }
  std::uint32_t number = 0;
  if (!absl::SimpleAtoi(text, &number) || number > 65535) {
    return absl::InvalidArgumentError(absl::StrCat("port \"", text, "\" is not within 0..65535"));
  }
  return static_cast<std::uint16_t>(number);
}

absl::StatusOr<HostPort> ParseHostPort(absl::string_view text, BareIpv6 bare) {
  absl::string_view host = text, port;
  const std::size_t colon = text.find(':');
  if (absl::StartsWith(text, "[")) {
    const std::size_t end = text.find(']');
    if (end == absl::string_view::npos) return absl::InvalidArgumentError("'[' without ']'");
    host = text.substr(1, end - 1);
    port = text.substr(end + 1);
  } else if (colon != text.rfind(':')) {
    if (bare == BareIpv6::kRefused) {
      return absl::InvalidArgumentError("an IPv6 address must stand in brackets");
    }
  } else if (colon != absl::string_view::npos) {
    host = text.substr(0, colon);
    port = text.substr(colon);
  }
  if (host.empty()) return absl::InvalidArgumentError("host missing");
  // A NUL would cut the name short when it is looked up; the others could forge an address in a
  // log.
  for (const char c : host) {
    if (!absl::ascii_isgraph(static_cast<unsigned char>(c)) || c == '[' || c == ']') {
      return absl::InvalidArgumentError("the host has a character that no host has");
    }
  }
  HostPort result{std::string(host), std::nullopt};
  if (port.empty()) return result;
  if (!absl::ConsumePrefix(&port, ":")) return absl::InvalidArgumentError("text after ']'");
  ASSIGN_OR_RETURN(result.port, ParsePort(port));
  return result;
}

absl::StatusOr<Uri> ParseUri(absl::string_view text, absl::string_view default_scheme) {
  Uri uri;
  absl::string_view rest = text;
  const std::size_t scheme_end = text.find("://");
  if (scheme_end != absl::string_view::npos) {
    uri.scheme = absl::AsciiStrToLower(text.substr(0, scheme_end));
    rest = text.substr(scheme_end + 3);
  } else if (!default_scheme.empty()) {
    uri.scheme = std::string(default_scheme);
  } else {
    return Refuse(text, "scheme missing: say tcp:// or rdma://");
  }
  if (uri.scheme != "tcp" && uri.scheme != "rdma" && uri.scheme != "sim") {
    return Refuse(text, absl::StrCat("unknown scheme \"", uri.scheme, "\": say tcp or rdma"));
  }
  if (absl::StrContains(rest, "?")) return Refuse(text, "a query ('?') means nothing here");
  if (absl::StrContains(rest, "#")) return Refuse(text, "a fragment ('#') means nothing here");
  const std::size_t slash = rest.find('/');
  const absl::string_view authority = rest.substr(0, slash);
  if (absl::StrContains(authority, "@")) return Refuse(text, "a user name means nothing here");
  absl::StatusOr<HostPort> server = ParseHostPort(authority);
  if (!server.ok()) return Refuse(text, server.status().message());
  uri.host = std::move(server->host);
  uri.port = server->port.value_or(kDefaultPort);
  if (slash != absl::string_view::npos) {
    ASSIGN_OR_RETURN(uri.export_name, PercentDecode(rest.substr(slash + 1), text));
  }
  return uri;
}

SocketAddress SocketAddressFrom(const void* sockaddr_bytes, std::uint32_t length) {
  SocketAddress address;
  address.length = std::min<std::uint32_t>(length, sizeof(sockaddr_storage));
  std::memcpy(address.bytes.data(), sockaddr_bytes, address.length);
  sockaddr_storage storage{};
  std::memcpy(&storage, address.bytes.data(), address.length);
  address.family = storage.ss_family;
  if (storage.ss_family == AF_INET) {
    address.port = ntohs(reinterpret_cast<const sockaddr_in&>(storage).sin_port);
  } else if (storage.ss_family == AF_INET6) {
    address.port = ntohs(reinterpret_cast<const sockaddr_in6&>(storage).sin6_port);
  }
  return address;
}

absl::StatusOr<SocketAddress> ResolveAddress(absl::string_view host, std::uint16_t port,
                                             Names names) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV | (names == Names::kRefused ? AI_NUMERICHOST : 0);
  addrinfo* list = nullptr;
  const std::string name(host);
  const int error = getaddrinfo(name.c_str(), std::to_string(port).c_str(), &hints, &list);
  if (error == EAI_SYSTEM) return ErrnoStatus(errno, absl::StrCat("resolve ", host));
  if (error != 0) {
    return absl::NotFoundError(absl::StrCat("resolve ", host, ": ", gai_strerror(error)));
  }
  SocketAddress address;
  bool found = false;
  for (const addrinfo* entry = list; entry != nullptr && !found; entry = entry->ai_next) {
    if (entry->ai_family != AF_INET && entry->ai_family != AF_INET6) continue;
    if (entry->ai_addrlen > address.bytes.size()) continue;
    address.family = static_cast<std::uint16_t>(entry->ai_family);
    address.port = port;
    address.length = entry->ai_addrlen;
    std::memcpy(address.bytes.data(), entry->ai_addr, entry->ai_addrlen);
    found = true;
  }
  freeaddrinfo(list);
  if (!found) return absl::NotFoundError(absl::StrCat("resolve ", host, ": no usable address"));
  return address;
}

}  // namespace ibnbd

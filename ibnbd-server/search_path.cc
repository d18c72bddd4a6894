// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-server/search_path.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "base/status_macros.h"

namespace ibnbd {
namespace {

constexpr absl::string_view kToken = "%SESSNAME%";
constexpr int kRacesMax =
    16;  // openat2() gives EAGAIN when somebody renames directories meanwhile.

// A descriptor or a negative errno.  Nothing outside of `root` is reached, by no link and no "..".
int OpenBeneath(int root, const std::string& name, int flags) {
  open_how how{};
  how.flags = static_cast<unsigned>(flags);
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS;
  for (int i = 0; i < kRacesMax; ++i) {
    const long fd = syscall(SYS_openat2, root, name.c_str(), &how, sizeof how);
    if (fd >= 0) return static_cast<int>(fd);
    if (errno != EAGAIN && errno != EINTR) return -errno;
  }
  return -EAGAIN;
}

absl::string_view StripSlashes(absl::string_view text) {
  while (absl::ConsumePrefix(&text, "/")) {
  }
  while (absl::ConsumeSuffix(&text, "/")) {
  }
  return text;
}

// The name as it is looked up: absolute names are taken as relative to the search path, as the
// kernel's server does.
absl::StatusOr<std::string> CheckName(absl::string_view name) {
  const absl::string_view relative = StripSlashes(name);
  if (relative.empty()) return absl::InvalidArgumentError("the export name is empty");
  if (absl::StrContains(relative, "..") || absl::StrContains(relative, '\0')) {
    return absl::InvalidArgumentError("an export name cannot hold \"..\"");
  }
  return std::string(relative);
}

absl::Status LookupError(int error, absl::string_view what, absl::string_view name) {
  if (error == -EXDEV || error == -ELOOP) {
    return absl::PermissionDeniedError(
        absl::StrCat(what, " ", name, ": leads out of the search path"));
  }
  return ErrnoStatus(error, absl::StrCat(what, " ", name));
}

}  // namespace

absl::StatusOr<SearchPath> SearchPath::Parse(absl::string_view pattern) {
  const auto refuse = [pattern](absl::string_view why) {
    return absl::InvalidArgumentError(absl::StrCat("search path \"", pattern, "\": ", why));
  };
  if (!absl::StartsWith(pattern, "/")) return refuse("expected an absolute directory");
  SearchPath result;
  const std::size_t token = pattern.find(kToken);
  result.per_session_ = token != absl::string_view::npos;
  result.prefix_ = std::string(pattern.substr(0, token));
  if (!result.per_session_) return result;
  const absl::string_view rest = pattern.substr(token + kToken.size());
  if (result.prefix_.back() != '/' || (!rest.empty() && rest.front() != '/')) {
    return refuse("%SESSNAME% must be a whole directory name");
  }
  if (absl::StrContains(rest, kToken)) return refuse("%SESSNAME% can stand there once");
  result.suffix_ = std::string(StripSlashes(rest));
  return result;
}

absl::StatusOr<UniqueFd> SearchPath::OpenRoot(absl::string_view session_name) const {
  UniqueFd root(open(prefix_.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!root.valid()) return ErrnoStatus(errno, absl::StrCat("search path ", prefix_));
  if (!per_session_) return root;
  if (session_name.empty() || session_name == "." || session_name == ".." ||
      absl::StrContains(session_name, '/') || absl::StrContains(session_name, '\0')) {
    return absl::InvalidArgumentError("the session's name cannot be a directory");
  }
  std::string directory(session_name);
  if (!suffix_.empty()) absl::StrAppend(&directory, "/", suffix_);
  UniqueFd result(OpenBeneath(root.get(), directory, O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!result.valid()) return LookupError(result.get(), "directory", session_name);
  return result;
}

absl::StatusOr<SearchPath::Identity> SearchPath::Find(absl::string_view session_name,
                                                      absl::string_view name) const {
  ASSIGN_OR_RETURN(const std::string relative, CheckName(name));
  ASSIGN_OR_RETURN(const UniqueFd root, OpenRoot(session_name));
  const UniqueFd fd(OpenBeneath(root.get(), relative, O_PATH | O_CLOEXEC));
  if (!fd.valid()) return LookupError(fd.get(), "export", name);
  struct stat st {};
  if (fstat(fd.get(), &st) != 0) return ErrnoStatus(errno, absl::StrCat("export ", name));
  if (S_ISBLK(st.st_mode)) return Identity{st.st_rdev, 0};
  return Identity{st.st_dev, st.st_ino};
}

absl::StatusOr<std::unique_ptr<Volume>> SearchPath::Open(absl::string_view session_name,
                                                         absl::string_view name,
                                                         const VolumeOptions& options) const {
  ASSIGN_OR_RETURN(const std::string relative, CheckName(name));
  ASSIGN_OR_RETURN(const UniqueFd root, OpenRoot(session_name));
  const auto opener = [&](int flags) { return OpenBeneath(root.get(), relative, flags); };
  return Volume::Open(relative, opener, options);
}

}  // namespace ibnbd

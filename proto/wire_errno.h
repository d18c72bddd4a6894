// SPDX-License-Identifier: Apache-2.0
// The only translator between errno (0 or negative, as everywhere in this project), the 9-bit error
// of the RTRS immediate (0 or the positive Linux number) and the 32-bit error of NBD.  A value that
// the table does not hold becomes EIO, in every direction: neither side can make the other see a
// number that means nothing there.  Called by the engine and by the bridge, on any thread.
#pragma once

#include <array>
#include <cerrno>
#include <cstdint>

namespace ibnbd::proto {

inline constexpr int kWireErrnoBits = 9;
inline constexpr std::uint32_t kWireErrnoMax = (1u << kWireErrnoBits) - 1;
inline constexpr std::uint32_t kWireEio = 5;

// The errors that the NBD protocol names.  Their numbers happen to be those of Linux.
inline constexpr std::uint32_t kNbdEperm = 1, kNbdEio = 5, kNbdEnomem = 12, kNbdEinval = 22,
                               kNbdEnospc = 28, kNbdEoverflow = 75, kNbdEnotsup = 95,
                               kNbdEshutdown = 108;

namespace internal {
struct ErrnoRow {
  int host;  // The errno of the machine we run on.
  std::uint32_t
      wire;           // The number Linux uses on nearly every architecture, x86 and ARM among them.
  std::uint32_t nbd;  // The nearest error that NBD names.
};
inline constexpr auto kErrnoTable = std::to_array<ErrnoRow>({
    {EPERM, 1, kNbdEperm},
    {ENOENT, 2, kNbdEio},
    {EINTR, 4, kNbdEio},
    {EIO, kWireEio, kNbdEio},
    {ENXIO, 6, kNbdEio},
    {E2BIG, 7, kNbdEinval},
    {EBADF, 9, kNbdEio},
    {EAGAIN, 11, kNbdEio},
    {ENOMEM, 12, kNbdEnomem},
    {EACCES, 13, kNbdEperm},
    {EFAULT, 14, kNbdEio},
    {EBUSY, 16, kNbdEio},
    {EEXIST, 17, kNbdEio},
    {ENODEV, 19, kNbdEio},
    {EINVAL, 22, kNbdEinval},
    {EMFILE, 24, kNbdEnomem},
    {EFBIG, 27, kNbdEnospc},
    {ENOSPC, 28, kNbdEnospc},
    {EROFS, 30, kNbdEperm},
    {EPIPE, 32, kNbdEio},
    {ERANGE, 34, kNbdEio},
    {ENAMETOOLONG, 36, kNbdEinval},
    {EBADE, 52, kNbdEio},    // A reservation conflict.
    {ENODATA, 61, kNbdEio},  // A medium error.
    {ETIME, 62, kNbdEio},
    {ENOLINK, 67, kNbdEio},
    {EPROTO, 71, kNbdEio},
    {EBADMSG, 74, kNbdEio},
    {EOVERFLOW, 75, kNbdEoverflow},
    {EILSEQ, 84, kNbdEio},  // A protection (T10-PI) error.
    {EMSGSIZE, 90, kNbdEinval},
    {EOPNOTSUPP, 95, kNbdEnotsup},
    {ECONNABORTED, 103, kNbdEio},
    {ECONNRESET, 104, kNbdEio},
    {ENOBUFS, 105, kNbdEnomem},
    {ENOTCONN, 107, kNbdEio},
    {ESHUTDOWN, 108, kNbdEshutdown},
    {ETIMEDOUT, 110, kNbdEio},
    {ECONNREFUSED, 111, kNbdEio},
    {EHOSTUNREACH, 113, kNbdEio},
    {ESTALE, 116, kNbdEio},
    {EUCLEAN, 117, kNbdEio},
    {EREMOTEIO, 121, kNbdEio},
    {EDQUOT, 122, kNbdEnospc},
    {ENOMEDIUM, 123, kNbdEio},
    {ECANCELED, 125, kNbdEio},
});

consteval bool ErrnoTableIsSound() {
  for (const ErrnoRow& row : kErrnoTable) {
    if (row.wire == 0 || row.wire > kWireErrnoMax || row.host <= 0) return false;
    int same = 0;
    for (const ErrnoRow& other : kErrnoTable) {
      same += other.wire == row.wire || other.host == row.host ? 1 : 0;
    }
    if (same != 1) return false;
  }
  return true;
}
static_assert(ErrnoTableIsSound(), "each error has one row, and its number fits in 9 bits");
}  // namespace internal

// `error` is 0 or a negative errno.  A positive value is a caller's mistake and becomes EIO too.
[[nodiscard]] constexpr std::uint32_t WireFromErrno(int error) {
  if (error == 0) return 0;
  for (const internal::ErrnoRow& row : internal::kErrnoTable) {
    if (error == -row.host) return row.wire;
  }
  return kWireEio;
}

// Never returns a positive number, and returns 0 for 0 only.
[[nodiscard]] constexpr int ErrnoFromWire(std::uint32_t wire) {
  if (wire == 0) return 0;
  for (const internal::ErrnoRow& row : internal::kErrnoTable) {
    if (row.wire == wire) return -row.host;
  }
  return -EIO;
}

[[nodiscard]] constexpr std::uint32_t NbdFromErrno(int error) {
  if (error == 0) return 0;
  for (const internal::ErrnoRow& row : internal::kErrnoTable) {
    if (error == -row.host) return row.nbd;
  }
  return kNbdEio;
}

[[nodiscard]] constexpr int ErrnoFromNbd(std::uint32_t nbd) {
  if (nbd == 0) return 0;
  for (const internal::ErrnoRow& row : internal::kErrnoTable) {
    if (row.wire == nbd && row.nbd == nbd) return -row.host;
  }
  return -EIO;
}

}  // namespace ibnbd::proto

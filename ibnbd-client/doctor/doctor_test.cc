// SPDX-License-Identifier: Apache-2.0
#include "ibnbd-client/doctor/doctor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <map>
#include <set>

#include "ibnbd-client/system/fake_tree_fixture.h"

namespace ibnbd::client {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

constexpr const char* kLinkLocal = "fe80:0000:0000:0000:b0af:57ff:fe06:b041";
constexpr const char* kIpv4 = "0000:0000:0000:0000:0000:ffff:0a4d:0001";  // 10.77.0.1

// A machine where nothing is wrong: Soft-RoCE on eth0 with 10.77.0.1, and root looks.
class FakeMachine final : public DoctorHost {
 public:
  FakeMachine() {
    fake.SetRoot(true);
    fake.Write("/proc/meminfo", "MemTotal: 1 kB\nHugePages_Total:      12\nHugePages_Free:   5\n");
    SetMemlock("8388608");
    fake.SetModules("kernel/x.ko:\n");
    for (const char* module : {"ib_uverbs", "rdma_ucm", "rdma_rxe", "nbd", "ublk_drv"}) {
      fake.MakeDirectory(std::string("/sys/module/") + module);
    }
    for (const char* node : {"/dev/ublk-control", "/dev/nbd0", "/dev/infiniband/rdma_cm"}) {
      fake.Write(node, "");
    }
    fake.AddNetdev("eth0", 4200);
    AddDevice("rxe0", "eth0");
    fake.SetGid("rxe0", 1, kIpv4, "eth0");
  }

  void AddDevice(const std::string& name, const std::string& soft_netdev) {
    const std::string uverbs = "uverbs" + std::to_string(mtus.size());
    fake.AddRdmaDevice(name, soft_netdev);
    fake.SetGid(name, 0, kLinkLocal, "eth0");
    fake.Write("/sys/class/infiniband_verbs/" + uverbs + "/ibdev", name + "\n");
    fake.Write("/dev/infiniband/" + uverbs, "");
    mtus[name] = 4096;
  }
  void SetMemlock(const std::string& limit) {
    fake.Write("/proc/self/limits",
               "Limit                     Soft Limit  Hard Limit  Units\n"
               "Max locked memory         " +
                   limit + "     " + limit + "     bytes\n");
  }

  const SystemTree& tree() override { return fake.tree(); }
  bool MayReadAndWrite(const std::string& path) override { return !forbidden.contains(path); }
  int TryIoUring() override { return io_uring_error; }
  absl::StatusOr<std::vector<VerbsPort>> TryDevice(const std::string& device) override {
    if (!device_status.ok()) return device_status;
    return std::vector<VerbsPort>{{1, mtus[device]}};
  }
  absl::StatusOr<bool> CannotConnect(const std::string& device) override {
    return device == device_that_cannot_connect;
  }
  absl::StatusOr<std::string> Resolve(const Uri& uri) override {
    if (!resolve_status.ok()) return resolve_status;
    return uri.host;
  }
  absl::StatusOr<Route> RouteTo(const std::string&) override { return Route{source, netdev}; }
  absl::StatusOr<std::string> TrySession(const Uri&, std::uint32_t) override {
    ++sessions;
    if (!session_status.ok()) return session_status;
    return std::string("answers");
  }

  Findings Look(const std::string& uri = "") {
    std::optional<Uri> parsed;
    if (!uri.empty()) parsed = *ParseUri(uri);
    return Examine(*this, parsed, 1000);
  }
  // The finding of that name, which there must be one of.
  Finding Look(const std::string& check, const std::string& uri, const std::string& subject = "") {
    std::vector<Finding> found;
    for (const Finding& finding : Look(uri)) {
      if (finding.check == check && (subject.empty() || finding.subject == subject)) {
        found.push_back(finding);
      }
    }
    EXPECT_EQ(found.size(), 1u) << check;
    return found.empty() ? Finding() : found.front();
  }

  FakeTree fake;
  std::set<std::string> forbidden;
  std::map<std::string, std::uint32_t> mtus;
  absl::Status device_status, resolve_status, session_status;
  std::string source = "10.77.0.1", netdev = "eth0", device_that_cannot_connect;
  int io_uring_error = 0, sessions = 0;
};

void ExpectProblem(const Finding& finding, const std::string& text, const std::string& fix) {
  EXPECT_STREQ(VerdictText(finding.verdict), "problem") << finding.text;
  EXPECT_THAT(finding.text, HasSubstr(text));
  EXPECT_THAT(finding.fix, HasSubstr(fix));
}
void ExpectWarning(const Finding& finding, const std::string& text, const std::string& fix) {
  EXPECT_STREQ(VerdictText(finding.verdict), "warning") << finding.text;
  EXPECT_THAT(finding.text, HasSubstr(text));
  EXPECT_THAT(finding.fix, HasSubstr(fix));
}

TEST(Doctor, FindsNothingOnAMachineThatIsWell) {
  FakeMachine machine;
  for (const char* uri : {"", "tcp://10.0.0.2", "rdma://10.77.0.1"}) {
    for (const Finding& finding : machine.Look(uri)) {
      EXPECT_THAT(finding.verdict, testing::AnyOf(Verdict::kOk, Verdict::kNotNeeded))
          << finding.check;
      EXPECT_THAT(finding.fix, IsEmpty()) << finding.check;
      EXPECT_FALSE(finding.text.empty()) << finding.check;
    }
  }
  EXPECT_EQ(machine.sessions, 2);
}

TEST(Doctor, AProblemAlwaysComesWithAFix) {
  FakeMachine machine;
  machine.fake.Remove("/sys/module");
  machine.fake.Remove("/dev");
  machine.fake.SetRoot(false);
  machine.SetMemlock("65536");
  machine.fake.Remove("/sys/class/infiniband/rxe0/ports/1/gids/1");
  machine.io_uring_error = -EPERM;
  machine.device_status = absl::UnavailableError("cannot be opened");
  machine.session_status = absl::UnavailableError("no answer");
  const Findings findings = machine.Look("rdma://10.77.0.1");
  EXPECT_GE(CountOf(findings, Verdict::kProblem), 8u);
  for (const Finding& finding : findings) {
    const bool bad = finding.verdict == Verdict::kProblem || finding.verdict == Verdict::kWarning;
    EXPECT_EQ(bad, !finding.fix.empty()) << finding.check << ": " << finding.text;
    EXPECT_THAT(finding.text + finding.fix, testing::Not(HasSubstr("\n")));
  }
}

TEST(Doctor, SurvivesAMachineThatSaysNothing) {
  FakeMachine machine;
  for (const char* directory : {"/sys", "/proc", "/dev", "/lib"}) machine.fake.Remove(directory);
  for (const char* uri : {"", "tcp://10.0.0.2", "rdma://10.77.0.1"}) {
    EXPECT_FALSE(machine.Look(uri).empty());
  }
}

TEST(Doctor, SurvivesAMachineThatTalksNonsense) {
  FakeMachine machine;
  const std::string junk("\0\xff: : 18446744073709551616\n\n99999999999 \x1b[2J", 44);
  for (const char* path :
       {"/proc/self/status", "/proc/self/limits", "/proc/meminfo", "/proc/sys/kernel/osrelease",
        "/sys/class/infiniband/rxe0/parent", "/sys/class/infiniband/rxe0/ports/1/state",
        "/sys/class/infiniband/rxe0/ports/1/gids/1",
        "/sys/class/infiniband/rxe0/ports/1/link_layer",
        "/sys/class/infiniband/rxe0/ports/1/gid_attrs/types/0", "/sys/class/net/eth0/mtu",
        "/sys/class/net/eth0/flags", "/sys/class/infiniband_verbs/uverbs0/ibdev"}) {
    machine.fake.Write(path, junk);
  }
  machine.fake.Write("/sys/class/infiniband/rxe0/ports/77777777777777/state", "4: ACTIVE\n");
  EXPECT_GE(CountOf(machine.Look("rdma://10.77.0.1"), Verdict::kProblem), 2u);
}

TEST(CheckIoUring, SaysWhoForbidsIt) {
  FakeMachine machine;
  machine.io_uring_error = -EPERM;
  machine.fake.Write("/proc/sys/kernel/io_uring_disabled", "2\n");
  ExpectProblem(machine.Look("io_uring", ""), "on this machine", "io_uring_disabled=0");
  machine.fake.Write("/proc/sys/kernel/io_uring_disabled", "1\n");
  machine.fake.Write("/proc/sys/kernel/io_uring_group", "1000\n");
  ExpectProblem(machine.Look("io_uring", ""), "ordinary users outside of group 1000", "sysctl");
  machine.fake.Write("/proc/sys/kernel/io_uring_disabled", "0\n");
  machine.fake.Write("/proc/self/status", "Name:\tx\nSeccomp:\t2\nSeccomp_filters:\t1\n");
  ExpectProblem(machine.Look("io_uring", ""), "seccomp", "seccomp");
  machine.fake.SetRoot(true);
  ExpectProblem(machine.Look("io_uring", ""), "security policy", "");
  machine.io_uring_error = -ENOSYS;
  ExpectProblem(machine.Look("io_uring", ""), "this kernel has none", "");
  machine.io_uring_error = -ENOMEM;
  ExpectProblem(machine.Look("io_uring", ""), "no memory", "ulimit -l");
}

TEST(CheckBlockDriver, TellsNotLoadedFromNotThere) {
  FakeMachine machine;
  machine.fake.Remove("/dev/nbd0");
  ExpectWarning(machine.Look("nbd", ""), "there is no /dev/nbd0", "udevadm");
  machine.fake.Remove("/sys/module/nbd");
  machine.fake.Remove("/sys/module/ublk_drv");
  machine.fake.SetModules("kernel/drivers/block/nbd.ko:\n");
  ExpectWarning(machine.Look("nbd", ""), "not loaded", "modprobe nbd");
  ExpectWarning(machine.Look("ublk", ""), "no module ublk_drv", "apt-get");
}

TEST(CheckUblkKernel, WarnsOfTheKernelsThatAKilledServerCanCrash) {
  FakeMachine machine;
  const auto warnings = [&machine](const std::string& release) {
    machine.fake.Write("/proc/sys/kernel/osrelease", release + "\n");
    return CountOf(machine.Look(), Verdict::kWarning);
  };
  for (const char* bad : {"6.7.0", "6.12.95+deb12-amd64", "6.14-rc1"}) {
    EXPECT_EQ(warnings(bad), 1u) << bad;
    ExpectWarning(machine.Look("ublk kernel", ""), "under load", "--as nbd");
  }
  for (const char* good : {"6.1.0-47-amd64", "6.6.99", "6.15.0", "7.0.1", "", "6", "six.12"}) {
    EXPECT_EQ(warnings(good), 0u) << good;
  }
  machine.fake.Remove("/sys/module/ublk_drv");
  const std::size_t not_loaded = warnings("6.1.0");
  EXPECT_EQ(warnings("6.12.95"), not_loaded);
}

TEST(CheckHugePages, IsInformation) {
  FakeMachine machine;
  EXPECT_EQ(machine.Look("hugepages", "").text, "12 reserved, 5 free");
  machine.fake.Remove("/proc/meminfo");
  EXPECT_EQ(machine.Look("hugepages", "").verdict, Verdict::kNotNeeded);
}

TEST(CheckRdma, IsNotNeededForTcp) {
  FakeMachine machine;
  machine.fake.Remove("/sys/class/infiniband");
  machine.fake.Remove("/dev/infiniband");
  EXPECT_EQ(machine.Look("rdma", "tcp://10.0.0.2").verdict, Verdict::kNotNeeded);
  EXPECT_EQ(CountOf(machine.Look("tcp://10.0.0.2"), Verdict::kProblem), 0u);
}

TEST(CheckRdma, NoDeviceIsAProblemOnlyForRdma) {
  FakeMachine machine;
  machine.fake.Remove("/sys/class/infiniband");
  ExpectWarning(machine.Look("rdma", ""), "no RDMA device", "softroce add");
  ExpectProblem(machine.Look("rdma", "rdma://10.77.0.1"), "no RDMA device", "softroce add");
  machine.fake.Remove("/sys/module/rdma_rxe");
  ExpectWarning(machine.Look("module", "", "rdma_rxe"), "not in this kernel", "apt-get");
  ExpectProblem(machine.Look("rdma", "rdma://10.77.0.1"), "no RDMA device", "apt-get");
  machine.fake.SetModules("kernel/rdma_rxe.ko:\n");
  EXPECT_EQ(machine.Look("module", "", "rdma_rxe").verdict, Verdict::kOk);
}

TEST(CheckRdma, HardwareNeedsNoSoftRoce) {
  FakeMachine machine;
  machine.fake.Remove("/sys/module/rdma_rxe");
  EXPECT_EQ(machine.Look("module", "rdma://10.77.0.1", "rdma_rxe").verdict, Verdict::kNotNeeded);
}

TEST(CheckRdma, ModulesThatAreNotLoadedAreNamed) {
  FakeMachine machine;
  machine.fake.Remove("/sys/module/ib_uverbs");
  machine.fake.Remove("/sys/module/rdma_ucm");
  machine.fake.SetModules("kernel/rdma_ucm.ko:\n");
  ExpectProblem(machine.Look("module", "", "ib_uverbs"), "not in this kernel", "apt-get");
  ExpectProblem(machine.Look("module", "", "rdma_ucm"), "not loaded", "modprobe rdma_ucm");
}

TEST(CheckRdma, FilesInDevMustBeThereAndOpen) {
  FakeMachine machine;
  machine.forbidden = {"/dev/infiniband/rdma_cm", "/dev/infiniband/uverbs0"};
  ExpectProblem(machine.Look("rdma_cm", ""), "may not open", "chmod 0666 /dev/infiniband/rdma_cm");
  ExpectProblem(machine.Look("uverbs", ""), "may not open", "chmod 0666 /dev/infiniband/uverbs0");
  machine.fake.Remove("/dev/infiniband");
  ExpectProblem(machine.Look("rdma_cm", ""), "there is no", "modprobe rdma_ucm");
  ExpectProblem(machine.Look("uverbs", ""), "there is no /dev/infiniband/uverbs0", "udevadm");
  machine.fake.Remove("/sys/class/infiniband_verbs");
  ExpectProblem(machine.Look("uverbs", ""), "no access to the device", "modprobe ib_uverbs");
}

TEST(CheckMemlock, IsMeasuredAgainstASession) {
  FakeMachine machine;
  machine.SetMemlock("65536");
  EXPECT_EQ(machine.Look("memlock", "").verdict, Verdict::kOk);  // CAP_IPC_LOCK.
  machine.fake.SetRoot(false);
  ExpectProblem(machine.Look("memlock", ""), "only 64.0 KiB", "ulimit -l");
  machine.SetMemlock("8388608");
  ExpectWarning(machine.Look("memlock", ""), "only 8.0 MiB", "ulimit -l");
  machine.SetMemlock("67108864");
  EXPECT_EQ(machine.Look("memlock", "").verdict, Verdict::kOk);
  machine.SetMemlock("unlimited");
  EXPECT_EQ(machine.Look("memlock", "").text, "unlimited");
}

TEST(CheckDevice, WithoutADriverOfLibibverbs) {
  FakeMachine machine;
  machine.device_status = absl::NotFoundError("no driver");
  ExpectProblem(machine.Look("driver", ""), "no driver", "ibverbs-providers");
  machine.device_status = absl::UnimplementedError("built without RDMA");
  ExpectProblem(machine.Look("driver", ""), "built without", "IBNBD_WITH_VERBS=ON");
  machine.device_status = absl::UnavailableError("cannot be opened");
  ExpectProblem(machine.Look("driver", ""), "cannot be opened", "ibv_devinfo -d rxe0");
}

TEST(CheckPort, DownIsAProblemUnlessAnotherPortCanBeUsed) {
  FakeMachine machine;
  machine.AddDevice("mlx5_0", "");
  machine.fake.Write("/sys/class/infiniband/mlx5_0/ports/1/state", "1: DOWN\n");
  ExpectWarning(machine.Look("port", "", "mlx5_0/1"), "DOWN, on eth0", "ip link set eth0 up");
  machine.fake.Write("/sys/class/infiniband/rxe0/ports/1/state", "1: DOWN\n");
  ExpectProblem(machine.Look("port", "", "rxe0/1"), "DOWN, on eth0", "ip link set eth0 up");
  ExpectProblem(machine.Look("port", "", "mlx5_0/1"), "DOWN", "ip link");
  machine.fake.Write("/sys/class/infiniband/mlx5_0/ports/1/link_layer", "InfiniBand\n");
  ExpectProblem(machine.Look("port", "", "mlx5_0/1"), "DOWN", "opensm");
}

TEST(CheckAddresses, LinkLocalAndRoceV1AreNotEnough) {
  FakeMachine machine;
  EXPECT_EQ(machine.Look("address", "").text, "10.77.0.1");
  machine.fake.Remove("/sys/class/infiniband/rxe0/ports/1/gids/1");
  ExpectProblem(machine.Look("address", ""), "no IP address",
                "ip addr add ADDRESS/PREFIX dev eth0");
  machine.fake.SetGid("rxe0", 0, kIpv4, "eth0", "IB/RoCE v1");
  ExpectProblem(machine.Look("address", ""), "only RoCE v1", "dev eth0");
  machine.fake.SetGid("rxe0", 2, "fd77:0000:0000:0000:0000:0000:0000:0001", "eth0");
  EXPECT_EQ(machine.Look("address", "").text, "fd77::1");
}

TEST(CheckConnecting, ADeviceThatCannotConnectAnyMoreIsMadeAnew) {
  FakeMachine machine;
  machine.device_that_cannot_connect = "rxe0";
  ExpectProblem(machine.Look("connecting", ""), "every connect times out",
                "softroce remove rxe0; ibnbd-client softroce add eth0");
}

TEST(CheckMtu, ComparesWithTheNetworkDevice) {
  FakeMachine machine;
  EXPECT_EQ(machine.Look("mtu", "").text, "4096; eth0 has 4200");
  machine.fake.AddNetdev("eth0", 1500);
  machine.mtus["rxe0"] = 1024;
  EXPECT_EQ(machine.Look("mtu", "").verdict, Verdict::kOk);
  EXPECT_THAT(machine.Look("mtu", "").text, HasSubstr("4096 would take 4200"));
  machine.fake.AddNetdev("eth0", 9000);
  ExpectWarning(machine.Look("mtu", ""), "would carry 4096",
                "softroce remove rxe0; ibnbd-client softroce add eth0");
  machine.fake.AddNetdev("eth0", 600);
  machine.mtus["rxe0"] = 256;
  ExpectWarning(machine.Look("mtu", ""), "slow", "ip link set eth0 mtu 1500");
}

TEST(CheckUri, ANameThatLeadsNowhereEndsIt) {
  FakeMachine machine;
  machine.resolve_status = absl::NotFoundError("no such host");
  ExpectProblem(machine.Look("name", "rdma://nowhere"), "no such host", "getent ahosts nowhere");
  EXPECT_EQ(machine.sessions, 0);
}

TEST(CheckUri, ARouteThatLeavesByNoRdmaDeviceIsNotTried) {
  FakeMachine machine;
  machine.source = "192.168.1.5";
  ExpectProblem(machine.Look("route", "rdma://192.168.1.9"),
                "from 192.168.1.5, which is no address of an RDMA device (those: 10.77.0.1)",
                "softroce add eth0");
  machine.netdev.clear();
  ExpectProblem(machine.Look("route", "rdma://192.168.1.9"), "no address of an RDMA device",
                "ip route get 192.168.1.9");
  machine.source = "127.0.0.1";
  ExpectProblem(machine.Look("route", "rdma://127.0.0.1"), "loopback", "10.77.0.1");
  EXPECT_EQ(machine.sessions, 0);
  machine.source = "10.77.0.1";
  EXPECT_EQ(machine.Look("route", "rdma://10.77.0.9").text, "from 10.77.0.1, by rxe0/1");
  machine.source = "fe80::b0af:57ff:fe06:b041%eth0";
  EXPECT_THAT(machine.Look("route", "rdma://[fe80::1%eth0]").text, HasSubstr("by rxe0/1"));
}

TEST(CheckUri, ASessionThatFailsSaysWhereToLook) {
  FakeMachine machine;
  machine.session_status = absl::UnavailableError("connect: Connection refused");
  ExpectProblem(machine.Look("session", "tcp://10.0.0.2:99"), "refused",
                "ibnbd-server --listen tcp://10.0.0.2:99");
  machine.session_status = absl::DeadlineExceededError("no answer");
  ExpectProblem(machine.Look("session", "tcp://10.0.0.2:99"), "no answer", "TCP port 99");
  ExpectProblem(machine.Look("session", "rdma://10.77.0.1"), "no answer", "UDP port 4791");
  machine.session_status = absl::UnavailableError("connection 0 lost: Connection reset by peer");
  ExpectProblem(machine.Look("session", "rdma://10.77.0.1"), "lost", "on the server, whose log");
  machine.session_status = absl::NotFoundError("vol: no such export");
  ExpectProblem(machine.Look("session", "tcp://10.0.0.2/vol"), "no such export",
                "ibnbd-client list tcp://10.0.0.2:1234");
}

}  // namespace
}  // namespace ibnbd::client

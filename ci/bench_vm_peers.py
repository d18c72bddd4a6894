# SPDX-License-Identifier: Apache-2.0
"""The peers of `ci/bench --vm`: how each is set up in the guest and taken down again.  ci/bench_vm.py measures them, one
at a time.

Always: every program that is waited for has a bound; whatever a peer set up is taken down in reverse order, also after
a failure.  A peer that cannot be set up is skipped with the reason (Skip).
"""
import contextlib
import os
import re
import signal
import subprocess
import tempfile
import time

ADDRESS = "10.77.0.1"  # What rxe_up of ci/vm/guest-lib.sh gives.
DISK = "/dev/nullb0"
DISK_MIB = 256
COUNTERS = "/sys/class/infiniband/rxe0/ports/1/hw_counters"
NVMET = "/sys/kernel/config/nvmet"
SYSCALLS = "/sys/kernel/tracing/events/raw_syscalls/sys_enter"


class Skip(Exception):
    """This peer cannot be set up here; the text says why."""


def run(command, timeout=30, **extra):
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, **extra)


def need(command, timeout=30):
    """Runs a command without which the peer cannot be set up; returns what it printed."""
    try:
        done = run(command, timeout)
    except FileNotFoundError:
        raise Skip(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise Skip(f"{' '.join(command)}: not done after {timeout} s") from None
    if done.returncode != 0:
        text = (done.stderr + done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise Skip(f"{' '.join(command)}: {text[-1]}")
    return done.stdout


def need_modules(*names):
    for name in names:
        need(["modprobe"] + name.split())


def write(path, text):
    try:
        with open(path, "wb", buffering=0) as file:  # Buffered, it would be tried again when it is closed.
            file.write(text.encode())
    except OSError as error:
        raise Skip(f"{path}: write '{text}': {error.strerror}") from None


def quietly(action, *arguments):
    """For taking down: what is gone already is no fault."""
    with contextlib.suppress(OSError, Skip, subprocess.TimeoutExpired):
        action(*arguments)


def wait_until(seconds, what, condition):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Skip(f"{what}: not after {seconds} s")
        time.sleep(0.05)


class Lab:
    """The guest: its disk, its Soft-RoCE, and the processes that serve the peer of the moment."""

    def __init__(self, options):
        self.options = options
        self.work = tempfile.mkdtemp(prefix="ibnbd-bench.", dir="/run")
        self.processes = []  # Their CPU time is the server's.
        need(["bash", "-c", f'. "$VM_LIB" && rxe_up {ADDRESS} && memory_disk 0 {DISK_MIB}'])
        # Every page is there: reading what was never written costs nothing.
        need(["dd", "if=/dev/urandom", f"of={DISK}", "bs=1M", f"count={DISK_MIB}", "oflag=direct"], 120)
        need(["mount", "-t", "tracefs", "tracefs", "/sys/kernel/tracing"])
        # The shell that fio starts has its pid as $PPID.
        with open(f"{self.work}/snapshot", "w") as script:
            script.write("f=/proc/stat\nfor p in \"$@\"; do f=\"$f /proc/$p/stat\"; done\n"
                         # ci/bench_vm_profile.py: perf is to look at the job, and at nothing else.
                         "tell() { echo \"$1\" >perf.control; timeout 60 head -n 1 perf.answer >/dev/null; }\n"
                         "if [ -e perf.on ]; then tell disable; rm perf.on\n"
                         "elif [ -p perf.control ]; then tell enable; touch perf.on; fi\n"
                         f"cd {COUNTERS} && grep -s '' $f * {SYSCALLS}/hist\ntrue\n")

    @contextlib.contextmanager
    def process(self, command, ready):
        """A process that serves; yields what `ready` made of its log."""
        log = tempfile.NamedTemporaryFile("w+", dir=self.work, prefix="log-", delete=False)
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        except FileNotFoundError:
            raise Skip(f"{command[0]} is not installed") from None
        self.processes.append(process)
        answers = []

        def answered():
            text = open(log.name).read()
            if process.poll() is not None:
                raise Skip(f"{' '.join(command)}: {(text.strip().splitlines() or ['ended at once'])[-1]}")
            answers.append(ready(text))
            return answers[-1]

        try:
            wait_until(20, f"{' '.join(command)}: ready", answered)
            yield answers[-1]
        finally:
            self.processes.remove(process)
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)

    def sides(self):
        """By pid: the daemon that holds our devices works for the client, and is counted apart from servers."""
        return {process.pid: "daemon" if "daemon" in process.args else "server" for process in self.processes}

    @contextlib.contextmanager
    def server(self, transport, *arguments):
        """ibnbd-server with the disk as "v"; yields the volume's URI."""
        for argument in arguments:
            if argument.partition("=")[0] not in need([f"{self.options.bin}/ibnbd-server", "--help"]):
                raise Skip(f"this ibnbd-server has no {argument}")
        listen = f"rdma://{ADDRESS}:0" if transport == "rxe" else "tcp://127.0.0.1:0"
        command = [f"{self.options.bin}/ibnbd-server", "--listen", listen, "--export", f"v={DISK}", *arguments]

        def listening(text):
            match = re.search(r"^listening on (\S+)", text, re.M)
            return match and match.group(1)

        with self.process(command, listening) as uri:
            yield f"{uri}/v"


def on_device(node):
    return [f"filename={node}", "ioengine=io_uring", "direct=1"]


@contextlib.contextmanager
def disk_itself(lab):
    yield on_device(DISK)


def engine(lab, uri):
    return [f"ioengine=external:{lab.options.fio_engine}", f"uri={uri}"]


@contextlib.contextmanager
def our_engine(lab, transport, *arguments):
    with lab.server(transport, *arguments) as uri:
        yield engine(lab, uri)


@contextlib.contextmanager
def mapped(lab, kind, uri):
    """Our client's daemon with one device."""
    client = f"{lab.options.bin}/ibnbd-client"
    need_modules("ublk_drv" if kind == "ublk" else "nbd")
    with lab.process([client, "daemon"], lambda log: run([client, "list"]).returncode == 0):
        node = need([client, "map", uri, "--as", kind]).split()[-1]
        try:
            wait_until(5, node, lambda: os.path.exists(node))
            yield on_device(node)
        finally:
            quietly(need, [client, "unmap", node])


@contextlib.contextmanager
def our_device(lab, kind, transport):
    with lab.server(transport) as uri, mapped(lab, kind, uri) as target:
        yield target


@contextlib.contextmanager
def rnbd_server(invalidate):
    """The kernel's server; `invalidate`: Y, its default, takes the client's key away after each IO, N lets it have it."""
    # Larger than the default, so that 128 KiB and its header travel in one piece, as they do for the others.
    need_modules(f"rtrs-server always_invalidate={invalidate} max_chunk_size=262144", "rnbd-server")
    try:
        yield
    finally:
        for module in ("rnbd-server", "rtrs-server"):
            quietly(wait_until, 10, module, lambda: run(["modprobe", "-r", module]).returncode == 0)


@contextlib.contextmanager
def rnbd_client(path, *options):
    need_modules("rnbd-client")
    try:
        write("/sys/class/rnbd-client/ctl/map_device", " ".join(["sessname=bench", *options, f"path=ip:{ADDRESS} device_path={path}"]))
        node = next(iter(name for name in os.listdir("/sys/block") if name.startswith("rnbd")), None)
        if node is None:
            raise Skip("rnbd-client: mapped, and no device appeared")
        wait_until(5, f"/dev/{node}", lambda: os.path.exists(f"/dev/{node}"))
        try:
            yield on_device(f"/dev/{node}")
        finally:
            quietly(write, f"/sys/block/{node}/rnbd/unmap_device", "normal")
            quietly(wait_until, 10, "unmap", lambda: not os.path.exists(f"/sys/block/{node}"))
    finally:
        for module in ("rnbd-client", "rtrs-client"):
            quietly(need, ["modprobe", "-r", module])


@contextlib.contextmanager
def kernel_rnbd(lab, invalidate):
    with rnbd_server(invalidate), rnbd_client(DISK) as target:
        yield target


@contextlib.contextmanager
def kernel_on_ours(lab, *arguments):
    with lab.server("rxe", *arguments) as uri:
        port = re.search(r":(\d+)/", uri).group(1)
        with rnbd_client("v", f"dest_port={port}") as target:
            yield target


@contextlib.contextmanager
def our_engine_on_kernel(lab, invalidate):
    with rnbd_server(invalidate):
        yield engine(lab, f"rdma://{ADDRESS}{DISK}")


@contextlib.contextmanager
def our_device_on_kernel(lab, invalidate):
    with rnbd_server(invalidate), mapped(lab, "ublk", f"rdma://{ADDRESS}{DISK}") as target:
        yield target


@contextlib.contextmanager
def nvme_target(transport, address, service):
    """The kernel's NVMe-oF target with the disk as its one namespace."""
    subsystem, port = f"{NVMET}/subsystems/bench", f"{NVMET}/ports/1"
    link = f"{port}/subsystems/bench"
    try:
        for directory in (subsystem, f"{subsystem}/namespaces/1", port):
            os.makedirs(directory)
        write(f"{subsystem}/attr_allow_any_host", "1")
        write(f"{subsystem}/namespaces/1/device_path", DISK)
        write(f"{subsystem}/namespaces/1/enable", "1")
        for name, value in (("trtype", transport), ("adrfam", "ipv4"), ("traddr", address), ("trsvcid", service)):
            write(f"{port}/addr_{name}", value)
        os.symlink(subsystem, link)
        yield
    finally:
        quietly(os.unlink, link)
        quietly(os.rmdir, port)
        quietly(write, f"{subsystem}/namespaces/1/enable", "0")
        quietly(os.rmdir, f"{subsystem}/namespaces/1")
        quietly(os.rmdir, subsystem)


def nvme_disks():
    return {name for name in os.listdir("/sys/block") if re.fullmatch(r"nvme\d+n\d+", name)}


@contextlib.contextmanager
def kernel_nvme(lab, transport):
    address, service = (ADDRESS, "4420") if transport == "rdma" else ("127.0.0.1", "4421")
    need_modules("nvmet", f"nvmet-{transport}", f"nvme-{transport}")
    with nvme_target(transport, address, service):
        before = nvme_disks()
        write("/dev/nvme-fabrics", f"transport={transport},traddr={address},trsvcid={service},nqn=bench")
        try:
            wait_until(10, "an NVMe disk", lambda: nvme_disks() - before)
            node = f"/dev/{(nvme_disks() - before).pop()}"
            wait_until(5, node, lambda: os.path.exists(node))
            yield on_device(node)
        finally:
            for controller in os.listdir("/sys/class/nvme"):
                quietly(write, f"/sys/class/nvme/{controller}/delete_controller", "1")
            quietly(wait_until, 10, "disconnect", lambda: not nvme_disks() - before)


@contextlib.contextmanager
def kernel_nbd(lab, transport):
    need_modules("nbd")
    socket = f"{lab.work}/nbdkit.sock"
    quietly(os.unlink, socket)
    place = ["-U", socket] if transport == "unix" else ["-i", "127.0.0.1", "-p", "10809"]
    target = ["-unix", socket] if transport == "unix" else ["127.0.0.1", "10809"]

    def answers(log):
        return run(["nbdinfo", "--size", f"nbd+unix:///?socket={socket}" if transport == "unix" else
                    "nbd://127.0.0.1:10809/"]).returncode == 0

    with lab.process(["nbdkit", "-f"] + place + ["file", DISK], answers):
        need(["nbd-client"] + target + ["/dev/nbd0", "-N", "", "-C", str(os.cpu_count())])
        try:
            yield on_device("/dev/nbd0")
        finally:
            quietly(need, ["nbd-client", "-d", "/dev/nbd0"])


# In the order of measuring: those that are compared with each other are neighbours, because the speed of a shared machine
# moves within minutes.
PEERS = {  # name: (what it is, how it is set up)
    "disk": ("fio on the disk itself, no network", disk_itself),
    "rnbd-rxe": ("kernel RNBD -> rxe -> kernel RNBD server", lambda lab: kernel_rnbd(lab, "Y")),
    "fio-rxe": ("fio, our engine -> rxe -> ibnbd-server", lambda lab: our_engine(lab, "rxe")),
    "nvme-rxe": ("kernel NVMe-oF -> rxe -> kernel target", lambda lab: kernel_nvme(lab, "rdma")),
    "ublk-rxe": ("our /dev/ublkbN -> rxe -> ibnbd-server", lambda lab: our_device(lab, "ublk", "rxe")),
    "nbd-rxe": ("our /dev/nbdN -> rxe -> ibnbd-server", lambda lab: our_device(lab, "nbd", "rxe")),
    "fio-tcp": ("fio, our engine -> TCP -> ibnbd-server", lambda lab: our_engine(lab, "tcp")),
    "nvme-tcp": ("kernel NVMe/TCP -> kernel target", lambda lab: kernel_nvme(lab, "tcp")),
    "ublk-tcp": ("our /dev/ublkbN -> TCP -> ibnbd-server", lambda lab: our_device(lab, "ublk", "tcp")),
    "nbd-tcp": ("our /dev/nbdN -> TCP -> ibnbd-server", lambda lab: our_device(lab, "nbd", "tcp")),
    "nbdkit-tcp": ("kernel NBD -> TCP -> nbdkit file (page cache)", lambda lab: kernel_nbd(lab, "tcp")),
    "nbdkit-unix": ("kernel NBD -> unix socket -> nbdkit file (page cache)", lambda lab: kernel_nbd(lab, "unix")),
    "rnbd-ours": ("kernel RNBD -> rxe -> ibnbd-server", kernel_on_ours),
    "rnbd-keys": ("kernel RNBD -> rxe -> ibnbd-server with a key per IO", lambda lab: kernel_on_ours(lab, "--invalidate=always")),
    "rnbd-never": ("kernel RNBD -> rxe -> kernel RNBD server, always_invalidate=N", lambda lab: kernel_rnbd(lab, "N")),
    "fio-rnbd": ("fio, our engine -> rxe -> kernel RNBD server", lambda lab: our_engine_on_kernel(lab, "Y")),
    "fio-rnbd-never": ("fio, our engine -> rxe -> kernel RNBD server, always_invalidate=N",
                       lambda lab: our_engine_on_kernel(lab, "N")),
    "fio-keys": ("fio, our engine -> rxe -> ibnbd-server with a key per IO",
                 lambda lab: our_engine(lab, "rxe", "--invalidate=always")),
    "ublk-rnbd": ("our /dev/ublkbN -> rxe -> kernel RNBD server", lambda lab: our_device_on_kernel(lab, "Y")),
}
STACKS = ["disk", "rnbd-rxe", "fio-rxe", "nvme-rxe", "ublk-rxe", "nbd-rxe", "fio-tcp", "nvme-tcp", "ublk-tcp", "nbd-tcp",
          "nbdkit-tcp", "nbdkit-unix"]
RNBD = ["rnbd-rxe", "rnbd-ours", "rnbd-keys", "rnbd-never", "fio-rnbd", "fio-rnbd-never", "fio-rxe", "fio-keys", "ublk-rnbd",
        "ublk-rxe"]

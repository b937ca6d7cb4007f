"""Memory, power, sleep, disks and notifications, by what systems of all kinds say of themselves."""

import importlib
import json
import os
import signal
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mlxroles import engine
from mlxroles.backend import memory as device_memory
from mlxroles.backend import mx
from mlxroles.edits import Edit
from mlxroles.engine import pressure
from mlxroles.engine.pressure import Relief
from mlxroles.engine.rows import Row
from mlxroles.machine import apple, chip, clock, disk, memory, notify, power
from mlxroles.machine.memory import Pressure, SystemMemory
from mlxroles.models.load import load
from mlxroles.studies.entropy import summaries

GIB = 1 << 30


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


# --- memory -----------------------------------------------------------------------------------

MEMINFO = """MemTotal:       16384000 kB
MemFree:          500000 kB
MemAvailable:    8192000 kB
SwapTotal:       2048000 kB
SwapFree:        1048000 kB
"""


def test_linux_says_what_is_available_and_swapped_out(tmp_path):
    files = {"proc/meminfo": MEMINFO, "proc/self/statm": "9000 250 100 5 0 123 0\n"}
    found = memory.of_linux(write(tmp_path, files))
    assert found == SystemMemory(
        total=16384000 * 1024,
        free=8192000 * 1024,
        swap_used=1000000 * 1024,
        process=250 * os.sysconf("SC_PAGE_SIZE"),
    )


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        (
            "0::/user.slice/job\n",
            {
                "user.slice/job/memory.max": "max\n",
                "user.slice/job/memory.current": "900\n",
                "user.slice/memory.max": "4294967296\n",
                "user.slice/memory.current": "3221225472\n",
                "user.slice/memory.stat": "anon 5\ninactive_file 1073741824\nfile 9\n",
            },
        ),
        (
            "5:cpu:/\n4:memory:/docker/0123abcd\n0::/\n",  # mounted at the base in a container
            {
                "memory/memory.limit_in_bytes": "4294967296\n",
                "memory/memory.usage_in_bytes": "3221225472\n",
                "memory/memory.stat": "inactive_file 1\ntotal_inactive_file 1073741824\n",
            },
        ),
    ],
    ids=["v2", "v1"],
)
def test_the_limit_of_a_control_group_is_the_memory_there_is(tmp_path, groups, files):
    system = {"proc/meminfo": MEMINFO, "proc/self/cgroup": groups}
    system |= {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    found = memory.of_linux(write(tmp_path, system))
    assert (found.total, found.free, found.process) == (4 * GIB, 2 * GIB, None)


def test_a_group_without_a_limit_changes_nothing(tmp_path):
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "4:memory:/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "5000\n",
    }
    assert memory.of_linux(write(tmp_path, files)).total == 16384000 * 1024


def test_a_system_that_says_nothing_is_no_error(tmp_path):
    assert memory.of_linux(tmp_path) is None
    assert memory.of_mac(lambda _: None, lambda *_: "") is None
    assert chip.of_linux(tmp_path).cores >= 1
    assert power.of_linux(tmp_path) == power.of_mac(lambda *_: "") == power.Power()


def test_this_machine_says_something():
    found = memory.system()
    assert 0 < found.free <= found.total == memory.total()
    assert 0 < found.process < found.total


def kernel(values: dict[str, bytes]):
    return values.get


STUDIO = {
    "hw.memsize": (256 * GIB).to_bytes(8, "little"),
    "kern.memorystatus_level": (75).to_bytes(4, "little"),
    "kern.memorystatus_vm_pressure_level": (1).to_bytes(4, "little"),
    "vm.swapusage": struct.pack("=3QI?3x", 4 * GIB, GIB, 3 * GIB, 16384, True),
    "machdep.cpu.brand_string": b"Apple M3 Ultra\0",
    "hw.model": b"Mac15,14\0",
    "hw.logicalcpu": (32).to_bytes(4, "little"),
    "hw.perflevel0.logicalcpu": (24).to_bytes(4, "little"),
    "kern.osproductversion": b"15.2\0",
}
VM_STAT = """Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                                5000.
Pages active:                            300000.
Pages inactive:                          290000.
Pages speculative:                         1000.
Pages throttled:                              0.
Pages wired down:                        150000.
Pages purgeable:                           2000.
"Translation faults":                 123456789.
Pages copy-on-write:                    1234567.
File-backed pages:                        92000.
Anonymous pages:                         400000.
Swapins:                                      0.
"""


def test_a_mac_says_its_memory_by_the_kernels_variables():
    found = memory.of_mac(kernel(STUDIO), lambda *_: pytest.fail("asked for nothing"))
    expected = SystemMemory(256 * GIB, 192 * GIB, 3 * GIB, found.process, "ok")
    assert found == expected
    warned = STUDIO | {"kern.memorystatus_vm_pressure_level": (2).to_bytes(4, "little")}
    assert memory.of_mac(kernel(warned)).level == "tight"


def test_a_mac_whose_kernel_does_not_say_what_is_free_is_asked_for_its_pages():
    silent = {"hw.memsize": STUDIO["hw.memsize"]}
    found = memory.of_mac(kernel(silent), lambda *_: VM_STAT)
    assert found.free == 16384 * (5000 + 1000 + 2000 + 92000)
    assert (found.swap_used, found.level) == (None, None)
    assert memory.vm_stat("something else") is None


def test_a_mac_says_what_it_is():
    found = chip.of_mac(kernel(STUDIO))
    expected = chip.Chip("Apple M3 Ultra", 32, "Mac15,14", 24, "macOS 15.2", (15, 2))
    assert found == expected


class Library:
    """What macOS's own library does, in Python."""

    def sysctlbyname(self, name, value, size, new, new_size):
        assert (new, new_size.value) == (None, 0)
        raw = STUDIO.get(name.decode())
        if raw is None or len(raw) > size._obj.value:
            return -1
        value[: len(raw)] = raw
        size._obj.value = len(raw)
        return 0

    def proc_pid_rusage(self, pid, flavor, buffer):
        assert (pid, flavor) == (42, 0)
        buffer[:80] = struct.pack("=16s8Q", b"", *range(1, 9))
        return 0


def test_the_kernel_of_a_mac_is_asked_by_name(monkeypatch):
    monkeypatch.setattr(apple, "_library", Library)
    assert apple.number(apple.sysctl("hw.memsize")) == 256 * GIB
    assert apple.text(apple.sysctl("machdep.cpu.brand_string")) == "Apple M3 Ultra"
    assert apple.sysctl("hw.nothing") is None
    assert apple.number(apple.sysctl("kern.osproductversion")) is None
    assert apple.footprint(42) == 8
    monkeypatch.setattr(apple, "_library", object)
    assert apple.footprint(42) is None


@pytest.mark.skipif(sys.platform == "darwin", reason="platform: there the kernel answers")
def test_only_a_mac_is_asked_like_a_mac():
    assert apple.sysctl("hw.memsize") is None
    assert apple.footprint(os.getpid()) is None


def test_programs_of_the_system_that_fail_or_are_missing_say_nothing():
    assert apple.ask("/bin/echo", "hello") == "hello\n"
    assert apple.ask("/nonexistent/pmset") == ""


# --- pressure ---------------------------------------------------------------------------------


class System:
    """A system whose free memory and clock a test sets."""

    def __init__(self, total: int = 16 * GIB) -> None:
        self.total, self.free, self.now, self.said = total, total // 2, 0.0, None

    def look(self):
        return SystemMemory(self.total, self.free, 0, 0, self.said)

    def pressure(self) -> Pressure:
        return Pressure(self.look, lambda: self.now)

    def later(self, free: float, said=None) -> None:
        self.now += 1.0
        self.free, self.said = int(free), said


def test_levels_are_entered_and_left_at_different_amounts():
    system = System()
    pressure = system.pressure()
    seen = []
    for percent in (50, 9.9, 12, 16, 9, 3.9, 5.9, 6.1, 14.9, 15.1):
        system.later(percent / 100 * system.total)
        seen.append(pressure.level())
    expected = "ok tight tight ok tight critical critical tight tight ok"
    assert seen == expected.split()


def test_the_system_is_asked_once_per_second():
    system = System()
    pressure = system.pressure()
    for _ in range(1000):
        system.now += 0.01
        pressure.level()
    assert 10 <= pressure.looks <= 12


def test_a_large_machine_with_some_gigabytes_left_is_well():
    system = System(256 * GIB)
    system.free = 5 * GIB
    assert system.pressure().level() == "ok"
    system.free = 3 * GIB
    assert system.pressure().level() == "tight"


def test_a_small_container_is_short_before_its_last_megabytes():
    system = System(GIB)
    system.free = 100 << 20
    assert system.pressure().level() == "critical"
    system.free = 200 << 20
    assert system.pressure().level() == "tight"


def test_what_the_system_calls_itself_counts():
    system = System()
    system.said = "critical"
    pressure = system.pressure()
    assert pressure.level() == "critical"
    system.later(system.total // 2, "ok")
    assert pressure.level() == "ok"


def test_a_system_that_says_nothing_is_never_short():
    assert Pressure(lambda: None).level() == "ok"


# --- smaller batches --------------------------------------------------------------------------


def relieved(*levels: float) -> tuple[System, Relief]:
    """A relief whose system is looked at anew each time, with these shares of memory left."""
    system, shares = System(), iter(levels)

    def look():
        return SystemMemory(system.total, int(next(shares) * system.total), 0, 0)

    def clock() -> float:
        system.now += 1.0
        return system.now

    return system, Relief(Pressure(look, clock))


def test_batches_are_halved_down_to_one_row_and_grow_again():
    _, relief = relieved(0.5, *[0.01] * 6, 0.05, *[0.5] * 6)
    said = []
    relief.begin(said.append)
    sizes = [relief.most(16) for _ in range(14)]
    assert sizes == [16, 8, 4, 2, 1, 1, 1, 1, 2, 4, 8, 16, 16, 16]
    [text] = said
    assert "hardly any memory left (172 MB of 17.2 GB)" in text


def test_parts_of_a_batch_hold_every_row_once():
    _, relief = relieved(0.01, 0.01, 0.01, 0.5, 0.5, 0.5)
    parts = list(relief.cut(range(11)))
    assert [len(part) for part in parts] == [6, 3, 2]
    assert [row for part in parts for row in part] == list(range(11))


def test_what_the_poorest_of_several_processes_can_do_is_done_by_all():
    class Ranks:
        def least(self, amount):
            return min(amount, 2)

    _, relief = relieved(*[0.5] * 9)
    assert [len(part) for part in relief.cut(range(5), Ranks())] == [2, 2, 1]


def test_a_run_says_it_once_and_the_next_one_again():
    _, relief = relieved(*[0.01] * 9)
    first, second = [], []
    relief.begin(first.append)
    list(relief.cut(range(4)))
    relief.begin(second.append)
    list(relief.cut(range(4)))
    assert (len(first), len(second)) == (1, 1)


@pytest.fixture(scope="module")
def tiny():
    return load("tiny/base", scan=False)


def test_rows_of_smaller_batches_have_the_same_numbers(tiny, monkeypatch):
    prompt = [[(31 * i + 7 * n) % 1000 for i in range(24)] for n in range(2)]
    layers = range(tiny.n_layers)
    own = engine.clean(tiny.network, prompt, read=[23], site="resid_post", layers=layers)
    noise = mx.random.normal((24, 128), key=mx.random.key(0))
    rows = [Row((Edit("resid_post", i, noise),), n) for i in layers for n in range(2)]
    whole = engine.run(tiny.network, own, rows)
    sweep = importlib.import_module("mlxroles.engine.sweep")
    ran, run_batch = [], sweep.run_batch

    def counted(network, own, rows):
        ran.append(len(rows))
        return run_batch(network, own, rows)

    monkeypatch.setattr(sweep, "run_batch", counted)
    monkeypatch.setattr(sweep, "relief", relieved(*[0.01] * 12)[1])
    small = engine.run(tiny.network, own, rows)
    assert ran == [6, 3, 2, 1]
    for a, b in zip(whole, small, strict=True):
        np.testing.assert_allclose(a.logits, b.logits, atol=2e-5, rtol=1e-6)


def test_entropies_of_smaller_batches_are_the_same(tiny, monkeypatch):
    rows = [[(17 * i + n) % 1000 for i in range(20)] for n in range(5)]
    whole = summaries(tiny, rows)
    relief = relieved(*[0.01] * 9)[1]
    monkeypatch.setattr("mlxroles.studies.entropy.relief", relief)
    small = summaries(tiny, rows)
    assert relief.halvings == 2  # 3 rows, then 2
    assert set(whole) == set(small)
    for name, array in whole.items():
        np.testing.assert_allclose(small[name], array, atol=2e-5)  # in nats


@pytest.mark.parametrize("limit", [None, 16 * GIB])
def test_mlx_holds_on_to_a_share_of_what_it_let_go(limit, monkeypatch):
    asked = []
    monkeypatch.setattr(mx, "set_cache_limit", asked.append)
    limited = device_memory()._replace(limit=limit)
    monkeypatch.setattr(pressure, "memory", lambda: limited)
    pressure.bound_cache()
    assert asked == ([] if limit is None else [2 * GIB])


# --- power ------------------------------------------------------------------------------------

ON_BATTERY = """Now drawing from 'Battery Power'
 -InternalBattery-0 (id=21954659)\t54%; discharging; 3:12 remaining present: true
"""
CHARGING = """Now drawing from 'AC Power'
 -InternalBattery-0 (id=21954659)\t100%; charged; 0:00 remaining present: true
"""
NO_BATTERY = "Now drawing from 'AC Power'\n"
PMSET = """System-wide power settings:
Currently in use:
 standby              1
 Sleep On Power Button 1
 hibernatefile        /var/vm/sleepimage
 powernap             1
 networkoversleep     0
 disksleep            10
 sleep                1 (sleep prevented by powerd, coreaudiod)
 hibernatemode        3
 ttyskeepawake        1
 displaysleep         10
 tcpkeepalive         1
 lowpowermode         {mode}
 womp                 0
"""
LID = """+-o IOPMrootDomain  <class IOPMrootDomain, id 0x100000120, registered, matched, active>
    {{
      "AppleClamshellState" = {closed}
      "AppleClamshellCausesSleep" = Yes
    }}
"""


def mac(battery: str, mode: int = 0, closed: str | None = "No"):
    def ask(*command):
        if command[-1] == "batt":
            return battery
        if "pmset" in command[0]:
            return PMSET.format(mode=mode)
        return LID.format(closed=closed) if closed else ""

    return power.of_mac(ask)


def test_power_of_macs():
    assert mac(ON_BATTERY, 1) == power.Power("battery", 54, True, "open")
    assert mac(CHARGING, closed="Yes") == power.Power("ac", 100, False, "closed")
    studio = mac(NO_BATTERY, mode=2, closed=None)
    assert studio == power.Power("ac", None, False, None)
    assert not studio.is_laptop
    assert mac(CHARGING).is_laptop


def test_newer_macs_name_the_mode_otherwise():
    text = PMSET.format(mode=0).replace(" lowpowermode         0", " powermode            1")
    assert power.of_mac(lambda *command: text if command[-1] == "-g" else "").low_power


LAPTOP = {
    "sys/class/power_supply/AC/type": "Mains\n",
    "sys/class/power_supply/AC/online": "0\n",
    "sys/class/power_supply/BAT0/type": "Battery\n",
    "sys/class/power_supply/BAT0/capacity": "17\n",
    "sys/class/power_supply/BAT0/status": "Discharging\n",
    "sys/class/power_supply/mouse/type": "Battery\n",
    "sys/class/power_supply/mouse/scope": "Device\n",
    "sys/class/power_supply/mouse/capacity": "99\n",
    "sys/firmware/acpi/platform_profile": "low-power\n",
    "proc/acpi/button/lid/LID0/state": "state:      closed\n",
}


def test_power_of_linux_machines(tmp_path):
    assert power.of_linux(write(tmp_path, LAPTOP)) == power.Power("battery", 17, True, "closed")
    write(tmp_path, {"sys/class/power_supply/AC/online": "1\n"})
    write(tmp_path, {"sys/class/power_supply/BAT0/status": "Charging\n"})
    assert power.of_linux(tmp_path).source == "ac"


def test_warnings_are_in_words():
    assert power.warnings(power.Power("ac", 100, False, "open")) == []
    assert power.warnings(power.Power()) == []
    battery, slow, lid = power.warnings(power.Power("battery", 54, True, "closed"))
    assert battery == "on battery (54 %): the run ends with it; plug the machine in"
    assert slow.startswith("Low Power Mode is on: everything takes longer")
    assert lid.startswith("the lid is closed: the machine sleeps unless")
    [low] = power.warnings(power.Power("battery", 0))
    assert "it will not last" in low


def test_a_mac_is_kept_awake_while_the_process_lives(tmp_path, monkeypatch):
    fake = tmp_path / "caffeinate"
    fake.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/said\nexec sleep 60\n')
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(power, "CAFFEINATE", str(fake))
    monkeypatch.setattr(sys, "platform", "darwin")
    started, popen = [], subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1]
    )
    with power.awake(1234) as held:
        assert held
        [process] = started
        assert process.poll() is None
        assert os.getsid(process.pid) != os.getsid(0)
        while not (tmp_path / "said").exists() or not (tmp_path / "said").read_text():
            time.sleep(0.01)
    assert process.poll() == -signal.SIGTERM
    assert (tmp_path / "said").read_text().split() == ["-i", "-s", "-w", "1234"]
    monkeypatch.setattr(power, "CAFFEINATE", str(tmp_path / "missing"))
    with power.awake(1234) as held:
        assert not held


@pytest.mark.skipif(sys.platform == "darwin", reason="platform: there something happens")
def test_elsewhere_nothing_is_done_to_stay_awake(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("started something"))
    with power.awake(os.getpid()) as held:
        assert not held


# --- sleep ------------------------------------------------------------------------------------


def test_sleep_is_told_once_and_jitter_is_none():
    now = [100.0]
    watch = clock.SleepWatch(lambda: now[0])
    assert watch.slept() == 0
    now[0] += 0.4
    assert watch.slept() == 0
    now[0] += 11_520
    assert watch.slept() == pytest.approx(11_520.4)
    assert watch.slept() == 0


def test_the_time_of_day_is_not_asked(monkeypatch):
    watch = clock.SleepWatch()
    monkeypatch.setattr(time, "time", lambda: pytest.fail("asked"))
    assert watch.slept() == 0
    assert clock.asleep() >= -1e-3


# --- notifications ----------------------------------------------------------------------------


def script(folder: Path, body: str) -> Path:
    path = folder / "a script.sh"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def test_the_command_gets_the_summary_twice(tmp_path):
    path = script(tmp_path, f'cat > "{tmp_path}/in"; printf %s "$MLXROLES_SUMMARY$1" > "$2"')
    command = f"'{path}' '$(touch {tmp_path}/evil); `x`' {tmp_path}/out"
    summary = {"cells": 3, "share": float("nan"), "path": tmp_path}
    assert notify.notify("done", "3 cells", command, summary=summary) == []
    told = json.loads((tmp_path / "in").read_text())
    expected = {"cells": 3, "share": None, "path": str(tmp_path), "title": "done"}
    assert told == expected | {"text": "3 cells"}
    out = (tmp_path / "out").read_text()
    assert out == json.dumps(told) + f"$(touch {tmp_path}/evil); `x`"
    assert not (tmp_path / "evil").exists()


def test_a_large_summary_comes_by_standard_input_alone(tmp_path):
    path = script(tmp_path, f'cat > "{tmp_path}/in"; test -z "$MLXROLES_SUMMARY"')
    assert notify.notify("t", "x", f"'{path}'", summary={"long": "y" * 300_000}) == []
    assert len((tmp_path / "in").read_text()) > 300_000


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("/nonexistent/program --x", "cannot be started (No such file or directory)"),
        ("false", "ended with status 1"),
        ("'open quote", "check its quotes"),
        ("  ", "is empty"),
        ("sh -c 'kill -9 $$'", "was ended by signal 9"),
    ],
)
def test_a_command_that_fails_is_a_note(command, said):
    [note] = notify.notify("t", "x", command, summary={})
    assert said in note
    assert "\n" not in note


def test_a_command_that_hangs_is_ended_with_its_children(tmp_path):
    path = script(tmp_path, f"sleep 60 & echo $! > {tmp_path}/child; wait")
    begun = time.monotonic()
    [note] = notify.notify("t", "x", f"'{path}'", seconds=0.5)
    assert "took more than 0.5 s" in note
    assert time.monotonic() - begun < 20
    child = Path(f"/proc/{(tmp_path / 'child').read_text().strip()}/stat")
    for _ in range(100):
        if not child.exists() or child.read_text().split()[2] == "Z":
            break
        time.sleep(0.05)
    else:
        pytest.fail("the child is still there")


def test_a_command_that_does_not_read_its_input_is_fine():
    assert notify.notify("t", "x", "true", summary={"long": "y" * 500_000}) == []


def test_what_a_notification_shows_is_data():
    evil = 'x" with title "y\n-- \x1b]0;\u202e'
    command = notify.centre("-e evil", evil)
    assert command[0] == "/usr/bin/osascript"
    *lines, title, text = command[1:]
    assert "evil" not in " ".join(lines)
    assert title == " -e evil"
    assert text == 'x" with title "y\\n-- \\x1b]0;\\u202e'


def test_the_bell_rings_on_a_terminal_alone(capsys, monkeypatch):
    notify.notify("t", "x")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    notify.notify("t", "x")
    assert capsys.readouterr().err == "\a"


# --- disks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "service"),
    [
        ("/Users/a/Library/Mobile Documents/com~apple~CloudDocs/results", "iCloud Drive"),
        ("/Users/a/Library/CloudStorage/Dropbox/results", "Dropbox"),
        ("/Users/a/Library/CloudStorage/OneDrive-Uni/results", "OneDrive"),
        ("/Users/a/Library/CloudStorage/GoogleDrive-a@b.c/My Drive", "Google Drive"),
        ("/Users/a/Library/CloudStorage/Box-Box/x", "a cloud service"),
        ("/home/a/Dropbox (Lab)/results", "Dropbox"),
        ("/home/a/OneDrive - Uni/results", "OneDrive"),
        ("/home/a/Nextcloud", "Nextcloud"),
        ("/home/a/work/results", None),
        ("/home/a/not-Dropbox/results", None),
        ("/Users/a/Library/Caches", None),
    ],
)
def test_folders_that_are_copied_away_are_known_by_name(path, service):
    assert disk.synced(Path(path)) == service


MOUNTINFO = """22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
40 27 0:50 / /mnt/my\\040share rw,relatime - nfs4 server:/export rw,vers=4.2
41 27 0:51 / /home/a/results rw - fuse.sshfs a@b: rw
"""
MOUNT = """/dev/disk3s1s1 on / (apfs, sealed, local, read-only, journaled)
devfs on /dev (devfs, local, nobrowse)
/dev/disk3s5 on /System/Volumes/Data (apfs, local, journaled, nobrowse, protect)
//a@server/lab%20data on /Volumes/lab data (smbfs, nodev, nosuid, mounted by a)
server:/export on /Volumes/nfs (nfs)
"""


def test_the_file_system_of_a_folder():
    def linux():
        return disk.of_mountinfo(MOUNTINFO)

    def mac():
        return disk.of_mount(MOUNT)

    assert disk.filesystem(Path("/home/a/x"), linux) == "ext4"
    assert disk.filesystem(Path("/mnt/my share/x/y"), linux) == "nfs4"
    assert disk.filesystem(Path("/home/a/results"), linux) == "fuse.sshfs"
    assert disk.filesystem(Path("/Users/a"), mac) == "apfs"
    assert disk.filesystem(Path("/Volumes/lab data/x"), mac) == "smbfs"
    assert disk.filesystem(Path("/Volumes/nfs/x"), mac) == "nfs"
    assert disk.filesystem(Path("/x"), dict) is None


def test_places_that_are_no_good_say_why():
    assert disk.Place("apfs", None).warning() is None
    assert "locks cannot be relied on" in disk.Place("nfs4", None).warning()
    assert "copied by Dropbox" in disk.Place("apfs", "Dropbox").warning()


def test_a_folder_that_does_not_exist_has_a_place(tmp_path):
    assert disk.place(tmp_path / "not" / "yet") == disk.place(tmp_path)
